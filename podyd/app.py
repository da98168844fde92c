"""The one place that builds objects: configuration, backends, services, Tornado's application."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tornado.web import Application

from podyd.accounting import findings
from podyd.accounting.actions import Actions
from podyd.accounting.history import History
from podyd.accounting.leased import LeaseTime
from podyd.accounting.metrics import Metrics
from podyd.accounting.quota_use import QuotaUses
from podyd.accounting.usage import Usage
from podyd.api.address import client_address, is_encrypted
from podyd.api.application import application
from podyd.api.binding import bound
from podyd.api.routes.admin import AdminRoutes
from podyd.api.routes.events import EventRoutes
from podyd.api.routes.gpus import GpuRoutes
from podyd.api.routes.history import HistoryRoutes
from podyd.api.routes.host import HostRoutes
from podyd.api.routes.images import ImageRoutes
from podyd.api.routes.meta import MetaRoutes
from podyd.api.routes.pods import PodRoutes
from podyd.api.routes.stats import StatRoutes
from podyd.api.routes.users import UserRoutes
from podyd.api.routes.web import WebRoutes
from podyd.api.under_way import Requests
from podyd.auth.client import AuthClient
from podyd.base.engine_words import ENGINE
from podyd.base.errors import NotSetUp
from podyd.base.tasks import Tasks
from podyd.board.live import Live
from podyd.board.sources import Sources
from podyd.board.works import Works
from podyd.config.current import Settings
from podyd.config.schema import Config
from podyd.contract.events import AdminNow
from podyd.engine.dialect import chosen
from podyd.engine.endings import Endings
from podyd.engine.execution import RestExecutor
from podyd.engine.growth import Packing
from podyd.engine.interface import Engine
from podyd.engine.rest import Credentials, RestClient
from podyd.engine.rest_engine import rest_engine
from podyd.engine.restore_guard import RESTORING, RestoreGuard
from podyd.engine.room import HostRoom
from podyd.gpus.access import Access
from podyd.gpus.activity import Activity
from podyd.gpus.attribution import Attribution
from podyd.gpus.ending import Ender
from podyd.gpus.idle import IdleLeases
from podyd.gpus.inventory import Identities, Inventory
from podyd.gpus.presence import Presences
from podyd.gpus.report import Report
from podyd.gpus.scheduler import Scheduler
from podyd.gpus.terminals import Terminals
from podyd.gpus.watch import Watch
from podyd.network.locations import Locations
from podyd.network.ports import Ports
from podyd.node.cgroups import Cgroups
from podyd.node.local import LocalNode
from podyd.people.login import Logins
from podyd.people.notices import Notices
from podyd.people.origins import Origins
from podyd.people.sessions import Sessions
from podyd.people.tokens import Tokens
from podyd.people.web_sessions import WebSessions
from podyd.pods.catalogue import Catalogue
from podyd.pods.commands import Commands
from podyd.pods.commits import Commits
from podyd.pods.deletions import Deletions
from podyd.pods.disks import Disks
from podyd.pods.files import Transfers
from podyd.pods.half_made import HalfMade
from podyd.pods.info import Info
from podyd.pods.kernel_limits import KernelLimits
from podyd.pods.lifecycle import Lifecycle
from podyd.pods.limits import Limits
from podyd.pods.listening import Listening
from podyd.pods.loads import Loads
from podyd.pods.logs import Logs
from podyd.pods.mounts import Mounts
from podyd.pods.owned import Owned
from podyd.pods.planner import Planner
from podyd.pods.power import STOP_TIMEOUT, Power
from podyd.pods.snapshots import Snapshots
from podyd.pods.stages import Stages
from podyd.pods.sweep import Sweep
from podyd.store.actions import ActionStore
from podyd.store.cards import CardStore
from podyd.store.database import Database
from podyd.store.history import HistoryStore
from podyd.store.notices import NoticeStore
from podyd.store.tokens import TokenStore
from podyd.store.usage import UsageStore
from podyd.store.web_sessions import WebSessionStore

# At the end, what cleaning commands, removes half-made pods and writes may take so long.
KILL_SECONDS = 3.0


@dataclass(frozen=True)
class Backends:
    """What podyd stands on: the engine, this host, its own database, and tasks of its own."""

    settings: Settings
    client: RestClient
    engine: Engine
    endings: Endings
    executor: RestExecutor
    node: LocalNode
    database: Database
    # What goes on for good, and what must still be done at the end.
    background: Tasks
    cleaning: Tasks


@dataclass(frozen=True)
class People:
    """Logins, and notices to members."""

    logins: Logins
    sessions: Sessions
    notices: Notices


@dataclass(frozen=True)
class Gpus:
    """Which cards there are, who may have them, and who is on them."""

    cgroups: Cgroups
    attribution: Attribution
    activity: Activity
    identities: Identities
    inventory: Inventory
    access: Access
    scheduler: Scheduler
    watch: Watch
    idle: IdleLeases


@dataclass(frozen=True)
class Accounting:
    """What was used, and how podyd is."""

    usage: Usage
    leased: LeaseTime
    history: History
    metrics: Metrics
    actions: Actions


@dataclass(frozen=True)
class Pods:
    """What may happen to a pod."""

    ports: Ports
    disks: Disks
    snapshots: Snapshots
    sweep: Sweep
    images: Catalogue
    routes: PodRoutes
    owned: Owned
    info: Info


@dataclass(frozen=True)
class App:
    """All that `podyd serve` runs."""

    application: Application
    requests: Requests
    backends: Backends
    people: People
    gpus: Gpus
    accounting: Accounting
    pods: Pods
    live: Live

    def start(self) -> None:
        """Start the background tasks; needs a running event loop."""
        keep, engine = self.backends.background.keep, self.backends.engine
        gpus, pods, usage = self.gpus, self.pods, self.accounting.usage
        keep(self.people.sessions.run, "ending what logins no longer allow")
        keep(self.people.notices.run, "writing notices")
        keep(gpus.cgroups.follow, "learning the pods' cgroups")
        keep(self.backends.node.samples.run, "asking NVML")
        keep(gpus.identities.run, "remembering cards")
        keep(self.accounting.actions.run, "writing the log of actions")
        keep(usage.follow_gpus, "counting GPU time")
        keep(usage.follow_cpu, "counting CPU time")
        keep(self.accounting.leased.run, "counting leases")
        keep(self.accounting.history.run, "writing history")
        keep(partial(engine.instances.watch, self._engine_is_there), f"following {ENGINE}")
        keep(gpus.access.run, "telling the kernel who may open which GPU")
        keep(gpus.scheduler.run, "sharing GPUs out")
        keep(gpus.watch.run, "watching GPUs")
        keep(self.backends.endings.run, "ending commands that are left over")
        keep(gpus.idle.run, "looking for idle GPUs")
        keep(pods.snapshots.run, "writing settings back after restores")
        keep(pods.sweep.run, "sweeping")
        keep(pods.ports.run, "forwarding ports to pods")
        keep(pods.ports.settle, "assigning ports")
        keep(pods.disks.run, "restoring the limits of full disks")
        keep(self.live.run, "showing who watches what is so now")
        for poke in (gpus.scheduler.poke, pods.snapshots.poke, pods.ports.poke):
            engine.instances.subscribe(poke)

    async def _engine_is_there(self) -> None:
        self.pods.sweep.begin()

    async def stop(self, timeout: float) -> None:
        """Finish open requests, `timeout` seconds at most, and close everything."""
        backends = self.backends
        await self.requests.finish(timeout)
        await backends.background.cancel()
        backends.cleaning.spawn(self.accounting.usage.flush(), "writing the last usage")
        backends.cleaning.spawn(self.accounting.leased.flush(), "writing the last leases")
        backends.cleaning.spawn(self.accounting.actions.flush(), "writing the last actions")
        backends.cleaning.spawn(self.people.notices.flush(), "writing the last notices")
        await backends.cleaning.finish(KILL_SECONDS)
        await backends.database.close()
        backends.node.close()
        backends.engine.instances.close()
        backends.client.close()


def build(settings: Settings) -> App:
    """Raises NotSetUp if `podyd setup` has not been run."""
    backends = _backends(settings)
    people = _people(backends)
    gpus = _gpus(backends, people.notices)
    disks = _disks(backends)
    accounting = _accounting(backends, gpus, disks)
    pods = _pods(backends, gpus, disks, accounting.metrics)
    requests = Requests()
    report = _report(backends, gpus)
    live = _live(backends, people, gpus, pods, accounting, report=report, works=requests.works)
    return App(
        application=_application(
            backends, people, gpus, accounting, pods, requests, report=report, live=live
        ),
        requests=requests,
        backends=backends,
        people=people,
        gpus=gpus,
        accounting=accounting,
        pods=pods,
        live=live,
    )


def _backends(settings: Settings) -> Backends:
    config = settings.current
    dialect = chosen(config.engine, Path(config.state_dir))
    dialect.speak()
    credentials = Credentials.below(config.state_dir, dialect)
    client = RestClient(_endpoint(config, credentials), config.lxd.project, credentials)
    cleaning = Tasks()
    endings = Endings(client, config.data_dir / "endings")
    return Backends(
        settings=settings,
        client=client,
        engine=rest_engine(client, RestoreGuard(config.data_dir / RESTORING)),
        endings=endings,
        executor=RestExecutor(client, cleaning, endings),
        node=LocalNode(
            ports_socket=lambda: settings.current.ports.socket,
            cards_socket=lambda: str(settings.current.cards_socket),
        ),
        database=Database(config.data_dir / "podyd.db"),
        background=Tasks(),
        cleaning=cleaning,
    )


def _people(backends: Backends) -> People:
    settings = backends.settings
    logins = Logins(
        AuthClient(settings.current.auth.socket),
        Origins(backends.node.sockets),
        Tokens(TokenStore(backends.database), settings),
        WebSessions(WebSessionStore(backends.database), settings),
        settings,
    )
    return People(logins, Sessions(logins), Notices(NoticeStore(backends.database)))


def _gpus(backends: Backends, notices: Notices) -> Gpus:
    engine, node, settings = backends.engine, backends.node, backends.settings
    project = engine.server.project
    cgroups = Cgroups(
        project,
        instances=engine.instances.all,
        first_process=engine.instances.first_process,
        cgroup_of=node.processes.cgroup_of,
    )
    engine.instances.subscribe(cgroups.changed)
    attribution = Attribution(node.samples, project=project, instance_of=cgroups.instance_of)
    activity = Activity(attribution, rest=lambda: settings.current.idle.rest)
    identities = Identities(CardStore(backends.database))
    inventory = Inventory(engine.server, node.samples, identities)
    access = Access(node.card_accesses, aliases=lambda: cgroups.names)
    scheduler = Scheduler(
        instances=engine.instances,
        profiles=engine.profiles,
        inventory=inventory,
        samples=node.samples,
        activity=activity,
        access=access,
        notify=notices.tell,
        settings=settings,
    )
    cgroups.subscribe(scheduler.poke)
    terminals = Terminals(backends.executor)
    watch = Watch(
        access=access,
        attribution=attribution,
        presences=Presences(
            access=access,
            attribution=attribution,
            activity=activity,
            samples=node.samples,
            processes=node.processes,
        ),
        ender=Ender(
            access=access,
            processes=node.processes,
            executor=backends.executor,
            stop=partial(
                engine.instances.set_status, action="stop", timeout=STOP_TIMEOUT, force=True
            ),
        ),
        terminals=terminals,
        notify=notices.tell,
        withdrawn=scheduler.withdrawn,
        tasks=backends.background,
        settings=settings,
    )
    idle = IdleLeases(
        scheduler=scheduler,
        activity=activity,
        terminals=terminals,
        notify=notices.tell,
        settings=settings,
    )
    return Gpus(
        cgroups=cgroups,
        attribution=attribution,
        activity=activity,
        identities=identities,
        inventory=inventory,
        access=access,
        scheduler=scheduler,
        watch=watch,
        idle=idle,
    )


def _disks(backends: Backends) -> Disks:
    engine = backends.engine
    return Disks(
        instances=engine.instances,
        profiles=engine.profiles,
        pools=engine.pools,
        executor=backends.executor,
    )


def _accounting(backends: Backends, gpus: Gpus, disks: Disks) -> Accounting:
    instances = backends.engine.instances
    usage = Usage(
        store=UsageStore(backends.database),
        instances=instances.all,
        cpu_times=instances.cpu_times,
        settings=backends.settings,
    )
    gpus.attribution.subscribe(usage.sampled)
    leased = LeaseTime(store=UsageStore(backends.database), instances=instances.all)
    instances.subscribe(leased.changed)
    history = History(
        store=HistoryStore(backends.database),
        loads=Loads(cgroups=gpus.cgroups, counters=backends.node.loads),
        instances=instances.all,
        cards=gpus.inventory.cards,
    )
    backends.node.samples.subscribe(history.sampled)
    metrics = Metrics(
        scheduler=gpus.scheduler,
        disks=disks,
        samples=backends.node.samples,
        activity=gpus.activity,
        watch=gpus.watch,
    )
    return Accounting(usage, leased, history, metrics, Actions(ActionStore(backends.database)))


def _pods(backends: Backends, gpus: Gpus, disks: Disks, metrics: Metrics) -> Pods:
    engine, node, settings = backends.engine, backends.node, backends.settings
    executor, cleaning, instances = backends.executor, backends.cleaning, engine.instances
    owned = Owned(instances)
    images = Catalogue(engine.images, settings)
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
    half_made = HalfMade(instances=instances, files=engine.files, tasks=cleaning)
    planner = Planner(
        instances=instances,
        scheduler=gpus.scheduler,
        ports=ports,
        mounts=mounts,
        disks=disks,
        half_made=half_made,
    )
    info = Info(
        owned=owned, instances=instances, inventory=gpus.inventory, ports=ports, disks=disks
    )
    kernel = KernelLimits(instances=instances, processes=node.processes)
    power = Power(owned=owned, instances=instances, disks=disks, mounts=mounts, kernel=kernel)
    stages = Stages(engine.images)
    lifecycle = Lifecycle(
        owned=owned,
        instances=instances,
        snapshots=engine.snapshots,
        files=engine.files,
        images=images,
        planner=planner,
        disks=disks,
        power=power,
        half_made=half_made,
        info=info,
        stages=stages,
    )
    snapshots = Snapshots(
        instances=instances,
        snapshots=engine.snapshots,
        owned=owned,
        power=power,
        stages=stages,
        tasks=cleaning,
    )
    commits = Commits(
        project=engine.server.project,
        instances=instances,
        store=engine.images,
        files=engine.files,
        images=images,
        owned=owned,
        half_made=half_made,
        disks=disks,
        host=HostRoom(),
        packing=Packing(str(settings.current.packing_socket)),
        tasks=cleaning,
    )
    commands = Commands(
        owned=owned,
        instances=instances,
        executor=executor,
        executed=metrics.executed,
        settings=settings,
    )
    routes = PodRoutes(
        owned=owned,
        info=info,
        lifecycle=lifecycle,
        power=power,
        snapshots=snapshots,
        commits=commits,
        stages=stages,
        limits=Limits(
            instances=instances,
            profiles=engine.profiles,
            owned=owned,
            disks=disks,
            info=info,
            kernel=kernel,
        ),
        commands=commands,
        ports=ports,
        listening=Listening(
            project=engine.server.project,
            instances=instances,
            ports=ports,
            cgroups=gpus.cgroups,
            sockets=node.sockets,
        ),
        transfers=Transfers(owned=owned, executor=executor),
        deletions=Deletions(files=engine.files, owned=owned, executor=executor),
        logs=Logs(instances=instances, owned=owned, commands=commands),
    )
    sweep = Sweep(operations=engine.operations, half_made=half_made, commits=commits)
    return Pods(ports, disks, snapshots, sweep, images, routes, owned, info)


def _report(backends: Backends, gpus: Gpus) -> Report:
    return Report(
        server=backends.engine.server,
        node=backends.node,
        activity=gpus.activity,
        attribution=gpus.attribution,
        scheduler=gpus.scheduler,
        watch=gpus.watch,
    )


def _live(
    backends: Backends,
    people: People,
    gpus: Gpus,
    pods: Pods,
    accounting: Accounting,
    *,
    report: Report,
    works: Works,
) -> Live:
    async def news() -> AdminNow:
        written = await findings.written(backends.settings.current.findings)
        return AdminNow(accounting.actions.count, written)

    live = Live(
        Sources(
            server=backends.engine.server,
            node=backends.node,
            scheduler=gpus.scheduler,
            report=report,
            info=pods.info,
            works=works,
            notices=people.notices,
            login_changes=people.logins.changes,
            news=news,
            loads=lambda: Loads(cgroups=gpus.cgroups, counters=backends.node.loads),
        )
    )
    backends.engine.instances.subscribe(live.changed)
    gpus.attribution.subscribe(lambda attributed: live.poke())
    works.subscribe(live.poke)
    return live


def _application(
    backends: Backends,
    people: People,
    gpus: Gpus,
    accounting: Accounting,
    pods: Pods,
    requests: Requests,
    *,
    report: Report,
    live: Live,
) -> Application:
    settings = backends.settings
    calls = bound(
        MetaRoutes(metrics=accounting.metrics),
        UserRoutes(logins=people.logins, notices=people.notices),
        pods.routes,
        GpuRoutes(owned=pods.owned, info=pods.info, scheduler=gpus.scheduler, watch=gpus.watch),
        ImageRoutes(images=pods.images),
        HostRoutes(host=backends.node.facts.name, report=report, scheduler=gpus.scheduler),
        EventRoutes(live=live),
        StatRoutes(usage=accounting.usage),
        AdminRoutes(
            uses=QuotaUses(
                logins=people.logins,
                instances=backends.engine.instances,
                images=pods.images,
                scheduler=gpus.scheduler,
            ),
            actions=accounting.actions,
            owned=pods.owned,
            scheduler=gpus.scheduler,
            watch=gpus.watch,
            notify=people.notices.tell,
            settings=backends.settings,
        ),
        HistoryRoutes(owned=pods.owned, history=accounting.history),
        WebRoutes(logins=people.logins),
    )
    return application(
        calls,
        logins=people.logins,
        requests=requests,
        sessions=people.sessions,
        notices=people.notices,
        address_of=lambda request: client_address(request, settings.current.proxies),
        is_encrypted=lambda request: is_encrypted(request, settings.current.proxies),
        has_page=lambda: settings.current.web is not None,
        metrics=accounting.metrics,
        actions=accounting.actions,
    )


def _endpoint(config: Config, credentials: Credentials) -> str:
    if config.lxd.endpoint != "auto":
        return config.lxd.endpoint
    path = credentials.endpoint
    try:
        return path.read_text().strip()
    except OSError as error:
        raise NotSetUp(
            f"{ENGINE}'s address is not in {path} ({error.strerror}).",
            advice="Run 'podyd setup' as root.",
        ) from error
