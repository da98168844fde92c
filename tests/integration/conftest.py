"""One podyd for all integration tests; see harness.py."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from podyd.engine.admin import REFQUOTA, THIN_DRIVERS
from podyd.pods.disks import ZFS
from tests.integration.asked import Asked
from tests.integration.browser import Browser
from tests.integration.harness import (
    IMAGE,
    SMALL,
    Client,
    Node,
    Pool,
    Server,
    controllers,
    locked,
)
from tests.lab import lab
from tests.lab.nvml import FakeDriver, FakeNvml

if os.geteuid() != 0:
    pytest.exit("The integration tests need root: type 'sudo make test'.", returncode=1)

# A script's background ignores Ctrl-C, and hands that down to all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

_numbers = itertools.count(1)

HERE = Path(__file__).parent
# Short files that take long.
SLOW = (
    "test_full_disks.py",
    "test_images.py",
    "test_page_files.py",
    "test_snapshots.py",
    "test_words.py",
)
TURNS, ROOM = Path("/run/podyd-test-turns"), Path("/run/podyd-test-room")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: no other integration test runs on this machine then")
    config.addinivalue_line("markers", "lacks(engine, why): what this engine cannot pass, and why")
    config.addinivalue_line("markers", "controllers(*names): of cgroups, without which it fails")
    config.pluginmanager.register(Asked())


def expect_what_an_engine_lacks(item: pytest.Item) -> None:
    """A test marked as lacking in the engine in use must fail: once it passes, the mark goes."""
    for marker in item.iter_markers("lacks"):
        engine, why = marker.args
        if engine == lab.ENGINE.key:
            item.add_marker(pytest.mark.xfail(reason=f"{lab.ENGINE.title}: {why}", strict=True))


def expect_what_cgroups_lack(item: pytest.Item) -> None:
    """A test of what the kernel limits or counts must fail where pods lack its controllers."""
    for marker in item.iter_markers("controllers"):
        if missing := set(marker.args) - controllers():
            why = f"no pod's cgroup has {', '.join(sorted(missing))} here"
            item.add_marker(pytest.mark.xfail(reason=why, strict=True))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Workers take files in this order, so that none of them waits while there is work.

    The first one makes the images (Node), for which all would wait: meanwhile the others have tests
    without LXD. The files of tests with LXD follow, the long ones first, and in the end the rest of
    those without, which are so short that no worker has much left when another one has nothing.
    """
    for item in items:
        expect_what_an_engine_lacks(item)
        expect_what_cgroups_lack(item)
    if not hasattr(config, "workerinput"):
        return
    paths = {item.path for item in items}
    real = sorted(
        (path for path in paths if path.parent == HERE),
        key=lambda path: (path.name not in SLOW, -path.stat().st_size),
    )
    others = sorted(paths.difference(real))
    order = [*real[:1], *others[::2], *real[1:], *others[1::2]]
    place = {path: number for number, path in enumerate(order)}
    items.sort(key=lambda item: place[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Workers run tests side by side, but for those that change what all of them share."""
    is_alone = item.get_closest_marker("alone") is not None
    with contextlib.ExitStack() as room:
        # Whoever waits to be alone holds the turn, so that nobody else goes in before.
        with locked(TURNS, fcntl.LOCK_EX):
            room.enter_context(locked(ROOM, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH))
        return (yield)


@pytest.fixture(scope="session")
def node() -> Iterator[Node]:
    node = Node()
    try:
        node.start_helper()
        node.start_relay()
        node.start_packing()
        node.start_cards()
        yield node
    finally:
        node.close()


@pytest.fixture(scope="session")
def server(node: Node) -> Server:
    """The podyd that tests share; none of them stops it."""
    return node.serve()


@pytest.fixture(scope="session")
def lab_cards() -> None:
    """LXD's simulated cards, which only an LXD of the lab's own can have."""
    state = lab.read_state()
    if state is None or not state.gpus:
        pytest.skip("an LXD that is not the lab's own has no simulated cards")


@pytest.fixture(scope="session")
def driver(node: Node) -> FakeDriver:
    """An NVIDIA driver with the lab's cards; tests that change what it says take `nvml`."""
    return FakeDriver(node.directory / "nvidia")


@pytest.fixture
def nvml(driver: FakeDriver) -> Iterator[FakeDriver]:
    """The driver of `gpu_server`, as it was again after the test."""
    yield driver
    driver.write(FakeNvml())


@pytest.fixture(scope="session")
def gpu_server(node: Node, driver: FakeDriver) -> Server:
    """A podyd that has NVML; none of the tests stops it."""
    return node.serve(environment=driver.environment)


@pytest.fixture(scope="session", params=THIN_DRIVERS)
def thin(node: Node, request: pytest.FixtureRequest) -> Iterator[Pool]:
    """A small pool for pods whose disks are limited, of each kind that this machine can have."""
    driver: str = request.param
    if driver not in node.pool_drivers:
        assert node.pool_drivers.intersection(THIN_DRIVERS), "no limit of a disk would be tested"
        pytest.skip(f"this machine can make no pool of {driver}")
    # As `podyd setup` makes one.
    options = [f"{REFQUOTA}=true"] if driver == ZFS else []
    with Pool(node, driver, "size=3GiB", *options) as pool:
        yield pool


@pytest.fixture(scope="session")
def alice(node: Node, server: Server) -> Client:
    """A member."""
    return server.client(node.accounts.user())


@pytest.fixture(scope="session")
def bob(node: Node, server: Server) -> Client:
    """Another member."""
    return server.client(node.accounts.user())


@pytest.fixture(scope="session")
def admin(node: Node, server: Server) -> Client:
    """A member who is an admin."""
    return server.client(node.accounts.user("", "-G", "sudo"))


@pytest.fixture
def new_user(node: Node, server: Server) -> Callable[[], Client]:
    """Makes a member of a test's own, with no pods."""
    return lambda: server.client(node.accounts.user())


@pytest.fixture
def member(new_user: Callable[[], Client]) -> Iterator[Client]:
    """A member; their pods go in the end."""
    client = new_user()
    yield client
    for ins in client.get("/pod/list").ok:
        client.post("/pod/delete", ins=ins).ok


@pytest.fixture
def own(member: Client) -> Client:
    """A member with a pod, which runs and is small."""
    member.post("/pod/create", ins="main", image=SMALL).ok
    return member


@pytest.fixture
def debian(member: Client) -> Client:
    """A member with a pod of Debian, which runs."""
    member.post("/pod/create", ins="main", image=IMAGE).ok
    return member


@pytest.fixture(scope="session")
def pod(alice: Client) -> str:
    """A running pod of alice's that tests share; none of them stops it."""
    name: str = alice.post("/pod/create", ins="shared", image=IMAGE).ok["ins"]
    return name


@pytest.fixture
def ins() -> str:
    """A name for a pod that no other test uses."""
    return f"p{next(_numbers)}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser, for as long as tests of this file run: see what it says of asyncio.run()."""
    browser = Browser()
    yield browser
    browser.close()
