"""The few lines of `sh` around a command in an instance, and the mark by which they tell its end.

LXD's own exec falls short in three ways (measured on 5.0.2): it kills the leading process only,
it reports the exit code only once every holder of stdout is gone, and it cannot tell what the
leading process wrote from what a child writes later. So the command runs inside these lines, which

- put it into a cgroup of its own, so that everything it started can be killed at once, whatever
  called setsid or cleared its environment, even while it forks;
- say when it is over and with which code, by a mark with a nonce on both streams. What comes
  before the mark is the command's output; nothing needs to be waited for after it. The code is
  256 more where the kernel has killed something for memory meanwhile. A stream without its mark,
  of a `sh` that was not killed, is not whole: LXD 5.0.2 loses output where it closes a file twice
  (see Slipped), and says nothing of it;
- move what it left in the background out of the cgroup, and remove the cgroup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Added to the code in the mark.
OOM_KILLED = 256
# Of an exit code, in the mark.
CODE_DIGITS = 3

_BOX = """
box=/sys/fs/cgroup
[ -d $box/unified ] && box=$box/unified
home=$box
box=$box/podyd-$1
"""

# $1: nonce; the rest are the words of the user's command. The box is missing where a pod's root has
# hidden cgroup2; then the command runs all the same, and a timeout ends its leading process only.
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
said=$code
[ $killed = $before ] || said=$((code + 256))
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
  until printf '\\000podyd-%s:%d;' $nonce $said || [ $tries = 3000 ]; do
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

# Where the command has not begun, the box that this makes keeps it from doing so. Where it is just
# about to enter its box, it is killed there a round later, or finds the box gone and gives up.
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

# $2: the signal. A command that has only just been asked for has no process yet.
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
    """The words that run a command; `nonce` marks its end and names its cgroup."""
    return ("/bin/sh", "-c", _RUN, "podyd", nonce, *words)


def killing(nonce: str) -> tuple[str, ...]:
    """The words that kill all that the command has started, or keep it from beginning."""
    return ("/bin/sh", "-c", _KILL, "podyd", nonce)


def signalling(nonce: str, name: str) -> tuple[str, ...]:
    """The words that send a signal to all that the command has started."""
    return ("/bin/sh", "-c", _SIGNAL, "podyd", nonce, name)


class MarkedStream:
    """Finds the mark that ends a stream, also where it is cut into pieces.

    Who reads the nonce in the pod can write the mark too, and so end the own command early. What
    only looks like the mark is output: no more is held back than the mark is long.
    """

    def __init__(self, nonce: str) -> None:
        self._mark = f"\0podyd-{nonce}:".encode()
        self._end = re.compile(re.escape(self._mark) + rb"(\d{1,%d});" % CODE_DIGITS)
        self._held = b""
        # So much of what is held has been given all the same.
        self._given = 0
        self.exit_code: int | None = None

    @property
    def is_holding(self) -> bool:
        """Whether there is output that may be the beginning of the mark."""
        return len(self._held) > self._given

    def feed(self, data: bytes) -> bytes:
        """The output in `data`; what may be the beginning of the mark is held back."""
        output = self._before_mark(self._held + data)
        given = min(self._given, len(output))
        self._given -= given
        return output[given:]

    def _before_mark(self, data: bytes) -> bytes:
        self._held = b""
        if end := self._end.search(data):
            self.exit_code = int(end[1])
            return data[: end.start()]
        start = data.find(b"\0", max(0, len(data) - len(self._mark) - CODE_DIGITS))
        while start >= 0 and not self._may_go_on(data[start:]):
            start = data.find(b"\0", start + 1)
        if start < 0:
            return data
        self._held = data[start:]
        return data[:start]

    def _may_go_on(self, tail: bytes) -> bool:
        """Whether more could make it the mark."""
        code = tail.removeprefix(self._mark)
        return self._mark.startswith(tail) or (
            len(code) < len(tail) and len(code) <= CODE_DIGITS and code.isdigit()
        )

    def rest(self) -> bytes:
        """What was held back and seems not to be the mark."""
        held = self._held[self._given :]
        self._given = len(self._held)
        return held
