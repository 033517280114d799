"""The asyncio transport of a user agent: its sockets, its timer and its events.

UDP and TCP share a port; TLS, which needs a certificate, uses the next one.

A process may be suspended: by SIGSTOP, with its virtual machine, by a long garbage collection. A
late timer shows that. Then everything that has arrived is read first, `confirm_lease` checks that
this process still owns its calls, and only then the agent's timers fire. Meanwhile no INVITE is
sent.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Container
from contextlib import ExitStack
from typing import Literal

from bitel.sip.events import Event
from bitel.sip.grammar import MAX_PORT, Address, HostPort, Transport
from bitel.sip.user_agent import UserAgent
from bitel.sip_transport.acceptor import ConnectionQuota, Listener, listening_socket
from bitel.sip_transport.connection import StreamLimits
from bitel.sip_transport.connection_pool import ConnectionPool, StreamUser
from bitel.sip_transport.tls import TlsFiles
from bitel.sip_transport.udp import DatagramUser, DeliveryError, UdpSocket, datagram_socket

logger = logging.getLogger(__name__)

Tap = Callable[[Literal["in", "out"], bytes, Address, float], None]
"""Called with each message: direction, data, remote address, and time in Unix seconds."""

READ_FIRST = 0.1
"""Lateness of a timer, in seconds, from which received messages are read before it fires."""
PAUSE_NOTICED = 1.0
"""Lateness of a timer, in seconds, that shows a suspended process."""
LONGEST_TIMER = 0.5
"""Longest delay of the timer, in seconds: detects a pause even if nothing was due during it."""
CONFIRM_WITHIN = 3.0
"""Timeout of `confirm_lease` in seconds."""
QUIET_PASSES = 4
"""Iterations of the event loop without an arrival after which everything counts as read. A message
of a connection that was just accepted takes three."""
BUSY_PASSES = 16
"""Iterations after which everything counts as read although more arrives, unless a socket has more
to read."""
MAX_PASSES = 512
"""Iterations after which everything counts as read in any case. Each reads every socket once, and a
UDP socket can't hold more datagrams."""

TRIES = 30
"""Ports that are tried to find one that is free for every transport."""


