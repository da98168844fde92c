"""Deletion of files in pods, also in a stopped pod: one whose disk is full may not start.

In a pod that runs, `rm` and `find` in it do the work, for the reasons in files.py. In one that is
stopped no process can replace a file by a pipe, so the engine's file API is safe there: it reads
the type of a path without opening it, and removes one file at a time. But no directory is listed by
it, as nothing keeps the engine from running the pod's code for that (see podyd/engine/tree.py).
"""

from __future__ import annotations

from podyd.base.errors import (
    BadRequest,
    Conflict,
    EngineRefused,
    Missing,
    NotFound,
    PodydError,
    TimedOut,
)
from podyd.contract.operation import Log
from podyd.contract.pods import DeleteFile
from podyd.engine.interface import Files
from podyd.engine.streams import Executor
from podyd.model.member import Member
from podyd.model.pod import Pod
from podyd.pods.files import Pipe
from podyd.pods.owned import Owned, not_running
from podyd.pods.slots import Slots

MAX_PER_MEMBER = 4
MAX_ALL = 32
# The timeout for a directory with all its contents.
SECONDS = 300.0

# $1: the path, $2: not empty if its contents are deleted too, which fails if anything is mounted
# there. -xdev is not sufficient: the host's directories in a pod may be on its disk's filesystem.
_DELETE = """
export LC_ALL=C
if [ -d "$1" ] && [ ! -L "$1" ]; then
  [ -n "$2" ] || exec rmdir -- "$1"
  top=$(cd -P -- "$1" && pwd -P) || exit
  # As the kernel writes it.
  top=$(printf %s "$top" | sed 's/\\\\/\\\\134/g; s/ /\\\\040/g; s/\\t/\\\\011/g')
  while read -r _ _ _ _ point _; do
    case $point in "$top" | "$top"/*) echo "$point" >&2; exit 21 ;; esac
  done </proc/self/mountinfo || exit
  exec find "$1" -xdev -depth -delete
fi
[ -e "$1" ] || [ -L "$1" ] || exit 20
exec rm -f -- "$1"
"""


class Deletions:
    """Deletes files and directories of pods."""

    def __init__(self, *, files: Files, owned: Owned, executor: Executor) -> None:
        self._files = files
        self._executor = executor
        self._owned = owned
        self._slots = Slots(
            per_member=MAX_PER_MEMBER,
            total=MAX_ALL,
            what="deletions of yours are running",
            advice="Wait until one has ended.",
            code="too_many_files",
        )

    async def delete(self, member: Member, request: DeleteFile) -> Log:
        """Delete a file, or a directory; with `recursive`, in a pod that runs, all its contents.

        Raises BadRequest (a path without a last component), NotFound, Conflict (a directory that
        is not empty; a frozen pod; it cannot be deleted) or TooMany.
        """
        path = request.path.rstrip("/")
        if path.rpartition("/")[2] in ("", ".", ".."):
            raise BadRequest(
                "Parameter 'path' must end with the name of a file or directory.",
                code="malformed_parameter",
                parameter="path",
            )
        pod = await self._owned.find(member, request.ins)
        if pod.status not in ("running", "stopped"):
            raise not_running(pod.ins, pod.status)
        with self._slots.take(member):
            if pod.status == "running":
                await self._inside(pod, path, recursive=request.recursive)
            else:
                await self._beside(pod, path)
        return Log(f"{request.path} is deleted in pod {pod.ins}.")

    async def _inside(self, pod: Pod, path: str, *, recursive: bool) -> None:
        pipe = Pipe()
        words = ("/bin/sh", "-c", _DELETE, "podyd", path, "1" if recursive else "")
        done = await self._executor.run(pod.name, words, pipe, timeout=SECONDS)
        code = done.code
        if code is None:
            raise _unfinished()
        if code == 20:
            raise _no_such_file(pod, path)
        if code == 21:
            raise Conflict(
                f"Nothing of {path!r} is deleted, as {pipe.complaint} in it is mounted.",
                advice="Unmount it, or delete the other files one by one.",
                code="not_deleted",
            )
        if code != 0:
            if "not empty" in pipe.complaint and not recursive:
                raise _not_empty(path)
            raise _not_deleted(path, pipe.complaint)

    # --- In a pod that is stopped ----------------------------------------------------------------

    async def _beside(self, pod: Pod, path: str) -> None:
        kind = await self._kind(pod, path)
        if not kind:
            raise _no_such_file(pod, path)
        try:
            await self._files.delete(pod.name, path)
        except EngineRefused as error:
            if kind != "directory" or isinstance(error, Missing):
                raise _not_deleted(path, error.reason) from error
            raise Conflict(
                f"{path!r} is a directory that is not empty, which can be deleted only while pod"
                f" {pod.ins!r} runs.",
                advice="Delete a large file in it first, so that the pod can start.",
                code="directory_not_empty",
            ) from error

    async def _kind(self, pod: Pod, path: str) -> str:
        """Its type in the engine: file (also a pipe), directory or symlink; "" if it does not
        exist."""
        try:
            return await self._files.kind(pod.name, path)
        except EngineRefused as error:
            # If a component of the path is not a directory, the engine's error has no reason.
            if isinstance(error, Missing) or type(error) is EngineRefused:
                return ""
            raise


def _no_such_file(pod: Pod, path: str) -> NotFound:
    return NotFound(f"There is no {path!r} in pod {pod.ins!r}.", code="no_such_file")


def _not_empty(path: str) -> Conflict:
    return Conflict(
        f"{path!r} is a directory that is not empty.",
        advice="recursive=1 deletes it with all its contents.",
        code="directory_not_empty",
    )


def _not_deleted(path: str, reason: str) -> PodydError:
    return Conflict(f"{path!r} could not be deleted: {reason}.", code="not_deleted")


def _unfinished() -> TimedOut:
    return TimedOut(
        f"It has so many files that not all are deleted after {SECONDS:.0f} s.",
        advice="Repeat the request to delete the rest.",
        code="timed_out",
    )
