"""Whether the new engine's project may have all that it will have in the end.

Both engines count alike (project/permissions.go): how many instances there are, and the sum of what
each may have by its own settings and its profiles', which each must have then, as a plain number or
size. While pods are copied the project has no limits; one that is too low by then is not set again,
and where a move was interrupted, it lets the next pod not even be tried.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from podyd.base.quantities import UNITS, parse_size
from podyd.engine.moving import Limit, Original, Volume
from podyd.engine.types import Devices, Profile, config_of, devices_of, profiles_of, root_of

# Of many pods, the first are named.
NAMED = 5
_DISK = "limits.disk"
# Followed by a pool's name: it counts what is there alone. A project may have no such limit of a
# pool that there is not.
_OF_POOL = f"{_DISK}.pool."
_NUMBER, _SIZE = "number", "size"
_SUMS = {
    "limits.cpu": _NUMBER,
    "limits.processes": _NUMBER,
    "limits.memory": _SIZE,
    _DISK: _SIZE,
}
_PARSERS: Mapping[str, Callable[[str], int]] = {_NUMBER: int, _SIZE: parse_size}
_COUNTS = ("limits.containers", "limits.instances")


@dataclass(frozen=True)
class Project:
    """The new engine's project as it will be when the first pod is copied: its limits, and what
    they count besides instances. `pools` are the engine's, `pool` that of pods."""

    name: str
    limits: Sequence[Limit] = ()
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    volumes: Sequence[Volume] = ()
    pools: Collection[str] = ()
    pool: str = ""

    def refusals(self, instances: Sequence[Original], engine: str) -> Iterator[str]:
        """Why it may not have these instances; `engine` is its name."""
        for limit in self.limits:
            kind = limit.key.removeprefix("limits.")
            if limit.key in _COUNTS:
                only = limit.key == "limits.containers"
                count = sum(item.is_container or not only for item in instances)
                most = _number(_NUMBER, limit.value)
                if most is None or count > most:
                    yield (
                        f"Project {self.name} in {engine} may have {limit.value} {kind}, and would"
                        f" have {count}: raise that first ({self._set(limit, str(count))}), or"
                        " delete some."
                    )
            elif limit.key in _SUMS or limit.key.startswith(_OF_POOL):
                yield from self._about_sum(limit, instances, engine)

    def _about_sum(self, limit: Limit, instances: Sequence[Original], engine: str) -> Iterator[str]:
        pool = limit.key.removeprefix(_OF_POOL) if limit.key.startswith(_OF_POOL) else None
        if pool is not None and pool not in self.pools:
            yield (
                f"{engine} has no storage pool {pool}, so project {self.name} cannot have"
                f" {limit.key} there: take that away first ({self._unset(limit)})."
            )
            return
        kind = _SIZE if pool is not None else _SUMS[limit.key]
        values = self._values(limit.key, pool, instances)
        numbers = {name: _number(kind, value) for name, value in values.items()}
        without = [name for name, number in numbers.items() if number is None]
        total = sum(filter(None, numbers.values()))
        most = _number(kind, limit.value)
        if without:
            what = "root disk" if limit.key.startswith(_DISK) else limit.key
            yield (
                f"Project {self.name} in {engine} has {limit.key}={limit.value}, which counts a"
                f" plain {kind} of each pod's {what}, and these have none: {listed(without)}. Give"
                f" each one, or take the project's away first ({self._unset(limit)})."
            )
        elif most is None or total > most:
            needed = _shown_size(total) if kind == _SIZE else str(total)
            yield (
                f"Project {self.name} in {engine} may have {limit.value} by {limit.key}, and its"
                f" pods would have {needed} together: raise that first"
                f" ({self._set(limit, needed)}), or lower theirs."
            )

    def _values(
        self, key: str, pool: str | None, instances: Iterable[Original]
    ) -> Mapping[str, str]:
        """What is summed up, by the names of what has it."""
        if not key.startswith(_DISK):
            return {item.name: self._config(item).get(key, "") for item in instances}
        roots = {item.name: root_of(self._devices(item))[1] for item in instances}
        disks = {name: (root.get("pool"), root.get("size", "")) for name, root in roots.items()}
        disks |= {f"volume {item.name}": (item.pool, item.size) for item in self.volumes}
        return {name: size for name, (where, size) in disks.items() if pool in (None, where)}

    def _config(self, instance: Original) -> dict[str, str]:
        return config_of(profiles_of(instance.profiles, self.profiles)) | dict(instance.config)

    def _devices(self, instance: Original) -> Devices:
        return {**devices_of(profiles_of(instance.profiles, self.profiles)), **instance.devices}

    def _set(self, limit: Limit, value: str) -> str:
        return f"'{limit.command} project set {self.name} {limit.held}={value}'"

    def _unset(self, limit: Limit) -> str:
        return f"'{limit.command} project unset {self.name} {limit.held}'"


def listed(names: Iterable[str]) -> str:
    """The first of these names, and how many more there are."""
    first, others = sorted(names)[:NAMED], len(set(names)) - NAMED
    return ", ".join(first) + (f" and {others} more" if others > 0 else "")


def _number(kind: str, value: str) -> int | None:
    """What the engines count of a value; None of a share, CPUs by name, or nothing."""
    try:
        number = _PARSERS[kind](value)
    except ValueError:
        return None
    return number if number >= 0 else None


def _shown_size(size: int) -> str:
    """A size as the engines take it, exactly."""
    units = sorted(UNITS.items(), key=lambda unit: -unit[1])
    return next(f"{size // factor}{name}" for name, factor in units if size % factor == 0)
