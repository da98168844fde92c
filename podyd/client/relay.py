"""What leads one connection into a pod: a few lines of Perl or Python, run there.

They copy standard input to the port and the port to standard output, each direction by itself, so
that either end may stop talking and still listen. Perl is in every Debian and Ubuntu, Python in
most others.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable

from podyd.client.stream import STDERR

NOTHING_LISTENS = 111  # ECONNREFUSED
NO_INTERPRETER = 127
# Of what a relay writes to standard error, where an interpreter may complain too.
HELD_BYTES = 4096

_PERL = r"""
use strict;
use Socket qw(:DEFAULT IPPROTO_TCP TCP_NODELAY inet_pton pack_sockaddr_in6);
my ($port, $socket) = @ARGV;
for ([PF_INET, pack_sockaddr_in($port, inet_aton("127.0.0.1"))],
     [PF_INET6, pack_sockaddr_in6($port, inet_pton(AF_INET6, "::1"))]) {
  last if socket($socket, $_->[0], SOCK_STREAM, 0) && connect($socket, $_->[1]);
  undef $socket;
}
$socket or exit 111;
setsockopt($socket, IPPROTO_TCP, TCP_NODELAY, 1);
$SIG{PIPE} = "IGNORE";
sub copy {
  my ($from, $to, $data, $all) = @_;
  while (sysread($from, $data, 65536)) {
    for (my $done = 0; $done < length $data;) {
      $done += syswrite($to, $data, 65536, $done) || return $all;
    }
    $all += length $data;
  }
  return $all;
}
my $child = fork() // exit 1;
if (!$child) {
  copy(\*STDIN, $socket);
  shutdown($socket, 1);
  exit 0;
}
printf STDERR "podyd-end %d\n", copy($socket, \*STDOUT);
waitpid($child, 0);
"""

_PYTHON = r"""
import os, socket, sys, threading
for host in "127.0.0.1", "::1":
    try:
        connection = socket.create_connection((host, int(sys.argv[1])))
        break
    except OSError:
        pass
else:
    sys.exit(111)
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
def lead_in():
    try:
        while data := os.read(0, 65536):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass
leading = threading.Thread(target=lead_in)
leading.start()
count = 0
try:
    while data := connection.recv(65536):
        count += len(data)
        while data:
            data = data[os.write(1, data):]
except OSError:
    pass
os.write(2, b"podyd-end %d\n" % count)
leading.join()
"""


def command(port: int) -> str:
    """A line for a shell that leads its standard streams to a port of the pod's loopback."""
    perl, python = shlex.quote(_PERL), shlex.quote(_PYTHON)
    return (
        f"command -v perl >/dev/null && exec perl -e {perl} {port}\n"
        f"command -v python3 >/dev/null && exec python3 -c {python} {port}\n"
        f"exit {NO_INTERPRETER}"
    )


class Lead:
    """The near end of one connection: how to receive, to send, and to say that no more comes.

    A relay says on standard error after how many bytes the pod has ended its direction: what it
    has sent before may still be on its way then.
    """

    def __init__(
        self, receive: Callable[[], bytes], send: Callable[[bytes], None], end: Callable[[], None]
    ) -> None:
        self.read = receive
        self._send = send
        self._end = end
        self._stderr = b""
        self._count = 0

    def write(self, channel: int, data: bytes) -> None:
        if channel == STDERR:
            self._stderr = (self._stderr + data)[-HELD_BYTES:]
        else:
            self._send(data)
            self._count += len(data)
        if f"podyd-end {self._count}\n".encode() in self._stderr:
            self._end()
