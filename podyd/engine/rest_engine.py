"""The engine that LXD or Incus is."""

from __future__ import annotations

from podyd.engine.files import RestFiles
from podyd.engine.images import RestImageStore
from podyd.engine.instances import RestInstances
from podyd.engine.interface import Engine
from podyd.engine.operations import RestOperations
from podyd.engine.pools import RestPools
from podyd.engine.profiles import RestProfiles
from podyd.engine.rest import RestClient
from podyd.engine.restore_guard import RestoreGuard
from podyd.engine.server import RestServer
from podyd.engine.snapshots import RestSnapshotStore


def rest_engine(client: RestClient, guard: RestoreGuard) -> Engine:
    """What podyd asks of an engine, asked of LXD or Incus; from then on names bind this client."""
    instances = RestInstances(client, guard)
    client.is_there = instances.has
    return Engine(
        instances=instances,
        profiles=RestProfiles(client),
        snapshots=RestSnapshotStore(client),
        images=RestImageStore(client),
        files=RestFiles(client),
        pools=RestPools(client),
        operations=RestOperations(client),
        server=RestServer(client),
    )
