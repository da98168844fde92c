"""What of `podyd migrate` keeps others away meanwhile."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from podyd.admin import setup
from podyd.admin.migration.command import Migration, room_of
from podyd.admin.migration.lock import LOCK, alone
from podyd.admin.migration.mark import KEY
from podyd.admin.migration.plan import Pod, Room
from podyd.base.errors import SetupError
from podyd.cli.migrate import interruptible
from podyd.config.schema import AuthConfig, Config
from podyd.engine.admin import Bridge, ExpandedInstance, Openings, Pool, Say, ServerInfo
from podyd.engine.dialect import CHOICE, INCUS, LXD, Dialect
from podyd.engine.moving import Limit, MovedImage, Original, Side, Volume
from podyd.engine.types import PciCard, Profile
from podyd.node.host_files import HostFiles
from tests.unit.admin.test_doctor import process_with
from tests.unit.admin.test_migration import BY_CDI, TRANSLATION, original
from tests.unit.engine.test_gpu_devices import CARDS

# Of the new engine.
PID = 7


@dataclass
class FakeSide:
    """Notes what is changed."""

    dialect: Dialect = INCUS
    trusts: dict[str, str] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    there: list[Original] = field(default_factory=list)
    stored: dict[str, Profile] = field(default_factory=dict)
    running: list[ExpandedInstance] = field(default_factory=list)
    by_cdi: bool = False
    opened: bool = False
    limited: list[Limit] = field(default_factory=list)

    def distrust(self, fingerprint: str) -> None:
        self.changed.append("distrust")

    def trusted(self) -> dict[str, str]:
        return self.trusts

    def speak(self) -> None:
        pass

    def server(self) -> ServerInfo:
        return ServerInfo("6.0.4", PID, "")

    def is_clustered(self) -> bool:
        return False

    def project_config(self) -> dict[str, str]:
        return {}

    def kept_settings(self, other: Mapping[str, str]) -> dict[str, str]:
        return {}

    def originals(self) -> list[Original]:
        return self.there

    def bridges(self) -> list[Bridge]:
        return []

    def openings_in_use(self, paths: Collection[str]) -> Openings:
        return Openings(frozenset(), frozenset(), frozenset())

    def profiles(self) -> list[Profile]:
        return list(self.stored.values())

    def instances(self) -> list[ExpandedInstance]:
        return self.running

    def wants_cdi(self) -> bool:
        return self.by_cdi

    def cards(self) -> list[PciCard]:
        return [*CARDS, PciCard("0000:03:00.0", "1a03")]

    def put_profile(self, profile: Profile) -> None:
        self.stored[profile.name] = profile

    def prepare_address(self, say: Say) -> str:
        return "https://127.0.0.1:8443"

    def server_certificate(self) -> str:
        return "PEM"

    def prepare_trust(self, certificate_pem: str, fingerprint: str, say: Say) -> None:
        self.changed.append("trust")

    def prepare_pool(self, say: Say) -> str:
        raise SetupError("There is no pool.")

    def moved_images(self) -> list[MovedImage]:
        return []

    def pools(self) -> list[Pool]:
        return []

    def wait_until_idle(self) -> None:
        self.changed.append("idle")

    def confine(self, *, restricted: bool) -> None:
        self.changed.append(f"restricted {restricted}")

    def try_out(self, like: Original) -> None:
        self.changed.append(f"try {like.name}")

    def is_open(self) -> bool:
        return self.opened

    def restore_limits(self, say: Say) -> None:
        self.changed.append("limits")
        self.opened = False

    def limits(self, other: FakeSide) -> list[Limit]:
        return self.limited

    def volumes(self) -> list[Volume]:
        return []

    def pool(self) -> str:
        return "pool"


@pytest.fixture
def port() -> Iterator[socket.socket]:
    """That of podyd, at which nobody listens yet."""
    with socket.socket() as item:
        item.bind(("127.0.0.1", 0))
        yield item


@pytest.fixture
def config(port: socket.socket, tmp_path: Path) -> Config:
    # Nothing can be made below a file: a setup that goes on gets no further.
    (tmp_path / "file").touch()
    return Config(
        listen=f"127.0.0.1:{port.getsockname()[1]}",
        state_dir=str(tmp_path),
        auth=AuthConfig(socket=str(tmp_path / "file" / "run" / "auth.sock")),
    )


@pytest.fixture
def old() -> FakeSide:
    return FakeSide(LXD)


@pytest.fixture
def new() -> FakeSide:
    return FakeSide()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def files(tmp_path: Path) -> HostFiles:
    """Where root has a range of ids for pods."""
    process_with(tmp_path / f"proc/{PID}", "root:1000000:65536\n")
    return HostFiles(tmp_path / "proc")


@pytest.fixture
def migration(
    config: Config, old: FakeSide, new: FakeSide, said: list[str], files: HostFiles
) -> Migration:
    return Migration(config, "podyd", cast(Side, old), cast(Side, new), said.append, files)


def test_the_project_is_open_to_nobody(migration: Migration, new: FakeSide) -> None:
    migration.open_project()
    assert new.changed == ["distrust", "restricted False"]


def test_the_project_stays_closed_while_podyd_runs(
    migration: Migration, new: FakeSide, port: socket.socket
) -> None:
    port.listen()
    with pytest.raises(SetupError, match="systemctl stop podyd"):
        migration.open_project()
    assert new.changed == []


def test_pods_stay_where_they_run_while_the_new_engine_has_no_ids_for_them(
    migration: Migration, old: FakeSide, new: FakeSide, said: list[str], files: HostFiles
) -> None:
    old.there = [original("a")]
    with files.process(PID).root.joinpath("etc/subgid").open("a") as file:
        file.write("root:2000000:65536\n")
    with pytest.raises(SetupError, match="root has 2 ranges for pods in /etc/subgid,"):
        migration.run(lambda question: True)
    assert "at once: delete root:2000000:65536 from /etc/subgid, and" in said[-1]
    assert [item for item in new.changed if item != "idle"] == []


def test_the_project_stays_closed_while_another_is_trusted(
    migration: Migration, new: FakeSide
) -> None:
    new.trusts = {"f" * 64: "ci"}
    with pytest.raises(SetupError, match=r"'ci' .*: remove it .'incus config trust remove ffff"):
        migration.open_project()
    assert "restricted False" not in new.changed


def test_two_do_not_run_at_once(config: Config) -> None:
    with (
        alone(config.state_dir),
        pytest.raises(SetupError, match="Another"),
        alone(config.state_dir),
    ):
        pass
    with alone(config.state_dir):
        pass


def test_setup_waits_for_its_end(config: Config) -> None:
    with alone(config.state_dir), pytest.raises(SetupError, match="is moving pods"):
        setup.prepare(config, "podyd", lambda text: None)
    with pytest.raises(SetupError) as found:
        setup.prepare(config, "podyd", lambda text: None)
    assert "migrate" not in str(found.value)


def test_the_service_waits_for_its_end(config: Config) -> None:
    path = Path(config.state_dir) / "podyd.yaml"
    path.write_text(f"listen: {config.listen}\nstate_dir: {config.state_dir}\n")
    umask = os.umask(0o077)
    try:
        with alone(config.state_dir):
            command = [sys.executable, "-m", "podyd", "serve", "--config", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        os.umask(umask)
    assert done.returncode == os.EX_CONFIG
    assert "podyd: 'podyd migrate' is moving pods." in done.stderr
    assert (Path(config.state_dir) / LOCK).stat().st_mode & 0o044


def test_what_both_engines_still_do_ends_first(
    migration: Migration, old: FakeSide, new: FakeSide
) -> None:
    assert migration.run(lambda question: False)
    assert (old.changed, new.changed) == (["idle"], ["idle"])


def test_what_podyd_has_still_to_set_is_set_first(migration: Migration, old: FakeSide) -> None:
    directory = migration.config.data_dir / "restoring"
    directory.mkdir(parents=True)
    (directory / "p.json").touch()
    with pytest.raises(SetupError, match="A snapshot was being restored when podyd ended"):
        migration.run(lambda question: True)
    assert old.changed == []
    # That it was not written to its end, nobody needs.
    (directory / "p.json").rename(directory / "p.new")
    assert migration.run(lambda question: True)


def test_in_the_end_the_old_engine_trusts_podyd_no_more(
    migration: Migration, old: FakeSide
) -> None:
    (Path(migration.config.state_dir) / CHOICE).write_text("incus")
    assert migration.finish(lambda question: True)
    assert old.changed == ["distrust"]


def test_the_room_of_a_pool_that_is_a_file(tmp_path: Path) -> None:
    def room(source: Path, used: int) -> Room:
        pool = Pool("p", "btrfs", str(source), "Created", used, 1000)
        return room_of(pool, tmp_path, 500)

    file = tmp_path / "pool.img"
    file.write_bytes(b"x" * 2**16)
    allocated = file.stat().st_blocks * 512
    assert room(Path("/dev/nvme1n1"), 200) == Room(800, 500, together=False)
    assert room(tmp_path / "storage-pools/p", 200) == Room(800, 500, together=True)
    # What it has of the disk and does not use is its own.
    assert room(file, 200) == Room(800, 500 + allocated - 200, together=True)
    assert room(file, 200).for_pods == 800
    file.write_bytes(b"")
    assert room(file, 200).for_pods == 500


@pytest.mark.parametrize("has_pods", [False, True])
def test_profiles_of_the_old_engine_count_until_the_new_one_has_pods(
    migration: Migration, old: FakeSide, new: FakeSide, has_pods: bool
) -> None:
    edited, newer = Profile("podyd-base", config={"limits.cpu": "9"}), Profile("labs")
    old.stored = {"podyd-base": edited, "labs": newer}
    new.stored = {"podyd-base": Profile("podyd-base")}
    # Whoever it comes from; the rest of an interrupted copy does not count.
    new.there = [original("p", config={} if has_pods else {KEY: "{}"})]
    migration.put_profiles(TRANSLATION)
    assert new.stored["labs"] == newer
    assert (new.stored["podyd-base"] == edited) is not has_pods


@pytest.mark.parametrize("of", ["nobody", "a profile", "a pod"])
@pytest.mark.parametrize("by_cdi", [False, True])
def test_cards_are_translated_where_one_is_by_a_cdi_id_and_may_not_be(
    migration: Migration, old: FakeSide, new: FakeSide, of: str, by_cdi: bool
) -> None:
    old.by_cdi, new.by_cdi = True, by_cdi
    if of == "a profile":
        old.stored = {"podyd-gpu": Profile("podyd-gpu", devices={"gpus": BY_CDI})}
    elif of == "a pod":
        old.running = [ExpandedInstance("p", True, {"card": BY_CDI}, {}, True)]
    made = migration.translation("pool", "bridge")
    assert made.drivers == ({"podyd-gpu"} if of == "a profile" and not by_cdi else set())
    assert made.cards == (None if of == "nobody" or by_cdi else [*CARDS])


@pytest.mark.skipif(os.geteuid() != 0, reason="it writes files of root's")
def test_who_goes_back_is_trusted_where_the_pods_are(
    migration: Migration, old: FakeSide, new: FakeSide
) -> None:
    old.there = [original("p")]
    (Path(migration.config.state_dir) / CHOICE).write_text("incus")
    assert dataclasses.replace(migration, user="root").back(lambda question: True)
    assert (old.changed, new.changed) == (
        ["idle", "trust"],
        ["idle", "distrust", "restricted True", "limits"],
    )


@pytest.mark.parametrize("has_pods", [False, True])
def test_what_pods_would_have_by_the_profiles_that_count_is_told_first(
    migration: Migration, old: FakeSide, new: FakeSide, said: list[str], has_pods: bool
) -> None:
    old.there = [original(name, config={"volatile.uuid": name}) for name in ("p", "q")]
    old.stored = {"podyd-base": Profile("podyd-base", config={"limits.memory": "1GiB"})}
    new.stored = {"podyd-base": Profile("podyd-base", config={"limits.memory": "3GiB"})}
    new.there = [original("x")] if has_pods else []
    new.limited = [Limit("limits.memory", "2GiB", "limits.memory", "incus")]
    plan = migration.show()
    if not has_pods:
        assert plan.refusals == []
        return
    (refusal,) = plan.refusals
    assert "may have 2GiB by limits.memory, and its pods would have 9GiB together" in refusal
    assert f"Not yet: {refusal}" in said
    with pytest.raises(SetupError, match="9GiB together"):
        migration.run(lambda question: True)
    assert set(old.changed) | set(new.changed) == {"idle"}


def test_settings_are_tried_where_the_trial_is_not_one_too_many(
    migration: Migration, new: FakeSide
) -> None:
    """What was copied in part counts among the project's limits, and has been tried before."""
    pods = [Pod(original("p"), None), Pod(original("q"), None, partial=True)]
    migration.try_settings(pods, TRANSLATION)
    assert new.changed == ["try p"]


def test_a_project_that_was_left_open_is_not_left_so(migration: Migration, new: FakeSide) -> None:
    """Killed before the first pod was marked, or by `--back` after the last mark was gone."""
    for act in (migration.back, migration.run):
        new.opened, new.changed = True, []
        assert act(lambda question: False)
        assert new.changed[-2:] == ["restricted True", "limits"]
    # It may be an admin's own.
    new.changed = []
    assert migration.back(lambda question: False)
    assert new.changed == []


def test_what_fails_says_how_to_go_on(migration: Migration, old: FakeSide, said: list[str]) -> None:
    old.there = [original("p")]
    with pytest.raises(SetupError, match="There is no pool"):
        migration.run(lambda question: True)
    assert "'podyd migrate --back'" in said[-1]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_ends_it_as_an_interrupt(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)
        with interruptible():
            signal.raise_signal(number)
    finally:
        signal.signal(number, before)
