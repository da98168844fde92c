"""What `podyd migrate` does, in order, with both real engines."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import pwd
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from podyd.admin import ids, setup
from podyd.admin.migration.limits import Project
from podyd.admin.migration.lock import alone
from podyd.admin.migration.mark import KEY
from podyd.admin.migration.move import Move, go_back, remove_originals
from podyd.admin.migration.plan import Plan, Pod, Room, Stock, plan, profile_notes
from podyd.admin.migration.translation import Translation, with_cards
from podyd.base.errors import SetupError
from podyd.config.schema import Config
from podyd.engine.admin import THIN_DRIVERS, Pool, Say
from podyd.engine.dialect import AUTO, INCUS, LXD, Dialect, kept
from podyd.engine.gpu_devices import is_by_cdi
from podyd.engine.moving import Side
from podyd.engine.rest import Credentials
from podyd.engine.restore_guard import RESTORING, SUFFIX
from podyd.engine.types import Profile
from podyd.node.host_files import THIS_HOST, HostFiles
from podyd.node.samples import NVIDIA_VENDOR_ID

ANSWER_SECONDS = 3.0

Ask = Callable[[str], bool]


@dataclass(frozen=True)
class Migration:
    """The move from `old` to `new` on this host, for podyd of this configuration."""

    config: Config
    user: str
    old: Side
    new: Side
    say: Say
    files: HostFiles = THIS_HOST

    @classmethod
    def here(cls, config: Config, user: str, say: Say) -> Migration:
        """Raises SetupError if one of the two engines does not run here."""
        return cls(config, user, _side(LXD, config), _side(INCUS, config), say)

    # --- What the command line asks for ----------------------------------------------------------

    def show(self) -> Plan:
        """Print what would be done; nothing is changed."""
        plan = self._plan()
        for line in plan.lines(self.old.dialect.name, self.new.dialect.name):
            self.say(line)
        if plan.to_copy and self.new.project_config() is not None:
            for line in self._differences():
                self.say(line)
        for sentence in [
            *plan.refusals,
            *self._without_ids(),
            *self._running(),
            *self._unsettled(),
        ]:
            self.say(f"Not yet: {sentence}")
        return plan

    def run(self, ask: Ask) -> bool:
        """Move everything, if the admin agrees; whether all that ran before runs again."""
        with alone(self.config.state_dir):
            self._refuse([*self._running(), *self._unsettled()])
            for side in (self.old, self.new):
                side.wait_until_idle()
            self._close_again()
            plan = self.show()
            self._refuse([*plan.refusals, *self._without_ids()])
            is_over = self._uses(self.new) or not plan.pods
            if not (plan.to_copy or plan.to_start or plan.images) and is_over:
                self.say("Nothing is to be moved.")
                return True
            if not ask("Move them?"):
                return False
            with self._told_how_to_go_on():
                self._move()
            return self._start()

    def finish(self, ask: Ask) -> bool:
        """Delete what was moved from the old engine, if the admin agrees."""
        with alone(self.config.state_dir):
            plan = self._plan()
            self._refuse(plan.refusals)
            moved = [pod for pod in plan.pods if pod.is_moved and pod.copied]
            if len(moved) < len(plan.pods) or not self._uses(self.new):
                raise SetupError(
                    "Not everything has been moved yet.", advice="Call 'podyd migrate' first."
                )
            old = self.old.dialect.name
            # One that was killed as the last pod had been moved has not come to it.
            self._leave()
            if not moved:
                self.say(f"{old} has none of the pods that were moved.")
                return True
            if not ask(f"Delete {len(moved)} pods from {old}, for good?"):
                return False
            remove_originals(self.old, moved, self.say)
            self.say(f"{old} has no more of podyd than its project, profiles and images.")
            return True

    def back(self, ask: Ask) -> bool:
        """Have the old engine's pods used again, if the admin agrees."""
        with alone(self.config.state_dir):
            self._check()
            self._check_alone()
            self._close_again()
            there = self.old.originals()
            marked = [item.name for item in there if KEY in item.config]
            question = (
                f"Use {len(marked)} pods in {self.old.dialect.name} as they were when they were"
                f" moved, and delete them with all that is new in {self.new.dialect.name}?"
            )
            # One that was interrupted may have had all but its last step.
            if not marked and not (there and self._uses(self.new)):
                self.say("No pod has been moved.")
                return True
            if not ask(question):
                return False
            failed = go_back(self.old, self.new, self.say)
            self.new.distrust(self._fingerprint(self.new))
            self._confine()
            self._choose(self.old)
            for sentence in failed:
                self.say(f"{sentence} It is a member's again; start it by hand.")
            return not failed

    # --- Steps -----------------------------------------------------------------------------------

    def _plan(self) -> Plan:
        self._check()
        has_project = self.new.project_config() is not None
        self.old.speak()
        pools = self.old.pools()
        return plan(
            self.old.originals(),
            self.new.originals(),
            self.old.moved_images(),
            self.new.moved_images() if has_project else [],
            project=self._project(),
            is_offered=self._is_offered,
            names=(self.old.dialect.name, self.new.dialect.name),
            room=self._room(),
            stock=Stock(
                sum(pool.used_bytes for pool in pools),
                any(pool.driver in THIN_DRIVERS for pool in pools),
            ),
        )

    def _project(self) -> Project:
        """The new engine's project, as far as its limits count."""
        name, limits = self.config.lxd.project, self.new.limits(self.old)
        if not limits:
            return Project(name)
        has_project = self.new.project_config() is not None
        pool = self.new.pool()
        there = [*self.new.profiles()] if has_project else []
        # Of all that is translated, limits count the pool alone.
        there += self._given(Translation(frozenset(), "", pool))
        return Project(
            name,
            limits,
            {profile.name: profile for profile in there},
            self.new.volumes() if has_project else (),
            {pool, *(item.name for item in self.new.pools())},
            pool,
        )

    def _differences(self) -> Iterator[str]:
        """What the new engine's project has otherwise, and whether it stays so."""
        names = (self.old.dialect.name, self.new.dialect.name)
        settings = self.old.project_config() or {}
        for key, value in sorted(self.new.kept_settings(settings).items()):
            yield (
                f"Project {self.config.lxd.project} has {key}={value} in {names[1]}, and keeps"
                f" that; {names[0]}'s has {settings[key]}."
            )
        if self.new.pools() and self.new.bridges():
            wanted = map(self.translation(*self.new.pool_and_bridge()).profile, self._profiles())
            there = self.new.profiles()
            yield from profile_notes(wanted, there, names=names, stay=self._has_pods())

    def _profiles(self) -> list[Profile]:
        self.old.speak()
        return self.old.profiles()

    def translation(self, pool: str, bridge: str) -> Translation:
        """That to the new engine's pool and bridge."""
        profiles = self._profiles()
        bridges = frozenset(item.name for item in self.old.bridges())
        made = Translation(bridges, bridge, pool)
        holders = [item.devices for item in profiles]
        holders += [item.devices for item in self.old.instances()]
        by_cdi = any(is_by_cdi(device) for devices in holders for device in devices.values())
        if not by_cdi or self.new.wants_cdi():
            return made
        cards = [card for card in self.old.cards() if card.vendor == NVIDIA_VENDOR_ID]
        return with_cards(made, profiles, cards)

    def _is_offered(self, alias: str) -> bool:
        return any(fnmatch.fnmatchcase(alias, item) for item in self.config.images.offer)

    def _room(self) -> Room | None:
        self.new.speak()
        pools = self.new.pools()
        if not pools or not self.new.bridges():
            return None
        name, _ = self.new.pool_and_bridge()
        directory = self.new.place.directory
        disk = os.statvfs(directory)
        pool = next(pool for pool in pools if pool.name == name)
        return room_of(pool, directory, disk.f_bavail * disk.f_frsize)

    @contextlib.contextmanager
    def _told_how_to_go_on(self) -> Iterator[None]:
        try:
            yield
        except (SetupError, KeyboardInterrupt):
            with contextlib.suppress(OSError):  # The terminal may be gone.
                self.say(
                    "Pods that were stopped for it stay so until 'podyd migrate' is called again,"
                    " which goes on, or 'podyd migrate --back'."
                )
            raise

    def _move(self) -> None:
        translation = self._prepare()
        plan = self._plan()
        self._refuse(plan.refusals)
        # While the project refuses what pods may not have: before any pod is stopped.
        self.try_settings(plan.to_copy, translation)
        move = Move(self.old, self.new, translation, self.say, self._check_alone)
        try:
            self.open_project()
            # With a limit of disks, an image is refused that is larger than what is left of it.
            move.images(plan.images)
            move.pods(plan)
        finally:
            self._confine()
        self._choose(self.new)
        self._leave()

    def try_settings(self, pods: Sequence[Pod], translation: Translation) -> None:
        """Raises SetupError if the new engine does not take those of a pod. Of one that it has in
        part, it did before; and with that one, the trial may be more than the project may have."""
        for pod in pods:
            if not pod.partial:
                self.new.try_out(translation.original(pod.original))

    def _leave(self) -> None:
        """Have the old engine trust podyd no more; `back` has it do so again."""
        self.old.distrust(self._fingerprint(self.old))

    def open_project(self) -> None:
        """Have the new engine's project refuse nothing, where nobody but root can use that."""
        self._check_alone()
        # Since it was taken away, settings were tried.
        self.new.distrust(self._fingerprint(self.new))
        command = self.new.dialect.command
        self._refuse(
            [
                f"{self.new.dialect.name} trusts the certificate {name!r} for project"
                f" {self.config.lxd.project}, which refuses nothing while pods are copied: remove"
                f" it ('{command} config trust remove {fingerprint[:12]}') and call this again."
                for fingerprint, name in self.new.trusted().items()
            ]
        )
        self.new.confine(restricted=False)

    def _prepare(self) -> Translation:
        """Have the new engine as `podyd setup` has it, but for the trust in podyd's certificate."""
        self.old.speak()
        settings = self.old.project_config() or {}
        openings = setup.openings(self.config) | self.old.openings_in_use(())
        self.new.distrust(self._fingerprint(self.new))
        pool = self.new.prepare_pool(self.say)
        bridge = self.new.prepare_bridge(setup.free_network, self.say)
        self.new.prepare_project(bridge, openings, self.say)
        self.new.take_settings(settings, self.say)
        translation = self.translation(pool, bridge)
        self.put_profiles(translation)
        return translation

    def put_profiles(self, translation: Translation) -> None:
        """Have the new engine's profiles be as the old one's are, where no pod uses them yet: from
        then on it is there that an admin changes them."""
        for profile in self._given(translation):
            self.new.put_profile(profile)

    def _given(self, translation: Translation) -> list[Profile]:
        """The old engine's profiles that the new one is given."""
        wanted = [*map(translation.profile, self._profiles())]
        self.new.speak()
        stay = {profile.name for profile in self.new.profiles()} if self._has_pods() else set()
        return [profile for profile in wanted if profile.name not in stay]

    def _has_pods(self) -> bool:
        """Whether the new engine has pods, of whatever origin, that are whole."""
        return any(KEY not in item.config for item in self.new.originals())

    def _confine(self) -> None:
        if self.new.project_config() is not None:
            self.new.confine(restricted=True)
            self.new.restore_limits(self.say)

    def _close_again(self) -> None:
        """Have the project confined that one that was killed has left open. Whatever else is so
        named, without a mark of podyd's, is left alone."""
        if self.new.is_open():
            self.new.wait_until_idle()
            self._confine()

    def _choose(self, side: Side) -> None:
        """Have podyd use this engine from now on."""
        side.speak()
        group = pwd.getpwnam(self.user).pw_gid
        credentials = Credentials.below(self.config.state_dir, side.dialect)
        setup.prepare_access(side, credentials, group, self.say)
        setup.keep_choice(self.config.state_dir, side.dialect, group)
        key = side.dialect.key
        if self.config.engine not in (AUTO, key):
            self.say(f"Now write 'engine: {key}' into podyd.yaml, in place of what it has.")
        if self.config.lxd.endpoint != "auto":
            self.say("Now remove 'endpoint' below 'lxd:' from podyd.yaml: it is the old engine's.")

    def _start(self) -> bool:
        self.old.speak()
        plan = self._plan()
        nothing = Translation(frozenset(), "", "")
        move = Move(self.old, self.new, nothing, self.say, self._check_alone)
        failed = move.start([pod for pod in plan.to_start if pod.is_moved])
        for sentence in failed:
            self.say(f"{sentence} It has been moved; start it by hand, or call this again.")
        self.say(
            f"All pods are in {self.new.dialect.name}. Type 'systemctl unmask podyd' and 'systemctl"
            " start podyd'; when all is well, 'podyd migrate --finish' deletes them from"
            f" {self.old.dialect.name}."
        )
        return not failed

    def _uses(self, side: Side) -> bool:
        """Whether podyd is told to use this engine."""
        return kept(Path(self.config.state_dir)) == side.dialect

    # --- Conditions ------------------------------------------------------------------------------

    def _check(self) -> None:
        """Raises SetupError where podyd's pods can be neither moved nor brought back."""
        for side in (self.old, self.new):
            if side.is_clustered():
                raise SetupError(f"{side.dialect.name} is a cluster, of which podyd moves nothing.")
        if self.old.project_config() is None:
            raise SetupError(
                f"{self.old.dialect.name} has no project {self.config.lxd.project}.",
                advice="'lxd.project' in podyd.yaml says which one has the pods.",
            )

    def _fingerprint(self, side: Side) -> str:
        """That of podyd's certificate for an engine; "" if there is none."""
        path = Credentials.below(self.config.state_dir, side.dialect).certificate
        return setup.fingerprint(path.read_text(encoding="ascii")) if path.exists() else ""

    def _running(self) -> Iterator[str]:
        """That podyd itself runs, which would change pods meanwhile."""
        host, port = self.config.address
        with contextlib.suppress(OSError):
            socket.create_connection((host or "127.0.0.1", port), ANSWER_SECONDS).close()
            yield f"podyd is running at {self.config.listen}: type 'systemctl stop podyd'."

    def _unsettled(self) -> Iterator[str]:
        """That podyd was ended while the engine restored a snapshot, which takes the settings back
        to those of then: podyd has the current ones in a file, and sets them when it starts."""
        if any((self.config.data_dir / RESTORING).glob(f"*{SUFFIX}")):
            yield (
                "A snapshot was being restored when podyd ended: type 'systemctl start podyd'"
                " once, until it has settled, and then 'systemctl stop podyd'."
            )

    def _without_ids(self) -> Iterator[str]:
        """That no pod could start in the new engine, as root has no ids for it."""
        self.new.speak()
        process = self.files.process(self.new.server().pid)
        for problem in ids.problems(process, self.new.dialect):
            yield f"{problem.what.removesuffix('.')}: {problem.do}."

    def _check_alone(self) -> None:
        self._refuse(self._running())

    @staticmethod
    def _refuse(sentences: Iterator[str] | Sequence[str]) -> None:
        reasons = list(sentences)
        if reasons:
            raise SetupError(" ".join(reasons))


def room_of(pool: Pool, directory: Path, disk_bytes: int) -> Room:
    """What an engine that has its data in this directory has free for pods in a pool, and for
    images; `disk_bytes` are those of the directory's disk.

    A pool that is a file there grows on that disk, up to its size. Where it has been larger than
    what pods use now, it grows by that much less.
    """
    source = Path(pool.source)
    together = source.is_relative_to(directory)
    if together and source.is_file():
        disk_bytes += max(0, source.stat().st_blocks * 512 - pool.used_bytes)
    return Room(pool.total_bytes - pool.used_bytes, disk_bytes, together)


def _side(dialect: Dialect, config: Config) -> Side:
    dialect.speak()
    return Side(dialect, config.lxd.project)
