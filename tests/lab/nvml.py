"""A driver of the tests' own: nvml.c as libnvidia-ml.so.1, and the file that it reads.

The real binding loads the library by its name, through LD_LIBRARY_PATH. What a test writes is what
the next call of NVML says, in whatever process.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import lab

SOURCE = Path(__file__).resolve().with_name("nvml.c")
COMPILE = ("gcc", "-Wall", "-Wextra", "-O1", "-shared", "-fPIC")
LIBRARY = "libnvidia-ml.so.1"
STATE = "nvml"
DRIVER = "535.183.01"
GIB = 1024**3


@dataclass(frozen=True)
class FakeProcess:
    """A process on a card; `kind` is compute, graphics or mps. Memory in bytes, None where the
    driver does not tell; `utilisation` in percent of the card since the time that is asked for,
    `in_buffer` in the driver's whole buffer (the same, if None), where its sample is of the time
    `sampled` in microseconds, or always of now."""

    pid: int
    memory: int | None = 2 * GIB
    utilisation: int = 0
    kind: str = "compute"
    in_buffer: int | None = None
    sampled: int = 0

    def line(self) -> str:
        in_buffer = self.utilisation if self.in_buffer is None else self.in_buffer
        figures = f"{_figure(self.memory)} {self.utilisation} {in_buffer} {self.sampled}"
        return f"process {self.pid} {self.kind} {figures}"


@dataclass(frozen=True)
class FakeGpu:
    """A card; None for a figure that it does not support. Memory in bytes, `utilisation` in
    percent, power in watts; `peak` is the highest of its last samples (None: `utilisation`). A
    `lost` one has fallen off the bus, and of a `blackwell` one the older call does not tell what
    its processes use."""

    uuid: str
    pci: str
    minor: int
    name: str = "NVIDIA A100 80GB PCIe"
    memory_total: int | None = 80 * GIB
    memory_used: int | None = 0
    utilisation: int | None = 0
    peak: int | None = None
    temperature: int | None = 35
    power: float | None = 61.5
    power_limit: float | None = 300.0
    persistence: bool | None = True
    process_utilisation: bool = True
    blackwell: bool = False
    lost: bool = False
    processes: tuple[FakeProcess, ...] = ()

    def lines(self) -> Iterator[str]:
        yield "gpu"
        yield f"uuid {self.uuid}"
        yield f"pci {self.pci}"
        yield f"minor {self.minor}"
        yield f"name {self.name}"
        yield f"memory {_figure(self.memory_total)} {_figure(self.memory_used)}"
        yield f"utilisation {_figure(self.utilisation)}"
        yield f"peak {_figure(self.peak)}"
        yield f"temperature {_figure(self.temperature)}"
        yield f"power {_figure(self.power, 1000)}"
        yield f"limit {_figure(self.power_limit, 1000)}"
        yield f"persistence {_figure(self.persistence)}"
        if not self.process_utilisation:
            yield "no-process-utilisation"
        if self.blackwell:
            yield "new-process-utilisation"
        if self.lost:
            yield "lost"
        for process in self.processes:
            yield process.line()


def gpus(cards: Sequence[lab.Card]) -> tuple[FakeGpu, ...]:
    """The lab's cards as NVML has them."""
    return tuple(FakeGpu(card.uuid, card.pci, card.minor, card.model) for card in cards)


GPUS = gpus(lab.CARDS)
DEFAULT_GPUS = GPUS[: len(lab.DEFAULT_CARDS)]


@dataclass(frozen=True)
class FakeNvml:
    """What NVML says. `driver` is the version of the kernel's module; where the library is another
    one's, every call fails. `init_fails` is the nvmlReturn_t of nvmlInit."""

    gpus: tuple[FakeGpu, ...] = DEFAULT_GPUS
    driver: str = DRIVER
    cuda: str = "12.2"
    init_fails: int = 0
    hangs: bool = False

    def holding(self, index: int, *processes: FakeProcess) -> FakeNvml:
        """The same with these processes, and no other, on a card."""
        return self.with_gpu(index, processes=processes)

    def with_gpu(self, index: int, **changes: object) -> FakeNvml:
        """The same with another card `index`; `changes` are fields of FakeGpu."""
        gpus = list(self.gpus)
        gpus[index] = dataclasses.replace(gpus[index], **changes)  # type: ignore[arg-type]
        return dataclasses.replace(self, gpus=tuple(gpus))

    def text(self) -> str:
        major, minor = self.cuda.split(".")
        lines = [f"driver {self.driver}", f"cuda {int(major) * 1000 + int(minor) * 10}"]
        if self.init_fails:
            lines.append(f"init {self.init_fails}")
        if self.hangs:
            lines.append("hangs")
        for gpu in self.gpus:
            lines += gpu.lines()
        return "\n".join(lines) + "\n"


class FakeDriver:
    """A library in a directory that everybody can read, and the file that it reads."""

    def __init__(self, directory: Path) -> None:
        """`directory` is made; whoever made its parent removes it."""
        self.directory = directory
        self.file = directory / STATE
        directory.mkdir()
        directory.chmod(0o755)
        build(directory)
        self.write(FakeNvml())

    @property
    def environment(self) -> Mapping[str, str]:
        """What `podyd serve` needs to find it."""
        return environment(self.directory)

    def write(self, state: FakeNvml) -> None:
        """From now on NVML says this; no call sees half of it."""
        new = self.file.with_name("nvml.new")
        new.write_text(state.text())
        new.chmod(0o644)
        new.replace(self.file)


def environment(directory: Path) -> Mapping[str, str]:
    """In which a FakeDriver of this directory is found."""
    return {"LD_LIBRARY_PATH": str(directory), "PODYD_LAB_NVML": str(directory / STATE)}


def build(directory: Path, driver: str = DRIVER) -> Path:
    """Put the library into a directory, as a driver of this version brings it. As with a package's
    update, who has the old one loaded keeps it."""
    library = directory / LIBRARY
    new = directory / f"{LIBRARY}.{os.getpid()}"
    new.write_bytes(_compiled(driver))
    new.chmod(0o755)
    return new.replace(library)


@functools.cache
def _compiled(driver: str) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory, LIBRARY)
        define = f'-DDRIVER_VERSION="{driver}"'
        subprocess.run([*COMPILE, define, "-o", str(library), str(SOURCE)], check=True, timeout=60)
        return library.read_bytes()


def _figure(value: float | None, factor: int = 1) -> str:
    return "-" if value is None else str(round(value * factor))
