"""A `sh` script around a command in an instance, and the mark with which it reports the end.

LXD's own exec has three limits (measured on 5.0.2): it kills the leading process only, it reports
the exit code only once all processes have closed stdout, and it does not separate output of the
leading process from later output of a child. So the command runs in this script, which

- puts it into a cgroup of its own, so that all processes that it started can be killed at once,
  also those that called setsid or cleared their environment, even while it forks;
- writes a mark with a nonce and the exit code to both streams at its end. The output before the
  mark is the command's; nothing has to be awaited after it. 256 is added to the code if the kernel
  has killed a process for memory meanwhile. A stream without its mark, of a `sh` that was not
  killed, is incomplete: LXD 5.0.2 loses output when it closes a file twice (see Slipped), without
  an error;
- moves background processes out of the cgroup, and removes the cgroup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Added to the code in the mark.
OOM_KILLED = 256
# The number of digits of the exit code in the mark.
CODE_DIGITS = 3

_BOX = """
box=/sys/fs/cgroup
[ -d $box/unified ] && box=$box/unified
home=$box
box=$box/podyd-$1
"""

# $1: nonce; the rest is the user's command. There is no cgroup if the pod's root has hidden
# cgroup2; then the command runs without it, and a timeout kills its leading process only.
_RUN = (
    """exec 3>&1 4>&2 2>/dev/null
oom_killed() {
  killed=0
  while read -r name number; do
    [ "$name" = oom_kill ] && killed=$number
  done <$counter
}
"""
    + _BOX
    + """
nonce=$1
shift
# At a terminal, the keys for these reach all of the foreground; this has to see the end.
trap : INT QUIT
mkdir $box || { [ -d $box ] && rmdir $box && exit 137; box=; }
# Whom the kernel has killed for memory. Where cgroup2 has the memory, the box tells it of the
# command alone; else all commands count together, and services by themselves.
counter=$box/memory.events
if ! [ -e $counter ]; then
  counter=/sys/fs/cgroup/memory.events
  while IFS=: read -r _ name path; do
    [ "$name" = memory ] && counter=/sys/fs/cgroup/memory$path/memory.oom_control
  done </proc/self/cgroup
fi
oom_killed
before=$killed
# Images without bash (Alpine, busybox) have a sh that will do for most.
[ "$1" != /bin/bash ] || [ -x /bin/bash ] || { shift; set -- /bin/sh "$@"; }
(
  [ -z "$box" ] || echo 0 >$box/cgroup.procs || exit 125
  exec "$@" 2>&4 3>&- 4>&-
)
code=$?
oom_killed
reported=$code
[ $killed = $before ] || reported=$((code + 256))
if [ -n "$box" ] && ! rmdir $box; then
  while IFS=: read -r id _ path; do [ "$id" = 0 ] && home=$home$path; done </proc/self/cgroup
  tries=0
  until [ $tries = 20 ] || ! [ -d $box ]; do
    while read -r pid; do echo $pid >$home/cgroup.procs; done <$box/cgroup.procs
    rmdir $box
    tries=$((tries + 1))
  done
fi
# What a command has made non-blocking, and filled, takes no mark until LXD has read some of it.
mark() {
  tries=0
  until printf '\\000podyd-%s:%d;' $nonce $reported || [ $tries = 3000 ]; do
    sleep 0.02
    tries=$((tries + 1))
  done
}
mark
mark >&4
# LXD may lose what a terminal has shown when the leading process ends, so it asks before.
[ ! -t 1 ] || read -r _
exit $code
"""
)

# If the command has not started, the cgroup that this creates prevents its start. If it is just
# about to enter its cgroup, it is killed there in a later round, or fails as the cgroup is gone.
_KILL = (
    """exec 2>/dev/null"""
    + _BOX
    + """
tries=0
if mkdir $box; then
  until ! [ -d $box ] || [ $tries = 250 ]; do sleep 0.02; tries=$((tries + 1)); done
  rmdir $box
  exit 0
fi
until rmdir $box || ! [ -d $box ] || [ $tries = 100 ]; do
  echo 1 >$box/cgroup.kill
  sleep 0.02
  tries=$((tries + 1))
done
! [ -d $box ]
"""
)

# $2: the signal. A command that was requested just now may have no process yet.
_SIGNAL = (
    """exec 2>/dev/null"""
    + _BOX
    + """
tries=0
until pids=$(cat $box/cgroup.procs) && [ -n "$pids" ] || [ $tries = 50 ]; do
  sleep 0.02
  tries=$((tries + 1))
done
kill -s $2 $pids
"""
)


def wrapped(nonce: str, words: Sequence[str]) -> tuple[str, ...]:
    """The argv that runs a command; `nonce` marks its end and names its cgroup."""
    return ("/bin/sh", "-c", _RUN, "podyd", nonce, *words)


def killing(nonce: str) -> tuple[str, ...]:
    """The argv that kills all processes of the command, or prevents its start."""
    return ("/bin/sh", "-c", _KILL, "podyd", nonce)


def signalling(nonce: str, name: str) -> tuple[str, ...]:
    """The argv that sends a signal to all processes of the command."""
    return ("/bin/sh", "-c", _SIGNAL, "podyd", nonce, name)


class MarkedStream:
    """Finds the mark that ends a stream, also if it comes in several chunks.

    A process in the pod that reads the nonce can write the mark too, and end its own command early.
    Output that only resembles the mark is passed on: at most the mark's length is buffered.
    """

    def __init__(self, nonce: str) -> None:
        self._mark = f"\0podyd-{nonce}:".encode()
        self._end = re.compile(re.escape(self._mark) + rb"(\d{1,%d});" % CODE_DIGITS)
        self._buffer = b""
        # How many of the buffered bytes were returned already.
        self._returned = 0
        self.exit_code: int | None = None

    @property
    def is_holding(self) -> bool:
        """Whether output is buffered that may be the start of the mark."""
        return len(self._buffer) > self._returned

    def feed(self, data: bytes) -> bytes:
        """The output in `data`; what may be the start of the mark is buffered."""
        output = self._before_mark(self._buffer + data)
        skipped = min(self._returned, len(output))
        self._returned -= skipped
        return output[skipped:]

    def _before_mark(self, data: bytes) -> bytes:
        self._buffer = b""
        if end := self._end.search(data):
            self.exit_code = int(end[1])
            return data[: end.start()]
        start = data.find(b"\0", max(0, len(data) - len(self._mark) - CODE_DIGITS))
        while start >= 0 and not self._may_go_on(data[start:]):
            start = data.find(b"\0", start + 1)
        if start < 0:
            return data
        self._buffer = data[start:]
        return data[:start]

    def _may_go_on(self, tail: bytes) -> bool:
        """Whether `tail` may be the start of the mark."""
        code = tail.removeprefix(self._mark)
        return self._mark.startswith(tail) or (
            len(code) < len(tail) and len(code) <= CODE_DIGITS and code.isdigit()
        )

    def rest(self) -> bytes:
        """The buffered output, which is taken not to be the mark."""
        rest = self._buffer[self._returned :]
        self._returned = len(self._buffer)
        return rest
