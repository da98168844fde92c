"""The output of a command, collected until it ends."""

from __future__ import annotations

import codecs
from array import array
from collections.abc import Iterator
from functools import partial

from podyd.base.longtext import LongText
from podyd.engine.streams import STDERR, STDOUT, Wish, no_wish

# Eight bytes each; after so many changes between stdout and stderr the order is not recorded.
MAX_TURNS = 16_384
PIECE_BYTES = 16 * 1024


class Collected:
    """Collects both streams in the order of arrival, up to `limit` bytes of each.

    As a command's streams, it has no input; output beyond the limit is read and dropped.

    The order is kept up to MAX_TURNS changes from one stream to the other; behind that comes the
    rest of stdout, and then that of stderr.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # One growing block each: thousands of small pieces would leave the heap full of holes.
        self._bytes = {STDOUT: bytearray(), STDERR: bytearray()}
        # Where each turn of a stream ends in its block; the streams take turns.
        self._ends = array("Q")
        self._first = self._last = 0
        self.truncated = False

    async def input(self) -> bytes | None:
        return None

    async def wish(self) -> Wish:
        return await no_wish()

    async def output(self, stream: int, data: bytes) -> None:
        self.add(stream, data)

    def add(self, stream: int, data: bytes) -> None:
        block = self._bytes[stream]
        kept = data[: max(0, self._limit - len(block))]
        self.truncated = self.truncated or len(kept) < len(data)
        if not kept or len(self._ends) > MAX_TURNS:
            block += kept
            return
        block += kept
        if stream == self._last:
            self._ends[-1] = len(block)
            return
        self._first = self._first or stream
        self._last = stream
        self._ends.append(len(block))

    @property
    def stdout(self) -> LongText:
        """Bytes that are not UTF-8 are replaced, here and below."""
        return LongText(partial(self._text, STDOUT))

    @property
    def stderr(self) -> LongText:
        return LongText(partial(self._text, STDERR))

    @property
    def log(self) -> LongText:
        """Both interleaved."""
        return LongText(self._interleaved)

    def _text(self, stream: int) -> Iterator[str]:
        decoder = _decoder()
        yield from self._decoded(stream, decoder, 0, len(self._bytes[stream]))
        yield decoder.decode(b"", final=True)

    def _interleaved(self) -> Iterator[str]:
        # A character may be cut by the other stream; it stands where it is complete.
        decoders = {STDOUT: _decoder(), STDERR: _decoder()}
        starts = {STDOUT: 0, STDERR: 0}
        stream, other = (STDOUT, STDERR) if self._first == STDOUT else (STDERR, STDOUT)
        # The last turn may not be its stream's last where there were too many.
        for end in self._ends[:MAX_TURNS]:
            yield from self._decoded(stream, decoders[stream], starts[stream], end)
            starts[stream] = end
            stream, other = other, stream
        for stream, decoder in decoders.items():
            end = len(self._bytes[stream])
            yield from self._decoded(stream, decoder, starts[stream], end)
            yield decoder.decode(b"", final=True)

    def _decoded(
        self, stream: int, decoder: codecs.IncrementalDecoder, start: int, end: int
    ) -> Iterator[str]:
        for begin in range(start, end, PIECE_BYTES):
            yield decoder.decode(bytes(self._bytes[stream][begin : min(end, begin + PIECE_BYTES)]))


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")
