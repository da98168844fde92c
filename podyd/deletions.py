"""Files of pods deleted, also in a pod that is stopped: one whose disk is full may not start.

In a pod that runs, `rm` and `find` in it do the work, for the reasons in transfers.py. In one that
is stopped nobody can put a pipe into the place of a file, so LXD's own way is safe there: it looks
at a path without opening it, opens directories alone, and removes one thing at a time.
"""

from __future__ import annotations

import json
import time

from podyd.errors import (
    BadRequest,
    Conflict,
    LxdRefused,
    Missing,
    NotFound,
    PodydError,
    TimedOut,
    Unavailable,
)
from podyd.lxd.client import LxdClient
from podyd.lxd.execution import Executor
from podyd.places import Places
from podyd.pod import Pod
from podyd.pods import Pods
from podyd.spec import DeleteFile, Log
from podyd.transfers import Pipe
from podyd.users import Member

MAX_PER_MEMBER = 4
MAX_ALL = 32
# Of all that a directory of a pod has. LXD removes 30 to 100 files in a second.
SECONDS = 300.0

# $1: the path, $2: not empty if all below it goes too. What is mounted there stays.
_DELETE = """
export LC_ALL=C
if [ -d "$1" ] && [ ! -L "$1" ]; then
  [ -z "$2" ] || exec find "$1" -xdev -depth -delete
  exec rmdir -- "$1"
fi
[ -e "$1" ] || [ -L "$1" ] || exit 20
exec rm -f -- "$1"
"""


class Deletions:
    """Deletes what members name."""

    def __init__(self, *, client: LxdClient, pods: Pods, executor: Executor) -> None:
        self._client = client
        self._executor = executor
        self._places = Places(
            pods,
            own=MAX_PER_MEMBER,
            all=MAX_ALL,
            what="deletions of yours are going on; wait until one has ended",
            code="too_many_files",
        )

    async def delete(self, member: Member, request: DeleteFile) -> Log:
        """Delete a file, or a directory; with `recursive` also one that has something in it.

        Raises BadRequest (a path without a last name), NotFound, Conflict (it has something in it;
        a frozen pod; it cannot be deleted) or TooMany.
        """
        path = request.path.rstrip("/")
        if path.rpartition("/")[2] in ("", ".", ".."):
            raise BadRequest(
                "Parameter 'path' must end with the name of what shall be deleted.",
                code="malformed_parameter",
                parameter="path",
            )
        pod = await self._places.enter(member, request.ins, also_stopped=True)
        try:
            delete = self._inside if pod.status == "running" else self._beside
            await delete(pod, path, recursive=request.recursive)
        finally:
            self._places.leave(pod)
        return Log(f"{request.path} is deleted in pod {pod.ins}.")

    async def _inside(self, pod: Pod, path: str, *, recursive: bool) -> None:
        pipe = Pipe()
        words = ("/bin/sh", "-c", _DELETE, "podyd", path, "1" if recursive else "")
        done = await self._executor.talk(pod.name, words, pipe, terminal=None, timeout=SECONDS)
        code = done.code
        if code is None:
            raise _unfinished()
        if code == 20:
            raise _no_such_file(pod, path)
        if code != 0:
            if "not empty" in pipe.complaint and not recursive:
                raise _not_empty(path)
            raise _not_deleted(path, pipe.complaint)

    # --- In a pod that is stopped ----------------------------------------------------------------

    async def _beside(self, pod: Pod, path: str, *, recursive: bool) -> None:
        kind = await self._kind(pod, path)
        if not kind:
            raise _no_such_file(pod, path)
        try:
            if kind != "directory":
                await self._client.file("DELETE", pod.name, path)
            elif recursive or not await self._names(pod, path):
                await self._delete_tree(pod, path)
            else:
                raise _not_empty(path)
        except LxdRefused as error:
            raise _not_deleted(path, error.reason) from error

    async def _delete_tree(self, pod: Pod, top: str) -> None:
        end = time.monotonic() + SECONDS
        # The directories that are still there; what is in one comes after it, and goes first.
        left = [top]
        while left:
            below = []
            for name in await self._names(pod, left[-1]):
                if time.monotonic() > end:
                    raise _unfinished()
                path = f"{left[-1]}/{name}"
                if not await self._removed(pod, path):
                    below.append(path)
            if below:
                left += below
            else:
                await self._client.file("DELETE", pod.name, left.pop())

    async def _removed(self, pod: Pod, path: str) -> bool:
        """Remove it; False if it is a directory that has something in it."""
        try:
            await self._client.file("DELETE", pod.name, path)
        except Missing:
            pass
        except LxdRefused:
            if await self._kind(pod, path) != "directory":
                raise
            return False
        return True

    async def _kind(self, pod: Pod, path: str) -> str:
        """What LXD calls it: file, directory or symlink, also a pipe is a file; "" for nothing."""
        try:
            response = await self._client.file("HEAD", pod.name, path)
        except LxdRefused as error:
            # Where a part of the path is no directory, LXD says no more than that it failed.
            if isinstance(error, Missing) or type(error) is LxdRefused:
                return ""
            raise
        return str(response.headers.get("X-LXD-type", ""))

    async def _names(self, pod: Pod, path: str) -> list[str]:
        try:
            response = await self._client.file("GET", pod.name, path)
        except Unavailable:
            # podyd takes no longer answer; but if it is LXD that is away, this says so.
            await self._kind(pod, path)
            raise Conflict(
                f"{path!r} has too many files to be deleted while the pod is stopped; delete some"
                " others first, so that it starts.",
                code="not_deleted",
            ) from None
        return [str(name) for name in json.loads(response.body)["metadata"] or []]


def _no_such_file(pod: Pod, path: str) -> NotFound:
    return NotFound(f"There is no {path!r} in pod {pod.ins!r}.", code="no_such_file")


def _not_empty(path: str) -> Conflict:
    return Conflict(
        f"{path!r} is a directory that has something in it; with recursive=1 all of it is deleted.",
        code="directory_not_empty",
    )


def _not_deleted(path: str, reason: str) -> PodydError:
    return Conflict(f"{path!r} could not be deleted: {reason}.", code="not_deleted")


def _unfinished() -> TimedOut:
    return TimedOut(
        f"There is so much in it that not all is deleted after {SECONDS:.0f} s; ask again.",
        code="timed_out",
    )
