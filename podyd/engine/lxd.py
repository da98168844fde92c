"""The engine that LXD is."""

from __future__ import annotations

from podyd.engine.files import LxdFiles
from podyd.engine.images import LxdImageStore
from podyd.engine.instances import LxdInstances
from podyd.engine.interface import Engine
from podyd.engine.operations import LxdOperations
from podyd.engine.pools import LxdPools
from podyd.engine.profiles import LxdProfiles
from podyd.engine.rest import LxdClient
from podyd.engine.restore_guard import RestoreGuard
from podyd.engine.server import LxdServer
from podyd.engine.snapshots import LxdSnapshotStore


def lxd_engine(client: LxdClient, guard: RestoreGuard) -> Engine:
    """What podyd asks of an engine, asked of LXD; from then on names bind this client."""
    instances = LxdInstances(client, guard)
    client.is_there = instances.has
    return Engine(
        instances=instances,
        profiles=LxdProfiles(client),
        snapshots=LxdSnapshotStore(client),
        images=LxdImageStore(client),
        files=LxdFiles(client),
        pools=LxdPools(client),
        operations=LxdOperations(client),
        server=LxdServer(client),
    )
