"""Binds each operation of the API table to the one call that it makes."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, TypeVar

from podyd import VERSION as PODYD_VERSION
from podyd.accounting.metrics import Metrics
from podyd.accounting.usage import Usage
from podyd.api.handler import Bound, Call, Headed
from podyd.base.clock import iso
from podyd.base.errors import NotFound
from podyd.base.longtext import Kept
from podyd.contract import openapi
from podyd.contract.gpus import (
    GPU_LEASE,
    GPU_LINE,
    GPU_QUEUE,
    GPU_RELEASE,
    POD_GPUS,
    ChangeGpus,
    LeaseCards,
    LeaseResult,
    ReleaseCards,
    Waiting,
)
from podyd.contract.host import HOST_GPU_PS, HOST_GPUS, HOST_SPEC, GpuInfo, GpuProcess, HostSpec
from podyd.contract.images import HOST_IMAGES, IMAGE_DELETE, IMAGE_INSPECT, IMAGE_LIST, ImageInfo
from podyd.contract.meta import HELP, METRICS, OPENAPI, VERSION, HelpEntry, HelpParam
from podyd.contract.operation import Log, Operation
from podyd.contract.pods import (
    POD_COMMIT,
    POD_COMMIT_CANCEL,
    POD_COPY,
    POD_CREATE,
    POD_DELETE,
    POD_EXEC,
    POD_EXEC_STREAM,
    POD_FILE,
    POD_FILE_DELETE,
    POD_FILE_PUT,
    POD_INFO,
    POD_INSPECT,
    POD_LIMITS,
    POD_LIST,
    POD_LISTALL,
    POD_LOGS,
    POD_PORT,
    POD_PORT_DELETE,
    POD_PORTS,
    POD_PROGRESS,
    POD_RESTART,
    POD_RESTORE,
    POD_SHELL,
    POD_SNAPSHOT,
    POD_SNAPSHOT_DELETE,
    POD_SNAPSHOTS,
    POD_START,
    POD_STOP,
    ChangeLimits,
    Commit,
    Committed,
    Copy,
    Create,
    Exec,
    ExecResult,
    FileInfo,
    ListeningPort,
    OnePort,
    PodInfo,
    PodLog,
    PodSummary,
    Progress,
    Shell,
    SnapshotInfo,
)
from podyd.contract.stats import STAT_CPUTIME, STAT_GPUTIME
from podyd.contract.table import OPERATIONS
from podyd.contract.users import (
    USER_CH_PASSWD,
    USER_INFO,
    USER_LIST,
    USER_TOKEN,
    USER_TOKEN_REVOKE,
    USER_TOKENS,
    CreatedToken,
    NewToken,
    QuotaInfo,
    RevokeToken,
    TokenInfo,
    UserInfo,
    UserName,
)
from podyd.engine.streams import Size
from podyd.gpus.report import Host
from podyd.gpus.scheduler import Allotment
from podyd.model.member import Member
from podyd.model.token import Token
from podyd.network.ports import Ports
from podyd.people.login import Users
from podyd.pods.catalogue import Images
from podyd.pods.commits import Commits
from podyd.pods.deletions import Deletions
from podyd.pods.files import Incoming, Outgoing, Transfers
from podyd.pods.lifecycle import Pods
from podyd.pods.limits import Limits
from podyd.pods.listening import Listeners
from podyd.pods.logs import PodLogs
from podyd.pods.shells import Place, Shells
from podyd.pods.snapshots import Snapshots

M = TypeVar("M", bound=Callable[..., Any])


def serves(*operations: Operation) -> Callable[[M], M]:
    """Mark a method as what these operations call."""

    def mark(method: M) -> M:
        method.serves = operations  # type: ignore[attr-defined]
        return method

    return mark


class Routes:
    """All operations; one that is bound to nothing, or twice, stops podyd from starting."""

    def __init__(
        self,
        *,
        users: Users,
        pods: Pods,
        snapshots: Snapshots,
        commits: Commits,
        limits: Limits,
        shells: Shells,
        ports: Ports,
        listeners: Listeners,
        transfers: Transfers,
        deletions: Deletions,
        podlogs: PodLogs,
        allotment: Allotment,
        images: Images,
        host: Host,
        metrics: Metrics,
        usage: Usage,
    ) -> None:
        self._metrics = metrics
        self._users = users
        self._pods = pods
        self._snapshots = snapshots
        self._commits = commits
        self._limits = limits
        self._shells = shells
        self._ports = ports
        self._listeners = listeners
        self._transfers = transfers
        self._deletions = deletions
        self._podlogs = podlogs
        self._allotment = allotment
        self._images = images
        self._host = host
        self._usage = usage
        self._openapi = openapi.document()

    def bound(self) -> dict[Operation, Bound]:
        """What each operation calls."""
        found: dict[Operation, Bound] = {}
        for name in dir(self):
            method = getattr(self, name)
            for operation in getattr(method, "serves", ()):
                if operation in found:
                    raise TypeError(f"{operation.path} is bound twice")
                found[operation] = method
        missing = [operation.path for operation in OPERATIONS if operation not in found]
        if missing:
            raise TypeError(f"bound to nothing: {', '.join(missing)}")
        return found

    # --- About the API itself --------------------------------------------------------------------

    @serves(HELP)
    async def help(self, call: Call) -> list[HelpEntry]:
        path = "/" + (call.request.path or "/").lstrip("/")
        if path.endswith("/"):
            found = [item for item in OPERATIONS if item.path.startswith(path)]
        else:
            found = [item for item in OPERATIONS if item.path == path]
        if not found:
            raise NotFound(
                f"There is no route {path[:100]!r}{suggestion(path)}", code="no_such_route"
            )
        return [_help_entry(item) for item in found]

    @serves(VERSION)
    async def version(self, call: Call) -> list[int]:
        return list(PODYD_VERSION)

    @serves(OPENAPI)
    async def openapi_document(self, call: Call) -> dict[str, Any]:
        return self._openapi

    # --- Users -----------------------------------------------------------------------------------

    @serves(USER_INFO)
    async def user_info(self, call: Call) -> UserInfo:
        quota = call.caller.quota
        return UserInfo(
            user=_user_name(call.caller),
            quota=QuotaInfo(
                max_pods=quota.max_pods,
                gpu_count=quota.gpu_count,
                memory_limit=quota.memory_limit,
                cpu_limit=quota.cpu_limit,
                disk_limit=quota.disk_limit,
                disk_total=quota.disk_total,
                max_snapshots=quota.max_snapshots,
                max_ports=quota.max_ports,
                max_images=quota.max_images,
                image_size=quota.image_size,
            ),
        )

    @serves(USER_LIST)
    async def user_list(self, call: Call) -> list[UserName]:
        return [_user_name(member) for member in await self._users.all()]

    @serves(USER_CH_PASSWD)
    async def change_password(self, call: Call) -> Log:
        count = await self._users.change_password(call.caller, call.password, call.request.passwd)
        done = "The password is changed; the old one no longer works."
        return Log(f"{done} Tokens that are revoked: {count}." if count else done)

    @serves(USER_TOKEN)
    async def create_token(self, call: Call) -> CreatedToken:
        request: NewToken = call.request
        secret, token = await self._users.create_token(
            call.proven, request.name, request.days, request.scope
        )
        return CreatedToken(
            token=secret,
            id=token.id,
            name=token.name,
            scope=token.scope,
            created=_time(token.created),
            expires=_time(token.expires),
        )

    @serves(USER_TOKENS)
    async def tokens(self, call: Call) -> list[TokenInfo]:
        return [_token_info(token) for token in await self._users.tokens(call.proven)]

    @serves(USER_TOKEN_REVOKE)
    async def revoke_token(self, call: Call) -> Log:
        request: RevokeToken = call.request
        return Log(await self._users.revoke_token(call.proven, request.id, request.user))

    # --- Pods ------------------------------------------------------------------------------------

    @serves(POD_CREATE)
    async def pod_create(self, call: Call) -> PodInfo:
        request: Create = call.request
        return await self._pods.create(
            call.caller, request.ins, request.image, request.gpus, request.disk
        )

    @serves(POD_DELETE)
    async def pod_delete(self, call: Call) -> Log:
        return Log(await self._pods.delete(call.caller, call.request.ins))

    @serves(POD_INFO, POD_INSPECT)
    async def pod_info(self, call: Call) -> PodInfo:
        return await self._pods.info(call.caller, call.request.ins)

    @serves(POD_LIST)
    async def pod_list(self, call: Call) -> list[str]:
        return await self._pods.names(call.caller)

    @serves(POD_LISTALL)
    async def pod_listall(self, call: Call) -> list[PodSummary]:
        return await self._pods.summaries()

    @serves(POD_START)
    async def pod_start(self, call: Call) -> Log:
        return Log(await self._pods.start(call.caller, call.request.ins))

    @serves(POD_STOP)
    async def pod_stop(self, call: Call) -> Log:
        return Log(await self._pods.stop(call.caller, call.request.ins))

    @serves(POD_RESTART)
    async def pod_restart(self, call: Call) -> Log:
        return Log(await self._pods.restart(call.caller, call.request.ins))

    @serves(POD_COPY)
    async def pod_copy(self, call: Call) -> PodInfo:
        request: Copy = call.request
        return await self._pods.copy(
            call.caller, request.ins, request.to, request.snapshot, request.gpus, request.disk
        )

    @serves(POD_COMMIT)
    async def pod_commit(self, call: Call) -> Committed:
        request: Commit = call.request
        return await self._commits.commit(
            call.caller, request.ins, request.tag or request.ins, request.msg
        )

    @serves(POD_COMMIT_CANCEL)
    async def pod_commit_cancel(self, call: Call) -> Log:
        return Log(await self._commits.cancel(call.caller, call.request.ins))

    @serves(POD_PROGRESS)
    async def pod_progress(self, call: Call) -> Progress:
        return await self._commits.progress(call.caller, call.request.ins)

    @serves(POD_SNAPSHOT)
    async def pod_snapshot(self, call: Call) -> SnapshotInfo:
        return await self._snapshots.take(call.caller, call.request.ins, call.request.name)

    @serves(POD_SNAPSHOTS)
    async def pod_snapshots(self, call: Call) -> list[SnapshotInfo]:
        return await self._snapshots.all(call.caller, call.request.ins)

    @serves(POD_RESTORE)
    async def pod_restore(self, call: Call) -> Log:
        return Log(await self._snapshots.restore(call.caller, call.request.ins, call.request.name))

    @serves(POD_SNAPSHOT_DELETE)
    async def pod_snapshot_delete(self, call: Call) -> Log:
        return Log(await self._snapshots.delete(call.caller, call.request.ins, call.request.name))

    @serves(POD_PORT)
    async def pod_port(self, call: Call) -> PodInfo:
        request: OnePort = call.request
        pod = await self._pods.find(call.caller, request.ins)
        await self._ports.add(call.caller, pod, request.port)
        return await self._pods.info(call.caller, request.ins)

    @serves(POD_PORT_DELETE)
    async def pod_port_delete(self, call: Call) -> Log:
        request: OnePort = call.request
        pod = await self._pods.find(call.caller, request.ins)
        return Log(await self._ports.delete(pod, request.port))

    @serves(POD_PORTS)
    async def pod_ports(self, call: Call) -> list[ListeningPort]:
        pod = await self._pods.find(call.caller, call.request.ins)
        return await self._listeners.of(pod)

    @serves(POD_EXEC)
    async def pod_exec(self, call: Call) -> Kept[ExecResult]:
        request: Exec = call.request
        return await self._pods.exec(call.caller, request.ins, request.cmd, request.timeout)

    @serves(POD_EXEC_STREAM)
    async def pod_exec_stream(self, call: Call) -> Place:
        return await self._shells.place(call.caller, call.request.ins, None)

    @serves(POD_SHELL)
    async def pod_shell(self, call: Call) -> Place:
        request: Shell = call.request
        size = Size(request.rows, request.cols)
        return await self._shells.place(call.caller, request.ins, size)

    @serves(POD_FILE)
    async def pod_file(self, call: Call) -> Kept[FileInfo] | Outgoing:
        return await self._transfers.fetch(call.caller, call.request)

    @serves(POD_FILE_PUT)
    async def pod_file_put(self, call: Call) -> Incoming:
        return await self._transfers.put(call.caller, call.request)

    @serves(POD_FILE_DELETE)
    async def pod_file_delete(self, call: Call) -> Log:
        return await self._deletions.delete(call.caller, call.request)

    @serves(POD_LOGS)
    async def pod_logs(self, call: Call) -> Kept[PodLog]:
        return await self._podlogs.last(call.caller, call.request)

    @serves(POD_LIMITS)
    async def pod_limits(self, call: Call) -> PodInfo:
        request: ChangeLimits = call.request
        return await self._limits.change(
            call.caller, request.ins, request.memory, request.cpu, request.disk
        )

    # --- GPUs ------------------------------------------------------------------------------------

    @serves(POD_GPUS)
    async def pod_gpus(self, call: Call) -> PodInfo:
        request: ChangeGpus = call.request
        pod = await self._pods.find(call.caller, request.ins)
        await self._allotment.change(call.caller, pod, request.gpus, force=request.force)
        return await self._pods.info(call.caller, request.ins)

    @serves(GPU_LEASE)
    async def gpu_lease(self, call: Call) -> LeaseResult:
        return await self._lease(call, wait=False)

    @serves(GPU_QUEUE)
    async def gpu_queue(self, call: Call) -> LeaseResult:
        return await self._lease(call, wait=True)

    async def _lease(self, call: Call, *, wait: bool) -> LeaseResult:
        request: LeaseCards = call.request
        pod = await self._pods.find(call.caller, request.ins)
        place = await self._allotment.lease(
            call.caller, pod, request.gpus, request.hours, wait=wait
        )
        said = (
            f"Pod {request.ins} is number {place} in line; it gets the GPUs by itself."
            if place
            else f"Pod {request.ins} has its GPUs for itself for {request.hours:g} hours."
        )
        return LeaseResult(said, place, await self._allotment.leases(pod))

    @serves(GPU_LINE)
    async def gpu_line(self, call: Call) -> list[Waiting]:
        return await self._allotment.line()

    @serves(GPU_RELEASE)
    async def gpu_release(self, call: Call) -> LeaseResult:
        request: ReleaseCards = call.request
        pod = await self._pods.find(call.caller, request.ins)
        cards, left = await self._allotment.release(pod, request.gpus, force=request.force)
        numbers = ", ".join(str(card.index) for card in cards)
        done = [f"GPU {numbers} is given back."] if cards else []
        done += [f"Pod {request.ins} has left the line."] if left else []
        said = " ".join(done) or "There was no lease to give back, and no place in line."
        return LeaseResult(said, 0, await self._allotment.leases(pod))

    @serves(METRICS)
    async def metrics_text(self, call: Call) -> str:
        return await self._metrics.text()

    # --- Host and images -------------------------------------------------------------------------

    @serves(HOST_IMAGES, IMAGE_LIST)
    async def images(self, call: Call) -> Headed[list[str]]:
        names = await self._images.names(call.caller)
        # The body is a list of names, and stays one.
        return Headed(names, {} if names else {"X-Podyd-Hint": await self._images.hint()})

    @serves(IMAGE_INSPECT)
    async def image_inspect(self, call: Call) -> ImageInfo:
        alias, image = await self._images.offered(call.caller, call.request.image)
        return ImageInfo(
            name=alias,
            aliases=list(image.aliases),
            description=image.description,
            size=image.size,
            created=iso(image.created),
            architecture=image.architecture,
            fingerprint=image.fingerprint,
        )

    @serves(IMAGE_DELETE)
    async def image_delete(self, call: Call) -> Log:
        return Log(await self._images.delete(call.caller, call.request.image))

    @serves(HOST_GPU_PS)
    async def gpu_ps(self, call: Call) -> Headed[dict[str, list[GpuProcess]]]:
        rows, age = await self._host.gpu_processes(
            call.request.id, viewer=call.caller.name, sees_all=call.caller.is_admin
        )
        return Headed(rows, {"Age": f"{age:.0f}"})

    @serves(HOST_GPUS)
    async def host_gpus(self, call: Call) -> list[GpuInfo]:
        return await self._host.gpus()

    @serves(HOST_SPEC)
    async def host_spec(self, call: Call) -> HostSpec:
        return await self._host.spec()

    # --- Usage -----------------------------------------------------------------------------------

    @serves(STAT_CPUTIME)
    async def cpu_time(self, call: Call) -> dict[str, float]:
        return await self._usage.seconds("cpu", call.request.user, call.request.t)

    @serves(STAT_GPUTIME)
    async def gpu_time(self, call: Call) -> dict[str, float]:
        return await self._usage.seconds("gpu", call.request.user, call.request.t)


def suggestion(path: str) -> str:
    """The end of a sentence that says there is no such route."""
    near = difflib.get_close_matches(path, [item.path for item in OPERATIONS], n=1)
    return f"; did you mean {near[0]}?" if near else "; see /help."


def _help_entry(operation: Operation) -> HelpEntry:
    return HelpEntry(
        path=operation.path,
        methods=[operation.advised],
        params=[HelpParam(item.name, item.optional, item.help) for item in operation.params],
        help=operation.summary,
        websocket=operation.websocket,
    )


def _token_info(token: Token) -> TokenInfo:
    return TokenInfo(
        id=token.id,
        name=token.name,
        scope=token.scope,
        created=_time(token.created),
        expires=_time(token.expires),
        last_used=None if token.last_used is None else _time(token.last_used),
    )


def _time(seconds: float) -> str:
    return iso(datetime.fromtimestamp(seconds, timezone.utc))


def _user_name(member: Member) -> UserName:
    return UserName(member.name, int(member.is_admin))
