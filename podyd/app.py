"""The one place that builds objects: configuration, backends, services, Tornado's application."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tornado.httputil import HTTPServerRequest
from tornado.web import Application

from podyd.accounting.metrics import Metrics
from podyd.accounting.usage import Usage
from podyd.api.address import client_address
from podyd.api.application import application
from podyd.api.binding import bound
from podyd.api.routes.gpus import GpuRoutes
from podyd.api.routes.host import HostRoutes
from podyd.api.routes.images import ImageRoutes
from podyd.api.routes.meta import MetaRoutes
from podyd.api.routes.pods import PodRoutes
from podyd.api.routes.stats import StatRoutes
from podyd.api.routes.users import UserRoutes
from podyd.api.under_way import Requests
from podyd.auth.client import AuthClient
from podyd.base.errors import NotSetUp
from podyd.base.tasks import Tasks
from podyd.config.current import Settings
from podyd.config.schema import Config
from podyd.engine.endings import Endings
from podyd.engine.execution import LxdExecutor
from podyd.engine.growth import Packing
from podyd.engine.interface import Instances
from podyd.engine.lxd import lxd_engine
from podyd.engine.rest import Credentials, LxdClient
from podyd.engine.restore_guard import RestoreGuard
from podyd.engine.room import HostRoom
from podyd.gpus.activity import Activity
from podyd.gpus.attribution import Attribution
from podyd.gpus.idle import IdleLeases
from podyd.gpus.inventory import Identities, Inventory
from podyd.gpus.report import Report
from podyd.gpus.scheduler import Scheduler
from podyd.network.locations import Locations
from podyd.network.ports import Ports
from podyd.node.cgroups import Cgroups
from podyd.node.local import LocalNode
from podyd.people.login import Logins
from podyd.people.origins import Origins
from podyd.people.sessions import Sessions
from podyd.people.tokens import Tokens
from podyd.pods.catalogue import Catalogue
from podyd.pods.commands import Commands
from podyd.pods.commits import Commits
from podyd.pods.deletions import Deletions
from podyd.pods.disks import Disks
from podyd.pods.files import Transfers
from podyd.pods.lifecycle import Pods
from podyd.pods.limits import Limits
from podyd.pods.listening import Listening
from podyd.pods.logs import Logs
from podyd.pods.mounts import Mounts
from podyd.pods.snapshots import Snapshots
from podyd.pods.sweep import Sweep
from podyd.store.cards import CardStore
from podyd.store.database import Database
from podyd.store.tokens import TokenStore
from podyd.store.usage import UsageStore

# At the end, what cleaning commands, removes half-made pods and writes may take so long.
KILL_SECONDS = 3.0


@dataclass(frozen=True)
class App:
    """All that `podyd serve` runs."""

    application: Application
    client: LxdClient
    instances: Instances
    cgroups: Cgroups
    ports: Ports
    mounts: Mounts
    disks: Disks
    node: LocalNode
    identities: Identities
    usage: Usage
    database: Database
    scheduler: Scheduler
    snapshots: Snapshots
    endings: Endings
    sweep: Sweep
    idle: IdleLeases
    background: Tasks
    cleaning: Tasks
    requests: Requests
    sessions: Sessions

    def start(self) -> None:
        """Start the background tasks; needs a running event loop."""
        self.background.keep(self.sessions.run, "ending what logins no longer allow")
        self.background.keep(self.cgroups.follow, "learning the pods' cgroups")
        self.background.keep(self.node.samples.run, "asking NVML")
        self.background.keep(self.identities.run, "remembering cards")
        self.background.keep(self.usage.follow_gpus, "counting GPU time")
        self.background.keep(self.usage.follow_cpu, "counting CPU time")
        self.background.keep(partial(self.instances.watch, self._lxd_is_there), "following LXD")
        self.instances.subscribe(self.scheduler.poke)
        self.background.keep(self.scheduler.run, "sharing GPUs out")
        self.background.keep(self.endings.run, "ending commands that are left over")
        self.background.keep(self.idle.run, "looking for idle GPUs")
        self.instances.subscribe(self.snapshots.poke)
        self.background.keep(self.snapshots.run, "writing settings back after restores")
        self.background.keep(self.sweep.run, "sweeping")
        self.instances.subscribe(self.ports.poke)
        self.background.keep(self.ports.run, "forwarding ports to pods")
        self.background.keep(self.ports.settle, "assigning ports")
        self.background.keep(self.disks.run, "restoring the limits of full disks")

    async def _lxd_is_there(self) -> None:
        self.sweep.begin()

    async def stop(self, timeout: float) -> None:
        """Finish open requests, `timeout` seconds at most, and close everything."""
        await self.requests.finish(timeout)
        await self.background.cancel()
        self.cleaning.spawn(self.usage.flush(), "writing the last usage")
        await self.cleaning.finish(KILL_SECONDS)
        await self.database.close()
        self.node.close()
        self.instances.close()
        self.client.close()


def build(settings: Settings) -> App:
    """Raises NotSetUp if `podyd setup` has not been run."""
    config = settings.current
    client = LxdClient(_endpoint(config), config.lxd.project, _credentials(config))
    cleaning = Tasks()
    engine = lxd_engine(client, RestoreGuard(config.data_dir / "restoring"))
    instances = engine.instances
    node = LocalNode(ports_socket=lambda: settings.current.ports.socket)
    cgroups = Cgroups(
        config.lxd.project,
        instances=instances.all,
        first_process=instances.first_process,
        cgroup_of=node.processes.cgroup_of,
    )
    instances.subscribe(cgroups.changed)
    images = Catalogue(engine.images, settings)
    database = Database(config.data_dir / "podyd.db")
    usage = Usage(
        store=UsageStore(database),
        instances=instances.all,
        cpu_times=instances.cpu_times,
        settings=settings,
    )
    attribution = Attribution(
        node.samples, project=config.lxd.project, instance_of=cgroups.instance_of
    )
    attribution.subscribe(usage.sampled)
    requests = Requests()
    tokens = Tokens(TokenStore(database), settings)
    logins = Logins(AuthClient(config.auth.socket), Origins(node.sockets), tokens, settings)
    identities = Identities(CardStore(database))
    sessions = Sessions(logins)
    inventory = Inventory(engine.server, node.samples, identities)
    activity = Activity(attribution)
    endings = Endings(client, config.data_dir / "endings")
    executor = LxdExecutor(client, cleaning, endings)
    scheduler = Scheduler(
        instances=instances,
        profiles=engine.profiles,
        inventory=inventory,
        samples=node.samples,
        activity=activity,
        settings=settings,
    )
    idle = IdleLeases(scheduler=scheduler, activity=activity, executor=executor, settings=settings)
    disks = Disks(
        instances=instances, profiles=engine.profiles, pools=engine.pools, executor=executor
    )
    metrics = Metrics(scheduler=scheduler, disks=disks, samples=node.samples, activity=activity)
    ports = Ports(
        locations=Locations(instances, node.neighbours),
        instances=instances,
        sockets=node.sockets,
        relays=node.relays,
        settings=settings,
    )
    mounts = Mounts(
        server=engine.server, instances=instances, directories=node.directories, settings=settings
    )
    pods = Pods(
        instances=instances,
        profiles=engine.profiles,
        snapshots=engine.snapshots,
        files=engine.files,
        images=images,
        inventory=inventory,
        scheduler=scheduler,
        ports=ports,
        mounts=mounts,
        disks=disks,
        tasks=cleaning,
    )
    listening = Listening(
        project=engine.server.project,
        instances=instances,
        ports=ports,
        cgroups=cgroups,
        sockets=node.sockets,
    )
    snapshots = Snapshots(
        instances=instances, snapshots=engine.snapshots, pods=pods, tasks=cleaning
    )
    commits = Commits(
        project=engine.server.project,
        instances=instances,
        store=engine.images,
        files=engine.files,
        images=images,
        pods=pods,
        disks=disks,
        host=HostRoom(),
        packing=Packing(str(config.packing_socket)),
        tasks=cleaning,
    )
    limits = Limits(instances=instances, profiles=engine.profiles, pods=pods, disks=disks)
    commands = Commands(
        pods=pods,
        instances=instances,
        executor=executor,
        executed=metrics.executed,
        settings=settings,
    )
    transfers = Transfers(pods=pods, executor=executor)
    logs = Logs(instances=instances, pods=pods, commands=commands)
    report = Report(
        server=engine.server,
        node=node,
        activity=activity,
        attribution=attribution,
        scheduler=scheduler,
    )
    calls = bound(
        MetaRoutes(metrics=metrics),
        UserRoutes(logins=logins),
        PodRoutes(
            pods=pods,
            snapshots=snapshots,
            commits=commits,
            limits=limits,
            commands=commands,
            ports=ports,
            listening=listening,
            transfers=transfers,
            deletions=Deletions(files=engine.files, pods=pods, executor=executor),
            logs=logs,
        ),
        GpuRoutes(pods=pods, scheduler=scheduler),
        ImageRoutes(images=images),
        HostRoutes(report=report),
        StatRoutes(usage=usage),
    )

    def address_of(request: HTTPServerRequest) -> str:
        return client_address(request, settings.current.proxies)

    return App(
        application=application(
            calls,
            logins=logins,
            requests=requests,
            sessions=sessions,
            address_of=address_of,
            metrics=metrics,
        ),
        client=client,
        instances=instances,
        cgroups=cgroups,
        ports=ports,
        mounts=mounts,
        disks=disks,
        node=node,
        identities=identities,
        usage=usage,
        database=database,
        scheduler=scheduler,
        snapshots=snapshots,
        endings=endings,
        sweep=Sweep(operations=engine.operations, pods=pods, commits=commits),
        idle=idle,
        background=Tasks(),
        cleaning=cleaning,
        requests=requests,
        sessions=sessions,
    )


def _credentials(config: Config) -> Credentials:
    return Credentials(Path(config.state_dir) / "lxd")


def _endpoint(config: Config) -> str:
    if config.lxd.endpoint != "auto":
        return config.lxd.endpoint
    path = _credentials(config).endpoint
    try:
        return path.read_text().strip()
    except OSError as error:
        raise NotSetUp(
            f"LXD's address is not in {path} ({error.strerror}).",
            advice="Run 'podyd setup' as root.",
        ) from error
