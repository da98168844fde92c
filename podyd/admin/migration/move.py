"""The move of pods from one engine to another, each in steps of which any may be the last.

What has been done is read from the instances themselves (mark.py), so a move that was killed goes
on when it is begun again. A pod is never without a whole instance: the old engine's stays until
`remove_originals`, and the new engine's is of use once it is known to be whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from podyd.admin.migration.mark import mark_of, new_mark
from podyd.admin.migration.plan import Plan, Pod, missing_names
from podyd.admin.migration.translation import Translation
from podyd.base.errors import SetupError
from podyd.engine.admin import Say
from podyd.engine.moving import MovedImage, Offer, Original
from podyd.engine.types import Keys
from podyd.model.pod import MADE_AS


class Engine(Protocol):
    """What of an engine the move needs; see podyd.engine.moving.Side."""

    def originals(self) -> list[Original]: ...
    def original(self, name: str) -> Original | None: ...
    def moved_images(self) -> list[MovedImage]: ...
    def set_keys(self, name: str, keys: Keys) -> None: ...
    def stop(self, name: str) -> None: ...
    def start(self, name: str) -> None: ...
    def delete(self, name: str) -> None: ...
    def offer(self, name: str) -> Offer: ...
    def offer_image(self, fingerprint: str) -> Offer: ...
    def fetch(self, name: str, like: Original, offer: Offer) -> None: ...
    def finish(self, name: str, like: Original, keys: Keys) -> None: ...
    def fetch_image(self, image: MovedImage, offer: Offer) -> None: ...
    def name_image(self, alias: str, fingerprint: str) -> None: ...
    def wait_until_idle(self) -> None: ...


class Move:
    """Moves pods and images; `say` is called per change. Methods raise SetupError, also that of
    `check`, which is called before each pod."""

    def __init__(
        self,
        old: Engine,
        new: Engine,
        translation: Translation,
        say: Say,
        check: Callable[[], None],
    ) -> None:
        self._old = old
        self._new = new
        self._translation = translation
        self._say = say
        self._check = check

    def images(self, images: Iterable[MovedImage]) -> None:
        """Copy images with their names; a name that another image has there stays so."""
        for image in images:
            there = self._new.moved_images()
            if not any(item.fingerprint == image.fingerprint for item in there):
                self._new.fetch_image(image, self._old.offer_image(image.fingerprint))
            for alias in missing_names(image, there):
                self._new.name_image(alias, image.fingerprint)
            self._say(f"copied image {', '.join(image.aliases) or image.fingerprint[:12]}")

    def pods(self, plan: Plan) -> None:
        """Copy all pods; the first that cannot be copied ends it."""
        for number, pod in enumerate(plan.pods, 1):
            if not pod.is_moved:
                self._check()
                self._pod(self._as_it_is(pod))
                self._say(f"moved {pod.name} ({number} of {len(plan.pods)})")

    def _pod(self, pod: Pod) -> None:
        name, original = pod.name, pod.original
        mark = pod.mark or new_mark(original.config, runs=pod.runs)
        if not pod.copied:
            if pod.mark is None:
                self._old.set_keys(name, mark.keys())
            if original.status != "stopped":
                self._old.stop(name)
            if pod.partial:
                self._new.delete(name)
            # That it has run before, the copy does not know.
            self._copy(name, mark.undone() | {MADE_AS: None})
        self._stopped(name)
        self._old.set_keys(name, mark.at("moved" if mark.ran else "done").keys())

    def _as_it_is(self, pod: Pod) -> Pod:
        """The same, read anew: since the plan, its turn may have been hours away."""
        original = self._there(self._old, pod.name)
        return replace(pod, original=original, mark=mark_of(pod.name, original.config))

    def _copy(self, name: str, keys: Keys) -> None:
        # As it is now that it is marked and does not run; the copy has the mark with the rest.
        original = self._stopped(name)
        like = self._translation.original(original)
        self._new.fetch(name, like, self._old.offer(name))
        differences = self._differences(like, self._there(self._new, name))
        if differences:
            raise SetupError(
                f"The copy of {name} differs from it: {', '.join(differences)}.",
                advice="Call 'podyd migrate' again to have it copied anew.",
            )
        self._stopped(name)
        self._new.finish(name, like, keys)

    def _stopped(self, name: str) -> Original:
        """The old engine's, which somebody may have started: its files would change meanwhile, and
        later it would run in both."""
        original = self._there(self._old, name)
        if original.status != "stopped":
            raise SetupError(
                f"{name} is not stopped in the engine that it leaves.",
                advice="Stop it there, and call 'podyd migrate' again.",
            )
        return original

    @staticmethod
    def _there(engine: Engine, name: str) -> Original:
        original = engine.original(name)
        if original is None:
            raise SetupError(f"{name} has been deleted meanwhile.", advice="Call it again.")
        return original

    @staticmethod
    def _differences(wanted: Original, found: Original) -> list[str]:
        devices = {
            name: device
            for name, device in found.devices.items()
            # The engine gives it a root disk of its own, which `finish` takes away.
            if name in wanted.devices or device.get("path") != "/"
        }
        pairs: Mapping[str, tuple[object, object]] = {
            "its id": (wanted.uuid, found.uuid),
            "its settings": (wanted.settings, found.settings),
            "its devices": (wanted.devices, devices),
            "its profiles": (wanted.profiles, found.profiles),
            "its snapshots": (sorted(wanted.snapshots), sorted(found.snapshots)),
        }
        return [what for what, (one, other) in pairs.items() if one != other]

    def start(self, pods: Sequence[Pod]) -> list[str]:
        """Start those that ran; a sentence for each that did not start, which is tried again by the
        next call."""
        failed = []
        for pod in pods:
            assert pod.mark is not None, "it has been moved"
            try:
                self._stopped(pod.name)
                self._new.start(pod.name)
            except SetupError as error:
                failed.append(str(error))
            else:
                self._old.set_keys(pod.name, pod.mark.at("done").keys())
                self._say(f"started {pod.name}")
        return failed


def remove_originals(old: Engine, pods: Sequence[Pod], say: Say) -> None:
    """Delete the old engine's instances of which the new one has all."""
    for pod in pods:
        if pod.copied and pod.is_moved:
            old.delete(pod.name)
            say(f"deleted {pod.name}")


def go_back(old: Engine, new: Engine, say: Say) -> list[str]:
    """Have the old engine's instances used again, as they were when each was moved; the new
    engine's copies of them are deleted. A sentence for each that ran and does not start."""
    failed = []
    for engine in (old, new):
        engine.wait_until_idle()
    copies = {item.name: item for item in new.originals()}
    for original in old.originals():
        mark = mark_of(original.name, original.config)
        if mark is None:
            continue
        copy = copies.get(original.name)
        # Only what is a copy of it: whole, or the rest of an interrupted move.
        if copy is not None and (
            copy.uuid == original.uuid or mark_of(copy.name, copy.config) is not None
        ):
            if copy.status != "stopped":
                new.stop(copy.name)
            new.delete(copy.name)
        # Before its mark goes: one that is killed here starts it when it is called again.
        if mark.ran:
            try:
                old.start(original.name)
            except SetupError as error:
                failed.append(str(error))
        old.set_keys(original.name, mark.undone())
        say(f"{original.name} is as it was")
    return failed
