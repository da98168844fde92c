"""About pods, and what runs in them."""

from __future__ import annotations

from podyd.api.binding import Call, serves
from podyd.base.longtext import HeldAnswer
from podyd.contract.operation import Log, Nothing
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
    DeleteFile,
    Exec,
    ExecResult,
    FileInfo,
    ListeningPort,
    LogsOf,
    NewSnapshot,
    OneFile,
    OnePod,
    OnePort,
    OneSnapshot,
    PodInfo,
    PodLog,
    PodSummary,
    Progress,
    PutFile,
    Shell,
    SnapshotInfo,
)
from podyd.engine.streams import TerminalSize
from podyd.network.ports import Ports
from podyd.pods.commands import Commands, CommandSession
from podyd.pods.commits import Commits
from podyd.pods.deletions import Deletions
from podyd.pods.files import Incoming, Outgoing, Transfers
from podyd.pods.info import Info
from podyd.pods.lifecycle import Lifecycle
from podyd.pods.limits import Limits
from podyd.pods.listening import Listening
from podyd.pods.logs import Logs
from podyd.pods.owned import Owned
from podyd.pods.power import Power
from podyd.pods.snapshots import Snapshots
from podyd.pods.stages import Stages


class PodRoutes:
    def __init__(
        self,
        *,
        owned: Owned,
        info: Info,
        lifecycle: Lifecycle,
        power: Power,
        snapshots: Snapshots,
        commits: Commits,
        stages: Stages,
        limits: Limits,
        commands: Commands,
        ports: Ports,
        listening: Listening,
        transfers: Transfers,
        deletions: Deletions,
        logs: Logs,
    ) -> None:
        self._owned = owned
        self._info = info
        self._lifecycle = lifecycle
        self._power = power
        self._snapshots = snapshots
        self._commits = commits
        self._stages = stages
        self._limits = limits
        self._commands = commands
        self._ports = ports
        self._listening = listening
        self._transfers = transfers
        self._deletions = deletions
        self._logs = logs

    @serves(POD_CREATE)
    async def pod_create(self, call: Call[Create]) -> PodInfo:
        request = call.request
        return await self._lifecycle.create(
            call.caller, request.ins, request.image, request.gpus, request.disk
        )

    @serves(POD_DELETE)
    async def pod_delete(self, call: Call[OnePod]) -> Log:
        return Log(await self._lifecycle.delete(call.caller, call.request.ins))

    @serves(POD_INFO, POD_INSPECT)
    async def pod_info(self, call: Call[OnePod]) -> PodInfo:
        return await self._info.of(call.caller, call.request.ins)

    @serves(POD_LIST)
    async def pod_list(self, call: Call[Nothing]) -> list[str]:
        return await self._owned.names(call.caller)

    @serves(POD_LISTALL)
    async def pod_listall(self, call: Call[Nothing]) -> list[PodSummary]:
        return await self._owned.summaries()

    @serves(POD_START)
    async def pod_start(self, call: Call[OnePod]) -> Log:
        return Log(await self._power.start(call.caller, call.request.ins))

    @serves(POD_STOP)
    async def pod_stop(self, call: Call[OnePod]) -> Log:
        return Log(await self._power.stop(call.caller, call.request.ins))

    @serves(POD_RESTART)
    async def pod_restart(self, call: Call[OnePod]) -> Log:
        return Log(await self._power.restart(call.caller, call.request.ins))

    @serves(POD_COPY)
    async def pod_copy(self, call: Call[Copy]) -> PodInfo:
        request = call.request
        return await self._lifecycle.copy(
            call.caller, request.ins, request.to, request.snapshot, request.gpus, request.disk
        )

    @serves(POD_COMMIT)
    async def pod_commit(self, call: Call[Commit]) -> Committed:
        request = call.request
        return await self._commits.commit(
            call.caller, request.ins, request.tag or request.ins, request.msg
        )

    @serves(POD_COMMIT_CANCEL)
    async def pod_commit_cancel(self, call: Call[OnePod]) -> Log:
        return Log(await self._commits.cancel(call.caller, call.request.ins))

    @serves(POD_PROGRESS)
    async def pod_progress(self, call: Call[OnePod]) -> Progress:
        ins = call.request.ins
        known = await self._stages.progress(call.caller, ins)
        return known or await self._commits.progress(call.caller, ins)

    @serves(POD_SNAPSHOT)
    async def pod_snapshot(self, call: Call[NewSnapshot]) -> SnapshotInfo:
        return await self._snapshots.take(call.caller, call.request.ins, call.request.name)

    @serves(POD_SNAPSHOTS)
    async def pod_snapshots(self, call: Call[OnePod]) -> list[SnapshotInfo]:
        return await self._snapshots.all(call.caller, call.request.ins)

    @serves(POD_RESTORE)
    async def pod_restore(self, call: Call[OneSnapshot]) -> Log:
        return Log(await self._snapshots.restore(call.caller, call.request.ins, call.request.name))

    @serves(POD_SNAPSHOT_DELETE)
    async def pod_snapshot_delete(self, call: Call[OneSnapshot]) -> Log:
        return Log(await self._snapshots.delete(call.caller, call.request.ins, call.request.name))

    @serves(POD_PORT)
    async def pod_port(self, call: Call[OnePort]) -> PodInfo:
        request = call.request
        pod = await self._owned.find(call.caller, request.ins)
        await self._ports.add(call.caller, pod, request.port)
        return await self._info.of(call.caller, request.ins)

    @serves(POD_PORT_DELETE)
    async def pod_port_delete(self, call: Call[OnePort]) -> Log:
        request = call.request
        pod = await self._owned.find(call.caller, request.ins)
        return Log(await self._ports.delete(pod, request.port))

    @serves(POD_PORTS)
    async def pod_ports(self, call: Call[OnePod]) -> list[ListeningPort]:
        pod = await self._owned.find(call.caller, call.request.ins)
        return await self._listening.of(pod)

    @serves(POD_EXEC)
    async def pod_exec(self, call: Call[Exec]) -> HeldAnswer[ExecResult]:
        request = call.request
        return await self._commands.exec(call.caller, request.ins, request.cmd, request.timeout)

    @serves(POD_EXEC_STREAM)
    async def pod_exec_stream(self, call: Call[OnePod]) -> CommandSession:
        return await self._commands.open(call.caller, call.request.ins, None)

    @serves(POD_SHELL)
    async def pod_shell(self, call: Call[Shell]) -> CommandSession:
        request = call.request
        size = TerminalSize(request.rows, request.cols)
        return await self._commands.open(call.caller, request.ins, size)

    @serves(POD_FILE)
    async def pod_file(self, call: Call[OneFile]) -> HeldAnswer[FileInfo] | Outgoing:
        return await self._transfers.fetch(call.caller, call.request)

    @serves(POD_FILE_PUT)
    async def pod_file_put(self, call: Call[PutFile]) -> Incoming:
        return await self._transfers.put(call.caller, call.request)

    @serves(POD_FILE_DELETE)
    async def pod_file_delete(self, call: Call[DeleteFile]) -> Log:
        return await self._deletions.delete(call.caller, call.request)

    @serves(POD_LOGS)
    async def pod_logs(self, call: Call[LogsOf]) -> HeldAnswer[PodLog]:
        return await self._logs.last(call.caller, call.request)

    @serves(POD_LIMITS)
    async def pod_limits(self, call: Call[ChangeLimits]) -> PodInfo:
        request = call.request
        return await self._limits.change(
            call.caller, request.ins, request.memory, request.cpu, request.disk
        )
