"""One HTTP/1.1 connection on a blocking socket: the same reader, the same TLS, the same rules as on asyncio.

Rules of this file:

1.  `settimeout` only when what is left changed by more than 5 %: it is a system call. What is armed is never above
    what is left; a wait that ends early is begun again with the rest, so that no limit is late.
2.  `poll(0)` before reuse: readable while idle is an end, or rubbish.
3.  While a request is being sent its reply is looked for: an early one ends the sending (waiting for the socket alone
    would deadlock with a server that has stopped reading).
4.  Only a complete, clean exchange gives the connection back; every other exit closes it, KeyboardInterrupt included.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Callable, Iterable

from ..call import Call, Reply, RequestBody
from ..errors import Phase, TransportError
from . import phases, tcp
from .http1 import ResponseReader, expects_continue
from .limits import HttpLimits
from .reply_stream import HttpReplyStream
from .tls_stream import ClientTls, TlsStream, closed_in_handshake, handshake_error, read_error, suspect

_RECEIVE = 65536  # larger makes malloc map and unmap fresh pages for each read
_JOIN = 65536
_ARMED, _KEPT = 0.975, 0.95  # of what is left: what is armed, and the least that is waited for without arming again
_EXACT_S = 0.1  # the last tenth of a second is armed as it is: a limit costs two early wake-ups, not many


class BlockingConnection:
    """A connected socket of one pool. `expires`, `usable_until`, `pooled`: see pool.py."""

    __slots__ = (
        "_address", "_now", "_poll", "_release", "_sock", "_timeout", "_tls", "_tls_identity", "expires",
        "pooled", "reused", "usable_until",
    )  # fmt: skip

    def __init__(
        self,
        sock: socket.socket,
        address: str,
        now: Callable[[], float],
        release: Callable[[BlockingConnection, bool], None],
    ) -> None:
        self._sock, self._address, self._now, self._release = sock, address, now, release
        self._timeout = -1.0
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._tls: TlsStream | None = None
        self._tls_identity: ClientTls | None = None
        self.reused = self.pooled = False
        self.expires = self.usable_until = 0.0

    @property
    def quiet(self) -> bool:
        """Nothing has come while it was idle."""
        return not self._poll.poll(0)

    def secure(self, tls: ClientTls, call: Call, deadline: float) -> None:
        """Do the handshake, and in it the verification of the peer."""
        stream, data = TlsStream(tls), b""
        while not stream.up:
            try:
                out = stream.handshake(data)
                self._arm(self._left(call, deadline, "connect", sent=False))
                if out:
                    self._sock.sendall(out)
                data = b"" if stream.up else self._sock.recv(_RECEIVE)
            except ssl.SSLError as error:
                raise handshake_error(error, tls, self._address) from error
            except TimeoutError:
                raise
            except OSError as error:
                raise closed_in_handshake(self._address) from error
            if not data and not stream.up:
                raise closed_in_handshake(self._address)
        self._tls, self._tls_identity = stream, tls

    def exchange(self, call: Call, head: bytes, limits: HttpLimits) -> Reply:
        """Send the request and read its reply, to its end or, when streaming, to the end of the head."""
        reader = ResponseReader(call.method, limits, not call.streaming)
        body, complete = call.body, True
        try:
            if isinstance(body, bytes):
                complete = self._send(call, reader, head + body if len(body) <= _JOIN else head)
                if complete and len(body) > _JOIN:
                    complete = self._send(call, reader, body)
            else:
                complete = self._upload(call, reader, head, body)
            cap = None if call.phases is None else call.phases.read
            while not (reader.done or (call.streaming and reader.head_done)):
                self._receive(reader, call, phases.limit(call, cap, self._now()))
        except BaseException:
            self.abort()
            reader.forget()
            raise
        if not complete:
            self.usable_until = 0.0
        return self._reply(call, reader)

    def _reply(self, call: Call, reader: ResponseReader) -> Reply:
        stream = None
        if reader.done:
            body = reader.take()
            self.finish(reader)
        else:
            body, stream = b"", HttpReplyStream(self, reader, call)
        return Reply(
            reader.status, reader.headers, body, reason=reader.reason, stream=stream,
            http_version=reader.http_version, trailers=reader.trailers,
        )  # fmt: skip

    def finish(self, reader: ResponseReader) -> None:
        """The reply is complete: back to the pool, or closed."""
        reusable = reader.keep and self.usable_until > 0.0
        self.reused = True
        self._release(self, reusable)

    async def more(self, reader: ResponseReader, call: Call) -> None:
        """Wait for more of a streamed body; blocks its thread, never suspends."""
        deadline = self._now() + phases.stream_gap(call)
        while not reader.waiting and not reader.done:
            self._receive(reader, call, deadline, streamed=True)

    def _receive(self, reader: ResponseReader, call: Call, deadline: float, *, streamed: bool = False) -> None:
        """Read once and feed `reader`, or raise what ended it."""
        while True:
            self._limit(call, deadline, "read", streamed=streamed)
            try:
                data = self._sock.recv(_RECEIVE)
                break
            except OSError as error:
                if not _early(error):
                    raise self._suspect(tcp.broken(self._address, error, reused=self.reused), reader) from error
        try:
            if self._tls is not None:
                self._decrypt(self._tls, reader, data)
            elif data:
                reader.feed(data)
            else:
                reader.eof()
        except TransportError as error:
            error.reused = self.reused
            raise self._suspect(error, reader) from error.__cause__

    def _suspect(self, error: TransportError, reader: ResponseReader) -> TransportError:
        fresh = self._tls is not None and not self.reused and not reader.started
        return suspect(error) if fresh else error

    def _decrypt(self, tls: TlsStream, reader: ResponseReader, data: bytes) -> None:
        for piece in tls.decrypt(data):
            reader.feed(piece)
        if tls.broken is not None and self._tls_identity is not None:
            fresh = not self.reused and not reader.started
            raise read_error(tls.broken, self._tls_identity, self._address, fresh=fresh, reused=self.reused)
        if tls.closed or not data:
            reader.eof(clean=tls.closed)
            return
        answer = tls.answer()
        if answer:
            try:
                self._sock.sendall(answer)
            except OSError as error:
                raise tcp.broken(self._address, error, reused=self.reused) from error

    def _upload(self, call: Call, reader: ResponseReader, head: bytes, body: RequestBody) -> bool:
        """A body in pieces. False: the reply came before it was all sent; then never reuse."""
        if not self._send(call, reader, head):
            return False
        if expects_continue(call) and not self._may_continue(call, reader):
            return False
        pieces: Iterable[bytes] = body.pieces()
        try:
            for piece in pieces:
                if self._poll.poll(0) and self._answered(call, reader):
                    return False
                if piece and not self._send(
                    call, reader, b"%x\r\n%b\r\n" % (len(piece), piece) if body.framed else piece
                ):
                    return False
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        return self._send(call, reader, b"0\r\n\r\n") if body.framed else True

    def _may_continue(self, call: Call, reader: ResponseReader) -> bool:
        until = phases.limit(call, phases.CONTINUE_S, self._now())
        while not reader.interim and not reader.head_done:
            left = until - self._now()
            if left <= 0 or not self._poll.poll(left * 1000):
                break
            self._answered(call, reader)
        return not reader.head_done

    def _answered(self, call: Call, reader: ResponseReader) -> bool:
        """Something came while the request is being sent: is it the reply?"""
        self._receive(reader, call, call.attempt_deadline)
        return reader.head_done

    def _send(self, call: Call, reader: ResponseReader, data: bytes) -> bool:
        """True: all of it was sent. False: the reply came first."""
        deadline = phases.limit(call, None if call.phases is None else call.phases.write, self._now())
        try:
            view = memoryview(data if self._tls is None else self._tls.encrypt(data))
            sent = self._push(call, view, deadline)
            while sent < len(view):
                if self._readable(call, deadline) and self._answered(call, reader):
                    return False
                sent += self._push(call, view[sent:], deadline)
        except OSError as error:
            raise tcp.broken(self._address, error, reused=self.reused, phase="write") from error
        return True

    def _push(self, call: Call, view: memoryview, deadline: float) -> int:
        """How much of `view` the socket took."""
        while True:
            self._limit(call, deadline, "write")
            try:
                return self._sock.send(view)
            except TimeoutError as error:
                if not _early(error):
                    raise

    def _readable(self, call: Call, deadline: float) -> bool:
        """Wait until the socket takes more (False) or something has come (True)."""
        left = self._left(call, deadline, "write")
        self._poll.modify(self._sock, select.POLLIN | select.POLLOUT)
        try:
            events = self._poll.poll(left * 1000)
        finally:
            self._poll.modify(self._sock, select.POLLIN)
        if not events:
            raise phases.expired(call, deadline, "write", self._address, sent=True)
        return bool(events[0][1] & ~select.POLLOUT)

    def _limit(self, call: Call, deadline: float, phase: Phase, *, streamed: bool = False) -> None:
        """Let the socket's next wait end by `deadline`, perhaps a little early."""
        left = deadline - self._now()
        if not left * _KEPT <= self._timeout <= left:  # never so when nothing is left
            left = self._left(call, deadline, phase, streamed=streamed)
            self._arm(left if left < _EXACT_S else left * _ARMED)  # the next call's limit is about the same

    def _left(self, call: Call, deadline: float, phase: Phase, *, sent: bool = True, streamed: bool = False) -> float:
        """Seconds until `deadline`; raises when there are none."""
        left = min(deadline - self._now(), phases.LONGEST_S)
        if left <= 0:
            raise phases.expired(call, deadline, phase, self._address, sent=sent, streamed=streamed)
        return left

    def _arm(self, seconds: float) -> None:
        self._timeout = seconds
        self._sock.settimeout(seconds)

    def abort(self) -> None:
        """Close now and give the slot back. Idempotent; from any thread, even inside the pool's lock."""
        self._release(self, False)

    drop = abort

    def close(self) -> None:
        """Close the socket only; whoever calls gives the slot back."""
        self.usable_until = 0.0
        self._sock.close()

    def interrupt(self) -> None:
        """From another thread: end whatever it waits for. Its own thread closes it."""
        self.usable_until = 0.0
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was first

    def abandon(self) -> None:
        """In a forked child: close the descriptor only; the parent's connection does not notice."""
        self.usable_until, self.pooled = 0.0, False
        self._sock.close()


def _early(error: OSError) -> bool:
    """Did a wait of ours end? The kernel's own ETIMEDOUT, a peer that is gone, has a number."""
    return isinstance(error, TimeoutError) and error.errno is None
