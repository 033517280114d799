"""The state of one call attempt: its INVITEs, its media session and its result.

An attempt sends an INVITE (`CallLeg`) to one trunk address after the other; the last may be
answered, and then has a `MediaSession`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Literal, Protocol

from bitel.dialer.machine_watch import MachineWatch
from bitel.dialer.media_session import MediaAddresses, MediaSession, Resolve
from bitel.dialer.menu_session import MenuSession
from bitel.dialer.trunk import shown
from bitel.dialing.dialer import OnRinging
from bitel.domain.attempts import (
    IRREGULARITIES,
    AttemptResult,
    DialRequest,
    Irregularity,
    Media,
    Outcome,
    classify,
)
from bitel.rtp.telephone_event import MAX_DIGITS
from bitel.sip import (
    Answered,
    Ended,
    Ending,
    Event,
    Failed,
    KeyedDigits,
    MediaChanged,
    MessageDropped,
    Provisional,
)
from bitel.sip.grammar import Address
from bitel.sip.sdp import NegotiatedMedia

STEP: Final = 1.0
"""Difference of the two clocks, in seconds, from which the times of an attempt are corrected."""


class CallObserver(Protocol):
    """Gets each SIP message, and the attempts of INVITEs. Must be fast and must not raise."""

    def invited(self, request: DialRequest, sip_call_id: str) -> None:
        """An INVITE for `request` is about to be sent; an attempt may have several."""

    def tap(
        self, direction: Literal["in", "out"], data: bytes, address: Address, at: float, /
    ) -> None:
        """A message is received or sent; `at` is in Unix seconds."""

    def over(self, request: DialRequest, result: AttemptResult | None) -> None:
        """The attempt has ended, possibly without an INVITE; None if it was cancelled."""


class CallLeg:
    """The events of one INVITE and of its dialog."""

    def __init__(
        self, call_id: str, address: Address, ringing: Callable[[], None], resolve: Resolve
    ) -> None:
        """The INVITE was sent to `address`; `resolve` looks up host names in remote SDP."""
        loop = asyncio.get_running_loop()
        self.call_id = call_id
        self.address = address
        self._ringing: Callable[[], None] | None = ringing
        self.decided: asyncio.Future[Answered | Failed] = loop.create_future()
        """The final response."""
        self.ending: asyncio.Future[None] = loop.create_future()
        """Done when the call begins to end, unless we end it: playback must stop."""
        self.ended: asyncio.Future[Ended] = loop.create_future()
        self.digits = ""
        """The digits received by INFO."""
        self.digits_at: float | None = None
        """When the first digit was received, by CLOCK_MONOTONIC."""
        self.dropped_from: Address | None = None
        """Source of a response that was dropped because of `accept_from`."""
        self._addresses = MediaAddresses(resolve)
        self._media: MediaChanged | None = None
        self._follow: Callable[[MediaChanged], None] | None = None
        self._on_keys: Callable[[str], None] | None = None

    async def resolved(self, agreed: NegotiatedMedia) -> NegotiatedMedia:
        """`agreed` with an IP address as host; raises RemoteAddressError if there is none."""
        return await self._addresses.resolved(agreed)

    def close(self) -> None:
        """Cancel pending look-ups."""
        self._addresses.close()

    def follow_media(self, follow: Callable[[MediaChanged], None]) -> None:
        """Call `follow` with each change of the media, and at once with the last one."""
        self._follow = follow
        if self._media is not None:
            follow(self._media)

    def follow_keys(self, on_keys: Callable[[str], None]) -> None:
        """Call `on_keys` with digits received by INFO, and at once with those so far."""
        self._on_keys = on_keys
        if self.digits:
            on_keys(self.digits)

    def receive(self, event: Event) -> None:
        """Process an event of this call."""
        match event:
            case Answered() | Failed() if not self.decided.done():
                self._ringing = None  # breaks a reference cycle
                self.decided.set_result(event)
            case Provisional():
                if event.answer is not None:
                    self._addresses.prepare(event.answer)
                if 180 <= event.code <= 189 and self._ringing is not None:
                    self._ringing()
            case Ending():
                self._begin_to_end()
            case Ended() if not self.ended.done():
                self._begin_to_end()
                self.ended.set_result(event)
            case MediaChanged():
                self._addresses.follow(event, self._change_media)
            case MessageDropped() if event.is_response:
                self.dropped_from = event.source
            case KeyedDigits():
                if self.digits_at is None:
                    self.digits_at = time.monotonic()
                self.digits = (self.digits + event.digits)[:MAX_DIGITS]
                if self._on_keys is not None:
                    self._on_keys(event.digits)
            case _:
                pass

    def _begin_to_end(self) -> None:
        if not self.ending.done():
            self.ending.set_result(None)

    def _change_media(self, changed: MediaChanged) -> None:
        self._media = changed
        if self._follow is not None:
            self._follow(changed)


class CallAttempt:
    """The state and times of one attempt, in Unix seconds by `clock`.

    Durations are measured by `monotonic`, so that billing and ring time do not depend on changes of
    the clock.
    """

    def __init__(
        self,
        request: DialRequest,
        ring_timeout: float,
        clock: Callable[[], float],
        on_ringing: OnRinging,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._on_ringing: OnRinging | None = on_ringing
        self._ring_timeout = ring_timeout
        self._begun = monotonic()
        self.request = request
        self.started_at = clock()
        self.answered_at: float | None = None
        self.left_at: float | None = None
        """When the call began to end during playback, unless we ended it."""
        self.hung_up_at: float | None = None
        """When we first sent BYE or CANCEL."""
        self.stopped_at: float | None = None
        """When our RTP stream had ended."""
        self.port: int | None = None
        """The local RTP port."""
        self.leg: CallLeg | None = None
        """The latest INVITE, pending or over."""
        self.caller_id: str | None = None
        """The caller id of its INVITEs; None before the first, and for an anonymous caller."""
        self.canceled = False
        """Whether `SipTrunkDialer.call_off` was called."""
        self.media_session: MediaSession | None = None
        """The audio that is played since the answer."""
        self.menu_session: MenuSession | None = None
        """What keys do since then; None: nothing."""
        self.machine_watch: MachineWatch | None = None
        """Finds out whether a machine has answered; None: nothing does."""

    def now(self) -> float:
        """The current time on the scale of `started_at`."""
        return self.started_at + self._monotonic() - self._begun

    def rings_for(self) -> float:
        """Seconds of ring time left, over all trunks."""
        return max(0.0, self._begun + self._ring_timeout - self._monotonic())

    def ringing(self) -> None:
        """Report ringing, once."""
        if self._on_ringing is not None:
            self._on_ringing(self.now())
            self._on_ringing = None

    def call_is_ending(self, _: object) -> None:
        """Stop the playback, if any, and record the time."""
        if self.media_session is not None and not self.media_session.over.done():
            self.left_at = self.now()
            self.media_session.stop()

    def result(
        self,
        outcome: Outcome,
        detail: str = "",
        sip_code: int | None = None,
        q850: int | None = None,
        ended_by: Literal["", "far", "us"] = "",
    ) -> AttemptResult:
        """The result of the attempt; descriptions of irregularities are appended to `detail`."""
        now, leg, media = self.now(), self.leg, self.media_session
        if media is not None and not media.over.done():
            media = None
        ended = leg.ended.result() if leg is not None and leg.ended.done() else None
        irregularities = () if self.answered_at is None else _irregularities(ended, media)
        sentences = [IRREGULARITIES[each] for each in irregularities]
        # `monotonic` does not count a suspension of the machine.
        step = self._clock() - now
        step = step if abs(step) >= STEP else 0.0
        return AttemptResult(
            outcome,
            self.started_at + step,
            self._ended_at(now, ended, media) + step,
            None if self.answered_at is None else self.answered_at + step,
            sip_code,
            q850,
            ended_by,
            "; ".join([detail, *sentences] if detail else sentences),
            None if media is None or leg is None else self._media(media, leg),
            irregularities=irregularities,
            caller_id=self.caller_id,
        )

    def _media(self, media: MediaSession, leg: CallLeg) -> Media:
        found = media.media(leg.digits, leg.digits_at)
        if self.menu_session is not None:
            menu = self.menu_session
            found = found._replace(reports=menu.reports, opted_out=menu.has_opted_out)
        if self.machine_watch is not None and self.machine_watch.verdict is not None:
            found = found._replace(machine=self.machine_watch.verdict.value)
        return found

    def _ended_at(self, now: float, ended: Ended | None, media: MediaSession | None) -> float:
        """The end of an answered call for billing; now for an unanswered one.

        That is when either side hung up or, if our BYE got no response, when the remote RTP
        stopped, if that was earlier.
        """
        if self.answered_at is None:
            return now
        ended_at = min(at for at in (self.left_at, self.hung_up_at, now) if at is not None)
        if ended is not None and ended.bye_unanswered and media is not None:
            ended_at = min(ended_at, (self.stopped_at or now) - media.silent_for)
        return max(ended_at, self.answered_at)

    def broken(self) -> AttemptResult:
        """The result after an unexpected error in the dialer.

        A call that may have played something is not retried; one without an INVITE costs no retry.
        """
        detail = "an error inside the dialer"
        decided = None
        if self.leg is not None and self.leg.decided.done():
            decided = self.leg.decided.result()
        if self.media_session is not None:
            return self.result(Outcome.INTERRUPTED, detail, 200, ended_by="us")
        if isinstance(decided, Answered):
            # The phone was picked up: retries must be limited.
            return self.result(Outcome.RANG_THEN_FAILED, detail, 200, ended_by="us")
        if isinstance(decided, Failed):
            return self.result(
                self._outcome(decided), f"{decided.code}; then {detail}", decided.code
            )
        return self.result(Outcome.NOT_PLACED if self.leg is None else Outcome.UNCERTAIN, detail)

    def failed(self, failed: Failed, at: Address) -> AttemptResult:
        """The result of an attempt whose INVITE to `at` was not answered.

        If a response from a source that is not accepted was dropped, a phone may have rung: the
        outcome is uncertain.
        """
        outcome, detail = self._outcome(failed), _detail(failed, at)
        dropped_from = None if self.leg is None else self.leg.dropped_from
        if outcome is Outcome.TRUNK_TROUBLE and dropped_from is not None:
            outcome = Outcome.UNCERTAIN
            detail += f", but responses came from {shown(dropped_from)}, which accept_from lacks"
        return self.result(
            outcome,
            detail=detail,
            sip_code=failed.code,
            q850=failed.q850,
            ended_by="us" if failed.why == "canceled" else "far",
        )._replace(is_pending=failed.why == "timeout")

    def _outcome(self, failed: Failed) -> Outcome:
        if failed.why == "canceled":
            if self.canceled:
                return Outcome.CANCELED
            # Without any response, no phone has rung.
            is_silent = not failed.rang and failed.progress_for is None
            return Outcome.TRUNK_TROUBLE if is_silent else Outcome.NO_ANSWER
        if failed.why == "media":
            return Outcome.MEDIA_MISMATCH
        if self.canceled and failed.code == 487:
            return Outcome.CANCELED
        return classify(
            failed.code,
            failed.q850,
            rang=failed.rang,
            progress_for=failed.progress_for,
            delivered=failed.delivered,
            analytics=failed.analytics,
        )


def _irregularities(ended: Ended | None, media: MediaSession | None) -> tuple[Irregularity, ...]:
    """Problems of an answered call that do not change its outcome."""
    found = {
        Irregularity.BYE_UNANSWERED: ended is not None and ended.bye_unanswered,
        Irregularity.ACK_LOST: ended is not None and ended.ack_lost,
        Irregularity.MEDIA_FROM_ELSEWHERE: media is not None and media.came_from_elsewhere,
        Irregularity.ADDRESS_NOT_FOLLOWED: (ended is not None and ended.unfollowed)
        or (media is not None and media.unfollowed),
        Irregularity.MEDIA_STOPPED: media is not None and media.is_stopped,
    }
    return tuple(kind for kind, is_found in found.items() if is_found)


def _detail(failed: Failed, at: Address) -> str:
    # Without a response the code is our own, and tells an operator little.
    if failed.why == "transport":
        return f"{shown(at)} can't be reached"
    if failed.why == "timeout":
        return f"{shown(at)} answered nothing"
    return f"{failed.code} {failed.reason}".strip()
