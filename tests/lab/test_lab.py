"""The labs' own logic, without an engine, without root."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent


def load_lab() -> ModuleType:
    spec = importlib.util.spec_from_file_location("podyd_lab", HERE / "lab.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


lab = load_lab()


def stand_in(cards: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(HERE / "nvidia-container-cli"), *words],
        env={"PODYD_LAB_CARDS": str(cards)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    path = tmp_path / "cards.json"
    path.write_text(json.dumps(lab.cards_description(lab.DEFAULT_CARDS)))
    return path


def test_info_is_what_lxd_parses(cards: Path) -> None:
    done = stand_in(cards, "info", "--csv")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "NVRM version,CUDA version",
        "535.183.01,12.2",
        "",
        "Device Index,Device Minor,Model,Brand,GPU UUID,Bus Location,Architecture",
        "0,0,NVIDIA A100 80GB PCIe,Nvidia,"
        "GPU-5f1c2a3e-7b84-4d6a-9c0f-1e2d3c4b5a60,00000000:41:00.0,8.0",
        "1,1,NVIDIA A100 80GB PCIe,Nvidia,"
        "GPU-a9d8c7b6-1234-4f5e-8a9b-0c1d2e3f4a5b,00000000:61:00.0,8.0",
    ]


def test_configure_succeeds_silently(cards: Path) -> None:
    done = stand_in(cards, "--load-kmods", "configure", "--no-cgroups", "--device=all", "/rootfs")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("words", [("list",), ("info",), ()])
def test_anything_else_fails(cards: Path, words: tuple[str, ...]) -> None:
    done = stand_in(cards, *words)
    assert done.returncode == 1
    assert "does not know" in done.stderr


def test_cards_are_those_of_the_lab_in_whose_directory_the_stand_in_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = dataclasses.replace(lab.ENGINE, lab_dir=tmp_path / "lab")
    monkeypatch.setattr(lab, "ENGINE", engine)
    engine.lab_dir.mkdir()
    lab.write_stand_in(lab.CARDS[:1])
    program = tmp_path / "shown" / "nvidia-container-cli"
    engine.bin_dir.rename(program.parent)
    done = subprocess.run([program, "info", "--csv"], capture_output=True, text=True, check=True)
    assert done.stdout.count("GPU-") == 1


def test_cards_are_read_as_they_were_described(tmp_path: Path) -> None:
    path = tmp_path / "cards.json"
    cards = (dataclasses.replace(lab.CARDS[3], uuid="GPU-other", terminal=12),)
    path.write_text(json.dumps(lab.cards_description(cards)))
    assert lab.read_cards(path) == cards
    assert lab.device_nodes(cards)["/dev/nvidia3"] == os.makedev(4, 12)
    assert lab.pci_files(cards[0])["drm/card3/dev"] == "4:12\n"
    for text in ("", "[]", '{"cards": [{"minor": 0}]}', '{"cards": [{"colour": "red"}]}'):
        path.write_text(text)
        with pytest.raises(lab.LabError, match="does not describe cards"):
            lab.read_cards(path)


def test_info_without_cards_says_which_file(tmp_path: Path) -> None:
    done = stand_in(tmp_path / "none.json", "info", "--csv")
    assert done.returncode == 1
    assert "none.json" in done.stderr


def test_state_survives_writing_and_reading(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lab.json"
    state = lab.State("/var/lib/lxd/unix.socket", True, 2, ("/dev/nvidia0",), True)
    lab.write_state(state, path)
    assert lab.read_state(path) == state
    assert os.listdir(path.parent) == ["lab.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"socket": "/x"}', '{"made": 1}'])
def test_a_broken_state_is_no_state(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lab.json"
    path.write_text(text)
    assert lab.read_state(path) is None


def test_only_true_makes_an_lxd_ours(tmp_path: Path) -> None:
    path = tmp_path / "lab.json"
    path.write_text('{"socket": "/x", "ours": "no", "gpus": 1}')
    assert lab.read_state(path) == lab.State("/x", False, 1)


def test_device_nodes_are_the_drivers_but_for_cards_that_can_be_opened() -> None:
    nodes = lab.device_nodes(lab.DEFAULT_CARDS)
    assert {path: (os.major(n), os.minor(n)) for path, n in nodes.items()} == {
        "/dev/nvidia0": (4, 10),
        "/dev/nvidia1": (4, 11),
        "/dev/dri/card0": (4, 10),
        "/dev/dri/card1": (4, 11),
        "/dev/nvidiactl": (195, 255),
        "/dev/nvidia-uvm": (510, 0),
    }


# --- Two labs -------------------------------------------------------------------------------------


@pytest.fixture
def two_labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the other lab's state, which has made one node."""
    engines = {
        key: dataclasses.replace(
            engine, lab_dir=tmp_path / key, directory=tmp_path / f"{key}-data", other_sockets=()
        )
        for key, engine in lab.ENGINES.items()
    }
    monkeypatch.setattr(lab, "ENGINES", engines)
    monkeypatch.setattr(lab, "ENGINE", engines["lxd"])
    other: Path = engines["incus"].state_file
    lab.write_state(lab.State("/other", True, 1, ("/dev/nvidia1",)), other)
    return other


def test_what_another_lab_needs_is_left_to_it(two_labs: Path) -> None:
    made = (str(lab.ENGINE.lab_dir), "/dev/nvidia0")
    assert lab.left_to_remove(made) == ()
    state = lab.read_state(two_labs)
    assert state.made == ("/dev/nvidia0", "/dev/nvidia1")
    lab.use("incus")
    assert lab.left_to_remove(state.made) == state.made, "the first one has no state"


