"""The SIP trunk dialer: trunk failover, INVITE, playback over RTP, and BYE."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import chain

import structlog

from bitel.answering_machine import DetectionProcess
from bitel.dialer.call_attempt import CallAttempt, CallLeg, CallObserver
from bitel.dialer.caller_identity import CallerIds, Identity, dialled_number, identity
from bitel.dialer.config import SipTrunkConfig
from bitel.dialer.failover import Dialled, Route
from bitel.dialer.local_address import LocalAddress
from bitel.dialer.machine_watch import MachineWatch
from bitel.dialer.media_session import LAWS, MediaSession, check_address
from bitel.dialer.menu_session import MenuClips, MenuSession
from bitel.dialer.playlist import Playlist, PlaylistSource
from bitel.dialer.resolver import Resolver
from bitel.dialer.trunk import Trunk, shown
from bitel.dialer.trunk_monitor import (
    RESTART_PAUSE,
    AcceptedSources,
    Passed,
    TrunkMonitor,
    TrunkState,
)
from bitel.dialing.dialer import Dialer, OnAnswered, OnRinging, ignore_ringing
from bitel.dialing.recording_faults import RecordingFaults
from bitel.domain.attempts import AttemptResult, DialRequest, Outcome
from bitel.domain.machines import MachineDetection
from bitel.domain.pricing import DEFAULT_HOLD, longest_call
from bitel.errors import BitelError, InvalidRequestError, NotFoundError, UnavailableError
from bitel.g711 import SAMPLE_RATE
from bitel.observability.logging import LineLimit
from bitel.rtp.stream_spec import OnKeys
from bitel.rtp.streamer import (
    NoPortError,
    RemoteAddressError,
    SenderFailedError,
    Streamer,
    StreamerStats,
)
from bitel.sip import (
    AgentConfig,
    Answered,
    DeliveryDoubted,
    Ended,
    Event,
    Failed,
    Incoming,
    Invitation,
    MessageDropped,
    RequestDone,
    UserAgent,
)
from bitel.sip.grammar import Address
from bitel.sip.sdp import NegotiatedMedia, make_offer
from bitel.sip_transport.tls import TlsFileError
from bitel.sip_transport.transport import SipTransport
from bitel.supervision import keep_running

__all__ = ["SipTrunkConfig", "SipTrunkDialer"]

DROPPED_PER_SECOND = 1.0
DROPPED_BURST = 20.0
"""Limit of log lines about dropped messages for running calls."""
SILENCE = 2.5
"""Seconds without a report after which an RTP sender counts as hanging."""
EXPIRES_MARGIN = 5
"""Seconds added to the ring timeout in Expires: the remote stops ringing by itself if this process
dies (RFC 3261 §13.3.1)."""

log = structlog.get_logger(__name__)


class SipTrunkDialer(Dialer):
    """A Dialer with one SIP port and one or more RTP sender processes.

    `clock` gives Unix seconds for stored times, `system_clock` for dates in metrics.
    """

    def __init__(
        self,
        config: SipTrunkConfig,
        playlists: PlaylistSource,
        clock: Callable[[], float],
        observer: CallObserver | None = None,
        resolver: Resolver | None = None,
        recording_faults: RecordingFaults | None = None,
        system_clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        """The current configuration; see `change`."""
        self._recording_faults = recording_faults or RecordingFaults("", time.monotonic)
        self._playlists = playlists
        self._clock = clock
        self._legs: dict[str, CallLeg] = {}
        self._attempts: dict[str, CallAttempt] = {}
        self._transport: SipTransport | None = None
        self.streamer = Streamer(
            config.bind[0], config.rtp_ports, processes=config.senders, receive=config.receive
        )
        self.streamer.on_failure = self._sender_failed
        self._observer = observer
        self._detection = DetectionProcess()
        self._trunks = TrunkMonitor(config, system_clock, resolver)
        self._sources = AcceptedSources(config.accept_from, self._trunks.is_of_trunk)
        self.invites = 0
        """INVITEs sent, without retransmissions: one for each trunk address and attempt."""
        self._dropped = LineLimit(DROPPED_PER_SECOND, DROPPED_BURST)
        self._caller_ids = CallerIds(config.caller_pool, config.caller_ids)
        self._local = LocalAddress(config.bind[0], config.public_address, self._trunks.any_address)
        self._following: asyncio.Task[None] | None = None
        self.confirm_lease: Callable[[], Awaitable[bool]] | None = None
        """Checks that this process still owns its calls; set before `start`, or never."""
        self.has_lease: Callable[[], bool] = lambda: True
        """Whether an INVITE may be sent now."""
        self.opt_out: Callable[[str], Awaitable[None]] = _forget_opt_out
        """Puts the number of an attempt on the do-not-call list; returns once it is durable."""
        self.registers: Callable[[], bool] = lambda: True
        """Whether it is the task of this worker to register, if the configuration says so."""

    @property
    def address(self) -> str:
        """Where SIP is spoken from, as "host:port"; empty before `start`."""
        if self._transport is None:
            return ""
        host, port = self._transport.agent.config.local
        return f"{host}:{port}"

    @property
    def up(self) -> bool:
        """See `Dialer.up`."""
        return self._transport is not None and self._trunks.up

    @property
    def probing(self) -> bool:
        """See `Dialer.probing`."""
        return self._transport is not None and self._trunks.probing

    @property
    def paused_reason(self) -> str:
        """See `Dialer.paused_reason`."""
        return self._trunks.paused_reason

    @property
    def has_worked(self) -> bool:
        """See `Dialer.has_worked`."""
        return self._trunks.has_worked

    def assume_worked(self) -> None:
        """See `Dialer.assume_worked`."""
        self._trunks.assume_worked()

    def assume_paused(self, reason: str) -> None:
        """See `Dialer.assume_paused`."""
        self._trunks.assume_paused(reason)

    def trunks(self) -> Sequence[TrunkState]:
        """The state of each trunk address, from memory."""
        return self._trunks.trunks()

    @property
    def behind(self) -> float:
        """Seconds for which SIP messages have been waiting to be read; 0 if none are."""
        return 0.0 if self._transport is None else self._transport.behind

    def renew_certificate(self) -> None:
        """Reload the TLS certificate for new connections.

        Raises BitelError if it can't be used; the former one then stays in use.
        """
        if self._transport is None:
            return
        try:
            self._transport.renew_certificate()
        except TlsFileError as fault:
            raise BitelError(f"SIP can't be spoken over TLS: {fault}") from fault

    def change(self, config: SipTrunkConfig) -> None:
        """Use another configuration for new calls.

        Trunks, addresses, ports, registration and the ring timeout must be the same.
        """
        self.config = config
        self._sources.accept_from(config.accept_from)
        self._caller_ids = CallerIds(config.caller_pool, config.caller_ids)

    async def start(self) -> None:
        """Bind the SIP sockets and start the senders. Raises BitelError."""
        host, port = self.config.bind
        try:
            address = await self._local.find()
            self._transport = SipTransport(
                self.config.bind,
                lambda local: UserAgent(
                    AgentConfig(
                        local=(address, self.config.public_port or local[1]),
                        t1=self.config.t1,
                        tcp_fallback=self.config.tcp_fallback,
                        send_to_source=self.config.send_to_source,
                        follow_private=self.config.follow_private,
                    ),
                    sources=self._sources,
                ),
                self._receive,
                tap=self._observer.tap if self._observer else None,
                tls=self.config.tls,
                confirm_lease=self.confirm_lease,
                accepts=self._sources.accepts,
            )
        except OSError as fault:
            raise BitelError(f"SIP can't be spoken from {host}:{port}: {fault}") from fault
        except TlsFileError as fault:
            raise BitelError(f"SIP can't be spoken over TLS: {fault}") from fault
        await self.streamer.start()
        self._trunks.registers = self.registers
        self._trunks.start(self._transport, self._address_is_silent)
        follow = partial(self._local.follow, self._move)
        self._following = asyncio.create_task(
            keep_running("follow our address", follow, RESTART_PAUSE)
        )

    async def close(self) -> None:
        """Remove registrations, stop the RTP senders, close the socket."""
        if self._following is not None:
            self._following.cancel()
        await self._trunks.stop()
        await self._detection.close()
        await self.streamer.stop()
        if self._transport is not None:
            await self._transport.close()
            self._transport = None

    async def dial(
        self, request: DialRequest, on_answered: OnAnswered, on_ringing: OnRinging = ignore_ringing
    ) -> AttemptResult:
        """See `Dialer.dial`."""
        attempt = CallAttempt(request, self.config.ring_timeout, self._clock, on_ringing)
        self._attempts[request.attempt_id] = attempt
        result: AttemptResult | None = None
        try:
            result = await self._prepare_and_call(attempt, on_answered)
        except Exception:
            log.exception("attempt_broke", attempt=request.attempt_id, call=request.call_id)
            self._abort(attempt)
            result = attempt.broken()
        finally:
            if result is None:  # cancelled
                self._abort(attempt)
            if attempt.port is not None:
                self.streamer.release_port(attempt.port)
            self._forget_leg(attempt)
            del self._attempts[request.attempt_id]
            if self._observer:
                self._observer.over(request, result)
        return result

    def cancel(self, attempt_id: str) -> None:
        """See `Dialer.cancel`."""
        attempt = self._attempts.get(attempt_id)
        if attempt is not None:
            attempt.canceled = True
            if attempt.media_session is not None:
                # At once, even if the remote is slow to answer our BYE.
                attempt.media_session.stop()
            self._hang_up(attempt)

    def abandon(self, attempt_id: str) -> None:
        """See `Dialer.abandon`."""
        # After a pause of the process a final response may have arrived, which counts.
        if self._transport is not None:
            self._transport.after_reading(partial(self._abandon, attempt_id))

    def _abandon(self, attempt_id: str) -> None:
        attempt = self._attempts.get(attempt_id)
        if attempt is None:
            return
        if attempt.leg is not None:
            if attempt.answered_at is None and not attempt.rings_for():
                # It has rung for all of its time, which a timer was late to find.
                self._stop_ringing(attempt.leg)
                return
            self._sip.agent.cancel(attempt.leg.call_id, self._sip.now(), repeat=False)
        self.cancel(attempt_id)

    async def _prepare_and_call(
        self, attempt: CallAttempt, on_answered: OnAnswered
    ) -> AttemptResult:
        try:
            playlists, of_menu, to_machine = await self._find_playlists(attempt.request)
            port = attempt.port = self.streamer.open_port()
            of_menus = chain(*(clips.values() for clips in of_menu.values()))
            every = chain(*playlists.values(), of_menus, *to_machine.values())
            await self.streamer.prepare(port, every)
        except (NotFoundError, InvalidRequestError) as fault:
            # There is nothing to play, and a retry would not change that.
            return attempt.result(Outcome.MEDIA_MISMATCH, str(fault))
        except (NoPortError, OSError) as fault:
            return attempt.result(Outcome.TRUNK_TROUBLE, str(fault))
        except UnavailableError as fault:
            # A later attempt may succeed.
            return attempt.result(Outcome.NOT_PLACED, str(fault))
        answered = await self._try_trunks(attempt, port)
        if isinstance(answered, AttemptResult):
            return answered
        leg = attempt.leg
        assert leg is not None, "an answer has an INVITE behind it"
        attempt.answered_at = attempt.now()
        try:
            agreed = await leg.resolved(answered.agreed)
            check_address(self.streamer, agreed)
        except RemoteAddressError as fault:
            await self._end(attempt, leg)
            return attempt.result(Outcome.MEDIA_MISMATCH, str(fault), 200)
        if not await on_answered(attempt.answered_at):
            await self._end(attempt, leg)
            # The phone was picked up: retries must be limited.
            return attempt.result(Outcome.RANG_THEN_FAILED, "the answer could not be recorded", 200)
        self._sip.agent.acknowledge(leg.call_id, self._sip.now())
        self._sip.flush()
        playlist = playlists[agreed.codec_name]
        clips = of_menu.get(agreed.codec_name, {})
        message = to_machine.get(agreed.codec_name, ())
        return await self._play(attempt, leg, agreed, playlist, port, clips, message)

    async def _find_playlists(
        self, request: DialRequest
    ) -> tuple[Mapping[str, Playlist], Mapping[str, MenuClips], Mapping[str, Playlist]]:
        """The playlists of the request, the clips of its menu, and what a machine gets, by codec.

        Raises as `PlaylistSource.for_request` does.
        """
        codecs = self.config.codecs
        try:
            playlists = await self._playlists.for_request(request, codecs)
            of_menu: Mapping[str, MenuClips] = {}
            if request.menu is not None:
                of_menu = await self._playlists.for_menu(request.menu, codecs)
            to_machine: Mapping[str, Playlist] = {}
            if request.machine_detection is MachineDetection.MESSAGE:
                recording_id = request.machine_recording_id
                to_machine = await self._playlists.for_machine(recording_id, codecs)
        except UnavailableError as fault:
            self._recording_faults.missed(
                request, f"{fault} ({fault.__cause__})" if fault.__cause__ else str(fault)
            )
            raise
        self._recording_faults.found(request)
        return playlists, of_menu, to_machine

    async def _play(
        self,
        attempt: CallAttempt,
        leg: CallLeg,
        agreed: NegotiatedMedia,
        playlist: Playlist,
        port: int,
        of_menu: MenuClips,
        to_machine: Playlist,
    ) -> AttemptResult:
        """Play until the playlist or the call ends, and end the call."""
        if leg.ending.done() or attempt.canceled:
            # The call ended while the answer was being persisted.
            return await self._finish(attempt, leg, played=False)
        media = attempt.media_session = MediaSession(
            self.streamer,
            self.config.media_timeout,
            _longest(attempt.request, playlist),
            self.config.latch,
            "" if self.config.follow_private else leg.address.host,
        )
        answered_for = attempt.now() - (attempt.answered_at or attempt.now())
        menu, first = attempt.request.menu, playlist
        on_keys: OnKeys | None = None
        if menu is not None:
            opt_out = partial(self.opt_out, attempt.request.attempt_id)
            session = MenuSession(menu, playlist, of_menu, media.replace, opt_out)
            attempt.menu_session = session
            first, on_keys = session.begin(), session.press_rtp
        watch = self._watch_for_machine(attempt, media, agreed, playlist, to_machine)
        on_audio = None if watch is None else watch.listen
        media.begin(port, agreed, first, answered_for, on_keys, on_audio)
        if attempt.menu_session is not None:
            leg.follow_keys(attempt.menu_session.press_info)
        leg.follow_media(media.follow)
        leg.ending.add_done_callback(attempt.call_is_ending)
        report = await media.over
        if attempt.menu_session is not None:
            attempt.menu_session.finish(report.digits)
        if watch is not None:
            watch.close()
        attempt.stopped_at = attempt.now()
        if media.is_unheard:
            await self._end(attempt, leg)
            return attempt.result(Outcome.MEDIA_MISMATCH, media.why, 200, ended_by="us")
        wanted = media.why or attempt.canceled or leg.ending.done()
        if not report.finished and not wanted:
            await self._end(attempt, leg)
            return attempt.result(Outcome.INTERRUPTED, report.error, 200, ended_by="us")
        # A call that the remote held or left silent counts as answered, whatever was played.
        if report.packets != 0 or media.why:
            return await self._finish(attempt, leg, media.why)
        return await self._finish(attempt, leg, report.error, played=False)

    def _watch_for_machine(
        self,
        attempt: CallAttempt,
        media: MediaSession,
        agreed: NegotiatedMedia,
        playlist: Playlist,
        to_machine: Playlist,
    ) -> MachineWatch | None:
        mode = attempt.request.machine_detection
        if mode is None or not self.config.receive:
            return None
        # Without a recording for machines they get that of the call.
        message = to_machine[1:] or playlist
        menu = attempt.menu_session
        attempt.machine_watch = MachineWatch(
            mode,
            self._detection,
            LAWS[agreed.codec_name],
            media,
            to_machine[:1],
            message,
            (lambda: None) if menu is None else menu.stop,
        )
        return attempt.machine_watch

    async def _finish(
        self, attempt: CallAttempt, leg: CallLeg, detail: str = "", *, played: bool = True
    ) -> AttemptResult:
        """End the call if it has not ended; the result is ANSWERED.

        If we end it with nothing `played`, it is CANCELED or INTERRUPTED, and not billed.
        """
        ended = await self._end(attempt, leg)
        outcome = Outcome.ANSWERED
        if not played and ended.by == "us":
            outcome = Outcome.CANCELED if attempt.canceled else Outcome.INTERRUPTED
            detail = detail or "the call was ended before anything was played"
        return attempt.result(outcome, detail, 200, ended.q850, ended.by)

    async def _try_trunks(self, attempt: CallAttempt, port: int) -> Answered | AttemptResult:
        """Send an INVITE by one route after the other until one decides the attempt."""
        config, request = self.config, attempt.request
        number = dialled_number(request.e164, config.number_format, config.number_rules)
        caller_id = request.caller_id or self._caller_ids.choose(request.e164, request.call_id)
        caller = identity(
            caller_id,
            config.from_domain or self._local.address,
            config.identity,
            config.privacy,
            config.user_phone,
        )
        dialled = Dialled(request.e164, number, config.region)
        try:
            routes = await self._trunks.routes(
                partial(Trunk.uri_for, number=number, user_phone=config.user_phone)
            )
        except OSError as fault:
            return attempt.result(Outcome.TRUNK_TROUBLE, str(fault))
        passed: Passed = {}
        result: AttemptResult | None = None
        try:
            while routes and attempt.rings_for():
                if attempt.canceled:
                    return attempt.result(Outcome.CANCELED)
                if not self.has_lease():
                    lapsed = "the lease of the worker has lapsed"
                    return result or attempt.result(Outcome.NOT_PLACED, lapsed)
                route, *left = routes
                begun_at = self._trunks.begin(route, passed)
                if begun_at is None:
                    routes = left
                    continue
                timeout = config.trunk_timeout if left else None
                attempt.caller_id = caller_id or None
                decided = await self._invite(attempt, route, caller, port, timeout)
                self._trunks.learn(route, decided)
                if isinstance(decided, Answered):
                    answered = attempt.result(Outcome.ANSWERED)
                    self._trunks.record_outcome(route, answered, begun_at)
                    return decided
                picked_up = decided.why == "media"
                if picked_up:
                    # A 2xx without usable media: the carrier charges for it all the same.
                    attempt.answered_at = attempt.now()
                result = attempt.failed(decided, route.address)
                result = self._trunks.record_outcome(route, result, begun_at, picked_up=picked_up)
                routes, result = self._trunks.next_routes(route, decided, result, left, dialled)
        finally:
            # A probe without a result would block all further calls.
            self._trunks.leave(passed)
        return result or attempt.result(Outcome.TRUNK_TROUBLE, "no trunk takes calls now")

    async def _invite(
        self,
        attempt: CallAttempt,
        route: Route,
        caller: Identity,
        port: int,
        timeout: float | None,
    ) -> Answered | Failed:
        """Send an INVITE and wait for its final response, up to the end of the ring time.

        An address without any response is given up after `timeout` seconds, if not None.
        """
        config, sip = self.config, self._sip
        invitation = Invitation(
            request_uri=route.request_uri,
            destination=route.address,
            from_uri=caller.from_uri,
            offer=make_offer((self._local.address, port), config.codecs),
            credentials=config.credentials,
            trusted=self._trunks.hosts(route.trunk) if config.credentials else frozenset(),
            headers=(
                *config.route,
                *caller.headers,
                ("Expires", str(math.ceil(config.ring_timeout) + EXPIRES_MARGIN)),
                *config.extra_headers,
            ),
            display_name=caller.display_name,
            # Until the answer is persisted. If this process dies before, the remote ends the call
            # by itself, so that no line stays open when the call is made again.
            withhold_ack=True,
        )
        self._forget_leg(attempt)
        call_id = sip.agent.invite(invitation, sip.now())
        leg = CallLeg(call_id, route.address, attempt.ringing, self._trunks.find_host)
        attempt.leg = self._legs[call_id] = leg
        self.invites += 1
        if self._observer:
            self._observer.invited(attempt.request, call_id)
        sip.flush()
        call_later = asyncio.get_running_loop().call_later
        # An answer that has arrived by then counts, even if it is unread.
        timers = [
            call_later(attempt.rings_for(), sip.after_reading, partial(self._stop_ringing, leg))
        ]
        if timeout is not None:
            timers.append(call_later(timeout, sip.after_reading, partial(self._give_up, leg)))
        try:
            return await leg.decided
        finally:
            for timer in timers:
                timer.cancel()

    def _forget_leg(self, attempt: CallAttempt) -> None:
        if attempt.leg is not None:
            self._legs.pop(attempt.leg.call_id, None)
            attempt.leg.close()

    async def _end(self, attempt: CallAttempt, leg: CallLeg) -> Ended:
        """Hang up if need be, and wait for the end of the call."""
        if not leg.ended.done():
            self._hang_up(attempt)
        return await leg.ended

    def _hang_up(self, attempt: CallAttempt) -> None:
        """Send BYE, or CANCEL before the answer."""
        if attempt.leg is None:
            return
        if attempt.hung_up_at is None:
            attempt.hung_up_at = attempt.now()
        self._sip.agent.hang_up(attempt.leg.call_id, self._sip.now())
        self._sip.flush()

    def _abort(self, attempt: CallAttempt) -> None:
        """End the call after an error, so that no phone rings on and no line stays open."""
        try:
            if attempt.media_session is not None:
                attempt.media_session.stop()
            if attempt.leg is not None and self._transport is not None:
                self._hang_up(attempt)
        except Exception:
            log.exception("attempt_not_aborted", attempt=attempt.request.attempt_id)

    def _stop_ringing(self, leg: CallLeg) -> None:
        # Stop retransmissions: a phone might begin to ring.
        self._sip.agent.cancel(leg.call_id, self._sip.now(), repeat=False)
        self._sip.flush()

    def _give_up(self, leg: CallLeg) -> None:
        self._sip.agent.give_up(leg.call_id, self._sip.now())
        self._sip.flush()

    def _address_is_silent(self, address: Address) -> None:
        """Give up unanswered INVITEs to `address`, so that the next address is tried."""
        for leg in list(self._legs.values()):
            if leg.address == address and not leg.decided.done():
                self._sip.after_reading(partial(self._give_up, leg))

    def _receive(self, event: Event) -> None:
        if isinstance(event, DeliveryDoubted):
            self._trunks.doubt(event.destination)
            return
        if isinstance(event, MessageDropped):
            self._note_dropped(event)
        leg = self._legs.get(event.call_id)
        if leg is not None:
            leg.receive(event)
        elif isinstance(event, RequestDone):
            self._local.compare(event)
            self._trunks.receive(event)
        elif isinstance(event, Incoming):
            # Incoming calls are not supported.
            self._sip.agent.reject(event.call_id, 480, self._sip.now())
            self._sip.flush()

    def _note_dropped(self, event: MessageDropped) -> None:
        """Log a message for a running call that was dropped because of its source."""
        left_out = self._dropped.take()
        if left_out is None:
            return
        log.warning(
            "sip_message_dropped",
            source=shown(event.source),
            kind="response" if event.is_response else "request",
            sip_call_id=event.call_id,
            not_logged=left_out,
        )

    @property
    def messages_dropped(self) -> tuple[int, int]:
        """Dropped SIP messages from sources that are not accepted: all, and those for calls."""
        if self._transport is None:
            return 0, 0
        counts = self._transport.agent.counts()
        return counts.from_elsewhere, counts.from_elsewhere_for_calls

    def _sender_failed(self, error: SenderFailedError) -> None:
        log.error(
            "rtp_sender_failed",
            fault=str(error),
            pid=error.pid,
            status=error.status,
            streams=error.streams,
        )

    def _move(self, address: str) -> None:
        """Use a new local address for new calls and registrations."""
        agent = self._sip.agent
        agent.move((address, agent.config.local[1]))
        self._trunks.move()

    @property
    def _sip(self) -> SipTransport:
        assert self._transport is not None, "the dialer is not started"
        return self._transport


async def _forget_opt_out(attempt_id: str) -> None:
    """Without a database there is no do-not-call list."""


def packets_late(stats: StreamerStats) -> float:
    """The 90th percentile of the lateness of RTP packets in the last half second, in ms.

    0 if nothing plays. A percentile, because overload makes many packets late, unlike a single
    pause of the machine.
    """
    if stats.reported_ago > SILENCE:
        return stats.reported_ago * 1000
    return stats.p90_ms if stats.running else 0.0


def _longest(request: DialRequest, playlist: Playlist) -> int:
    """The longest duration of a call in seconds, at least that of its playlist."""
    seconds = sum(clip.size for clip in playlist) / SAMPLE_RATE
    hold = 0 if request.longest_seconds else DEFAULT_HOLD
    return max(request.longest_seconds, longest_call(seconds, hold))