class SipTransport(DatagramUser, StreamUser):
    """The transport of one `agent`; call `flush` after any call on the agent."""

    def __init__(
        self,
        bind: HostPort,
        make_agent: Callable[[HostPort], UserAgent],
        on_event: Callable[[Event], None],
        clock: Callable[[], float] | None = None,
        tap: Tap | None = None,
        tls: TlsFiles | None = None,
        limits: StreamLimits | None = None,
        confirm_lease: Callable[[], Awaitable[bool]] | None = None,
        accepts: Callable[[str], bool] | None = None,
    ) -> None:
        """Bind `bind` (port 0: a free one) and start; needs a running event loop.

        `make_agent` gets the bound address. `clock` gives the agent's time in seconds, by default
        that of the loop. Sources for which `accepts` is false may use half of the connections;
        None: it is true for all. Raises OSError if a port is not free, and TlsFileError.
        """
        limits, self._tls = limits or StreamLimits(), tls or TlsFiles()
        self._server_context = self._tls.server_context()
        if self._tls.ca or self._tls.certificate:
            self._tls.client_context()  # fail early
        sockets = _bind(bind, with_tls=self._server_context is not None)
        host, port = sockets[0].getsockname()[:2]
        self.local: HostPort = (str(host), int(port))
        with ExitStack() as undo:
            for sock in sockets:
                undo.enter_context(sock)
            self.agent = make_agent(self.local)
            undo.pop_all()
        self._loop = asyncio.get_running_loop()
        self.now = clock or self._loop.time
        self._on_event = on_event
        self._tap = tap
        self.confirm_lease = confirm_lease
        """Called after a pause: whether this process still owns its calls; None: always. If it
        returns False, fails or times out, unanswered INVITEs are not retransmitted."""
        udp, *listening = sockets
        self._udp = UdpSocket(udp, self)
        local_host = None if host in {"0.0.0.0", "::"} else host
        tls_port = 0 if self._server_context is not None else port + 1
        self._streams = ConnectionPool(self, limits, self._tls, local_host, tls_port)
        quota = ConnectionQuota(limits, accepts)
        contexts = {Transport.TCP: None, Transport.TLS: self._server_context}
        self._listeners = [
            Listener(sock, transport, context, self._streams, quota, limits)
            for sock, (transport, context) in zip(listening, contexts.items(), strict=False)
        ]
        self._turn: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._timer_at = 0.0
        self._closed = False
        # After a late timer, until received messages are read: no timer fires.
        self._reading_first = False
        # After a pause, until the lease is confirmed: INVITEs are held, and no timer fires.
        self._resuming = False
        self._held_invites: list[tuple[bytes, Address]] = []
        self._confirming: asyncio.Task[None] | None = None
        self._after_reading: list[tuple[int, Callable[[], None]]] = []
        self._pass: asyncio.Handle | None = None
        self._passes = self._quiet_passes = self._arrivals = self._arrivals_seen = 0

    @property
    def behind(self) -> float:
        """Seconds for which datagrams have been waiting to be read; 0 if none are."""
        return self._udp.behind

    def renew_certificate(self) -> None:
        """Reload the TLS files for new connections.

        Raises TlsFileError if they can't be used; the former certificate then stays in use.
        """
        self._tls.client_context()
        if self._server_context is not None:
            self._tls.show(self._server_context)
        self._streams.renew_context()

    def flush(self) -> None:
        """Schedule sending of the agent's messages and dispatch of its events.

        Cheap to call often: it is done once per iteration of the loop, never from within.
        """
        if self._turn is None and not self._closed:
            self._turn = self._loop.call_soon(self._run_turn)

    def after_reading(self, callback: Callable[[], None]) -> None:
        """Call `callback` once all messages received by now are processed and their events are
        dispatched. Never called from within, nor after `close`."""
        self._after_reading.append((self._passes, callback))
        if self._pass is None and not self._closed:
            self._quiet_passes = 0
            self._pass = self._loop.call_soon(self._read)

    async def close(self) -> None:
        """Send what is queued, then close sockets and connections; calls are not ended."""
        if self._closed:
            return
        self._send_all()
        self._closed = True
        for handle in (self._turn, self._timer, self._pass, self._confirming):
            if handle is not None:
                handle.cancel()
        self._udp.close()
        for listener in self._listeners:
            await listener.close()
        await self._streams.close()

    # One turn: send, dispatch events (whose handlers may queue more messages), set the timer

    def _run_turn(self) -> None:
        self._turn = None
        self._send_all()
        while not self._closed and self._dispatch_events():
            self._send_all()
        self._set_timer()

    def _dispatch_events(self) -> bool:
        """Dispatch the events; returns whether there were any."""
        event = first = self.agent.next_event()
        while event is not None:
            try:
                self._on_event(event)
            except Exception:
                # An error of one handler must not affect other calls.
                logger.exception("an event of call %s was not handled", event.call_id)
            event = self.agent.next_event()
        return first is not None

    def _set_timer(self) -> None:
        due = self.agent.next_timer()
        if due is None or self._closed or self._reading_first or self._resuming:
            return
        due = min(due, self.now() + LONGEST_TIMER)
        # An earlier timer may stay: it does no harm.
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        delay = max(0.0, due - self.now())
        # Not the loop's time, which uvloop may have cached before a pause.
        self._timer_at = time.monotonic() + delay
        self._timer = self._loop.call_later(delay, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        late = time.monotonic() - self._timer_at
        if late <= READ_FIRST:
            self._fire_timers()
            return
        if late <= PAUSE_NOTICED:
            # An unread response may make the retransmission unnecessary.
            self._reading_first = True
            self.after_reading(self._resume)
            return
        logger.warning("the event loop stood still for %.1f s", late)
        self._resuming = True
        self.after_reading(self._ask_for_lease)

    def _fire_timers(self) -> None:
        try:
            self.agent.handle_timer(self.now())
        except Exception:
            # That timer was removed; others that are due fire in the next turn.
            logger.exception("a timer was not handled")
        self._run_turn()

    # After a pause

    def _read(self) -> None:
        """One of the iterations of the loop that it takes to read everything that has arrived."""
        self._pass = None
        self._passes += 1
        arrivals = self._arrivals + self._streams.arrivals
        behind = self._udp.is_behind or self._streams.behind
        quiet = arrivals == self._arrivals_seen and not behind
        self._quiet_passes = self._quiet_passes + 1 if quiet else 0
        self._arrivals_seen = arrivals
        enough = MAX_PASSES if behind else BUSY_PASSES
        if self._quiet_passes >= QUIET_PASSES:
            enough = QUIET_PASSES
        # Each counts from its own start, so that later ones do not delay it.
        ready = [each for since, each in self._after_reading if self._passes - since >= enough]
        del self._after_reading[: len(ready)]
        if self._after_reading:
            self._pass = self._loop.call_soon(self._read)
        if not ready:
            return
        self._run_turn()
        for callback in ready:
            try:
                callback()
            except Exception:
                # An error of one callback must not affect other calls.
                logger.exception("a callback after reading has failed")

    def _ask_for_lease(self) -> None:
        if self.confirm_lease is None:
            self._resume()
        else:
            self._confirming = self._loop.create_task(self._confirm(self.confirm_lease))

    async def _confirm(self, confirm: Callable[[], Awaitable[bool]]) -> None:
        asked_at = time.monotonic()
        is_ours = False
        try:
            async with asyncio.timeout(CONFIRM_WITHIN):
                is_ours = await confirm() and time.monotonic() - asked_at <= CONFIRM_WITHIN
            if not is_ours:
                logger.warning("after a pause, INVITEs are not repeated: the calls may not be ours")
        except Exception as fault:
            logger.warning("after a pause, INVITEs are not repeated: %r", fault)
        finally:  # timers must resume in any case
            if not is_ours:
                self.agent.stop_repeating_invites()
            # There may have been another pause.
            self.after_reading(self._resume)

    def _resume(self) -> None:
        self._confirming = None
        self._reading_first = self._resuming = False
        self._fire_timers()

    def _send_all(self) -> None:
        for data, destination in self.agent.withdrawn_messages():
            if (data, destination) in self._held_invites:
                self._held_invites.remove((data, destination))
            self._streams.withdraw(data, destination)
        leaving = self.agent.datagrams_to_send()
        if self._resuming:
            self._held_invites += [each for each in leaving if each[0].startswith(b"INVITE ")]
            leaving = [each for each in leaving if not each[0].startswith(b"INVITE ")]
        elif self._held_invites:
            leaving = self._held_invites + leaving
            self._held_invites = []
        at = time.time()
        for data, destination in leaving:
            if self._tap is not None:
                self._tap("out", data, destination, at)
            if destination.transport is not Transport.UDP:
                self._streams.send(data, destination)
            else:
                self._udp.send(data, destination)

    # Callbacks of the sockets

    def messages_received(self, messages: list[tuple[bytes, Address]]) -> None:
        """See `StreamUser.messages_received`."""
        self._arrivals += len(messages)
        self._receive(messages, self.agent.receive_datagram)

    def unframed_received(self, messages: tuple[bytes, ...], source: Address) -> None:
        """See `StreamUser.unframed_received`."""
        self._receive([(data, source) for data in messages], self.agent.receive_unframed)

    def _receive(
        self,
        messages: list[tuple[bytes, Address]],
        receive: Callable[[bytes, Address, float], None],
    ) -> None:
        now, at = self.now(), time.time()
        for data, source in messages:
            if self._tap is not None:
                self._tap("in", data, source, at)
            try:
                receive(data, source, now)
            except Exception:
                # An error with one message must not affect other calls.
                logger.exception("a message from %s was not handled", source.host)
        self.flush()

    def delivery_errors(self, errors: list[DeliveryError]) -> None:
        """See `DatagramUser.delivery_errors`."""
        for error in errors:
            self.agent.receive_delivery_error(error.quoted, error.destination)
        self.flush()

    def delivery_failed(
        self,
        destination: Address,
        *,
        lost: bool = False,
        unacknowledged: Container[bytes] | None = None,
        moved: Container[bytes] = (),
    ) -> None:
        """See `StreamUser.delivery_failed`."""
        try:
            self.agent.transport_failed(
                destination, self.now(), lost=lost, unacknowledged=unacknowledged, moved=moved
            )
        except Exception:
            logger.exception("the failure of %s was not handled", destination.host)
        self.flush()


def _bind(bind: HostPort, *, with_tls: bool) -> list[socket.socket]:
    """Sockets for UDP and TCP at `bind`, and for TLS at the next port."""
    host, wanted = bind
    if with_tls and wanted >= MAX_PORT:
        raise OSError(f"the port for TLS would be {wanted + 1}: use a lower one for SIP")
    for tries_left in reversed(range(1 if wanted else TRIES)):
        udp = datagram_socket(bind)
        sockets = [udp]
        try:
            port = int(udp.getsockname()[1])
            sockets.append(listening_socket((host, port)))
            if with_tls:
                sockets.append(listening_socket((host, port + 1)))
        # OverflowError: the free port may be 65535.
        except (OSError, OverflowError):
            for sock in sockets:
                sock.close()
            if not tries_left:
                raise
            continue
        return sockets
    raise AssertionError("the last try returns or raises")