def test_an_engine_that_is_not_the_other_labs_needs_nothing(two_labs: Path) -> None:
    lab.write_state(lab.State("/other", False, 0), two_labs)
    assert lab.left_to_remove(("/dev/nvidia0",)) == ("/dev/nvidia0",)


def test_an_engine_of_somebodys_own_is_not_stripped_of_podyd(two_labs: Path) -> None:
    lab.write_state(lab.State("/other", False, 0), two_labs)
    assert not lab.is_alone()
    two_labs.unlink()
    assert lab.is_alone()
    # `make run` uses one that answers without a lab.
    path = lab.ENGINES["incus"].socket
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert lab.is_alone(), "nobody listens"
        listener.listen()
        assert not lab.is_alone()


def test_labs_share_no_place_and_no_word() -> None:
    lxd, incus = (dataclasses.asdict(lab.ENGINES[key]) for key in ("lxd", "incus"))
    assert not [name for name in lxd if lxd[name] and lxd[name] == incus[name]]


@pytest.mark.parametrize(
    ("component", "is_seen"),
    [
        ("lxc.payload.alice-x", True),
        ("lxc.monitor.alice-x", True),
        ("lxc.payload.alice-x-1", True),
        ("lxc.payload.podyd_bob-y", True),
        ("lxc.payload.bob-y", False),
        ("lxc.payload.alice", False),
        ("lxc.pivot", False),
        ("system.slice", False),
    ],
)
def test_cgroups_are_told_apart(component: str, is_seen: bool) -> None:
    assert lab.is_cgroup_of(component, {"alice-x", "podyd_bob-y"}) is is_seen


def test_cgroups_of_either_version_are_enough() -> None:
    rest = [("/", "ext4"), ("/sys/fs/cgroup", "tmpfs")]
    assert not lab.has_cgroups(rest)
    for kind in ("cgroup", "cgroup2"):
        assert lab.has_cgroups([*rest, ("/sys/fs/cgroup/x", kind)])


def test_mount_points_are_unescaped() -> None:
    assert lab.unescape_mount(r"/a\040b\134c") == "/a b\\c"


def test_a_child_that_ended_is_not_alive() -> None:
    child = subprocess.Popen(["true"])
    try:
        assert lab.wait_for(lambda: not lab.is_alive(child.pid), 10)  # still a zombie
    finally:
        child.wait()


def test_the_lab_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert lab.main(["status"]) == 1


# --- What `make run` installs ---------------------------------------------------------------------

PROGRAMS = ("podyd", "pody", "podx")
PAM_FILE = HERE.parents[1] / "podyd/data/pam.d-podyd"


def link(root: Path) -> str:
    """Link the programs as `make run` does; what it says."""
    target = root / "usr/local/bin"
    target.mkdir(parents=True, exist_ok=True)
    script = f'. {HERE}/machine.sh; link_programs "$@"'
    words = ("sh", "-euc", script, "sh", "/usr/local/lib/podyd/bin", target, *PROGRAMS)
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_programs_are_on_the_path_and_nobody_elses_is_touched(tmp_path: Path) -> None:
    directory = tmp_path / "usr/local/bin"
    directory.mkdir(parents=True)
    (directory / "pody").write_text("an older one, of pip")
    (directory / "podx").symlink_to("pody")
    for _ in range(2):
        lines = link(tmp_path).splitlines()
        assert [line.partition(" ")[0] for line in lines] == [
            f"{directory}/pody",
            f"{directory}/podx",
        ]
        assert "/usr/local/lib/podyd/bin/pody" in lines[0]
        assert os.readlink(directory / "podyd") == "/usr/local/lib/podyd/bin/podyd"
        assert (directory / "pody").read_text() == "an older one, of pip"
        assert os.readlink(directory / "podx") == "pody"


@pytest.fixture
def run_once(tmp_path: Path) -> Path:
    """A root directory on which `make run` has been."""
    link(tmp_path)
    (tmp_path / "usr/local/lib/podyd/bin").mkdir(parents=True)
    (tmp_path / "etc/pam.d").mkdir(parents=True)
    (tmp_path / "etc/pam.d/podyd").write_bytes(PAM_FILE.read_bytes())
    return tmp_path


def files(root: Path) -> list[str]:
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    )


def test_down_takes_away_what_run_has_installed(run_once: Path) -> None:
    other = run_once / "usr/local/bin/podman"
    other.write_text("another program")
    for _ in range(2):
        lab.remove_installation(run_once)
        assert files(run_once) == ["usr/local/bin/podman"]
        assert not (run_once / "usr/local/lib/podyd").exists()


def test_down_leaves_an_admins_pam_rules(
    run_once: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = run_once / "etc/pam.d/podyd"
    rules.write_text(f"{rules.read_text()}account required pam_time.so\n")
    lab.remove_installation(run_once)
    assert files(run_once) == ["etc/pam.d/podyd"]
    assert f"{rules} stays" in capsys.readouterr().err


def test_down_leaves_the_packages_pam_rules(run_once: Path) -> None:
    (run_once / "var/lib/dpkg/info").mkdir(parents=True)
    (run_once / "var/lib/dpkg/info/podyd.list").touch()
    lab.remove_installation(run_once)
    assert "etc/pam.d/podyd" in files(run_once)
