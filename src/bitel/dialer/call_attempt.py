"""One attempt under way: its INVITE, its media session, and the result that it ends in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Literal, Protocol

from bitel.dialer.media_session import MediaAddresses, MediaSession, Resolve
from bitel.dialer.trunk import shown
from bitel.dialing.dialer import DialRequest, OnRinging
from bitel.domain.attempts import (
    IRREGULARITIES,
    AttemptResult,
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
"""Seconds by which the two clocks must differ after an attempt for its times to be moved."""


class CallAttempt:
    """Collects the facts of one attempt. Times are Unix seconds by `clock`.

    The time between them is measured by `monotonic`, so that neither the bill nor the ring time
    depends on a clock that is set or suspended meanwhile.
    """

    __slots__ = (
        "_begun",
        "_clock",
        "_monotonic",
        "_rang",
        "_ring_timeout",
        "answered_at",
        "called_off",
        "hung_up_at",
        "left_at",
        "leg",
        "order",
        "port",
        "started_at",
        "stopped_at",
        "talk",
    )

    def __init__(
        self,
        order: DialRequest,
        ring_timeout: float,
        clock: Callable[[], float],
        rang: OnRinging,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._rang: OnRinging | None = rang
        self._ring_timeout = ring_timeout
        self._begun = monotonic()
        self.order = order
        self.started_at = clock()
        self.answered_at: float | None = None
        self.left_at: float | None = None
        """When the call began to end during playback, unless we hung up."""
        self.hung_up_at: float | None = None
        """When we first sent BYE or CANCEL."""
        self.stopped_at: float | None = None
        """When the stream to the far end had ended."""
        self.port: int | None = None
        """The local RTP port."""
        self.leg: CallLeg | None = None
        """The latest INVITE, pending or over."""
        self.called_off = False
        self.talk: MediaSession | None = None
        """The audio that is played since the answer."""

    def now(self) -> float:
        """The time, as `started_at` and the others are measured."""
        return self.started_at + self._monotonic() - self._begun

    def rings_for(self) -> float:
        """Seconds that are left for ringing, over all trunks that are tried, 0 or more."""
        return max(0.0, self._begun + self._ring_timeout - self._monotonic())

    def ringing(self) -> None:
        """Report that the phone rings, the first time that this is called."""
        if self._rang is not None:
            self._rang(self.now())
            self._rang = None

    def call_is_ending(self, _: object) -> None:
        """Stop the playback, if there is any, and note the time."""
        if self.talk is not None and not self.talk.over.done():
            self.left_at = self.now()
            self.talk.stop()

    def over(
        self,
        outcome: Outcome,
        detail: str = "",
        sip_code: int | None = None,
        q850: int | None = None,
        ended_by: Literal["", "far", "us"] = "",
    ) -> AttemptResult:
        """The result of the attempt. Texts for its irregularities are appended to `detail`."""
        now = self.now()
        irregularities = self._irregularities()
        sentences = [IRREGULARITIES[each] for each in irregularities]
        # The two differ where the machine was suspended, which `monotonic` does not count.
        step = self._clock() - now
        step = step if abs(step) >= STEP else 0.0
        return AttemptResult(
            outcome,
            self.started_at + step,
            self._ended_at(now) + step,
            None if self.answered_at is None else self.answered_at + step,
            sip_code,
            q850,
            ended_by,
            "; ".join([detail, *sentences] if detail else sentences),
            self._media(),
            irregularities=irregularities,
        )

    def _media(self) -> Media | None:
        talk, leg = self._finished_talk, self.leg
        return None if talk is None or leg is None else talk.media(leg.digits, leg.digits_at)

    @property
    def _ended(self) -> Ended | None:
        """How the call ended, if it was answered and has."""
        leg = self.leg
        return leg.ended.result() if leg is not None and leg.ended.done() else None

    @property
    def _finished_talk(self) -> MediaSession | None:
        return self.talk if self.talk is not None and self.talk.over.done() else None

    def _ended_at(self, now: float) -> float:
        """When an answered call ended, up to which it is billed; now for one without an answer.

        That is when either side hung up or, where our BYE got no response, when the far end's RTP
        had stopped, if that was earlier.
        """
        if self.answered_at is None:
            return now
        ended_at = min(at for at in (self.left_at, self.hung_up_at, now) if at is not None)
        ended, talk = self._ended, self._finished_talk
        if ended is not None and ended.bye_unanswered and talk is not None:
            ended_at = min(ended_at, (self.stopped_at or now) - talk.silent_for)
        return max(ended_at, self.answered_at)

    def _irregularities(self) -> tuple[Irregularity, ...]:
        if self.answered_at is None:
            return ()
        ended, talk = self._ended, self._finished_talk
        found = {
            Irregularity.BYE_UNANSWERED: ended is not None and ended.bye_unanswered,
            Irregularity.ACK_LOST: ended is not None and ended.ack_lost,
            Irregularity.MEDIA_FROM_ELSEWHERE: talk is not None and talk.came_from_elsewhere,
            Irregularity.ADDRESS_NOT_FOLLOWED: (ended is not None and ended.unfollowed)
            or (talk is not None and talk.unfollowed),
            Irregularity.MEDIA_STOPPED: talk is not None and talk.is_stopped,
        }
        return tuple(kind for kind, is_found in found.items() if is_found)

    def broken(self) -> AttemptResult:
        """The result of an attempt that was ended by an unexpected error in the dialer.

        A call that may have been played something is not made again; one without an INVITE spends
        no retry.
        """
        detail = "an error inside the dialer"
        decided = None
        if self.leg is not None and self.leg.decided.done():
            decided = self.leg.decided.result()
        if self.talk is not None:
            return self.over(Outcome.CUT_OFF, detail, 200, ended_by="us")
        if isinstance(decided, Answered):
            # The phone was picked up: the call must not be repeated without limit.
            return self.over(Outcome.RANG_THEN_FAILED, detail, 200, ended_by="us")
        if isinstance(decided, Failed):
            return self.over(self._outcome(decided), f"{decided.code}; then {detail}", decided.code)
        return self.over(Outcome.NOT_PLACED if self.leg is None else Outcome.UNCERTAIN, detail)

    def failed(self, failed: Failed, at: Address) -> AttemptResult:
        """The report of an attempt whose INVITE, sent to `at`, ended without an answer.

        Where a response from a source that is not accepted was dropped, a phone may have rung: the
        call must not be repeated as if nothing had arrived.
        """
        outcome, detail = self._outcome(failed), _detail(failed, at)
        dropped_from = None if self.leg is None else self.leg.dropped_from
        if outcome is Outcome.TRUNK_TROUBLE and dropped_from is not None:
            outcome = Outcome.UNCERTAIN
            detail += f", but responses came from {shown(dropped_from)}, which accept_from lacks"
        return self.over(
            outcome,
            detail=detail,
            sip_code=failed.code,
            q850=failed.q850,
            ended_by="us" if failed.why == "canceled" else "far",
        )._replace(is_pending=failed.why == "timeout")

    def _outcome(self, failed: Failed) -> Outcome:
        if failed.why == "canceled":
            if self.called_off:
                return Outcome.CALLED_OFF
            # A carrier that has not said a word in all that time has rung no phone.
            is_silent = not failed.rang and failed.progress_for is None
            return Outcome.TRUNK_TROUBLE if is_silent else Outcome.NO_ANSWER
        if failed.why == "media":
            return Outcome.MEDIA_MISMATCH
        if self.called_off and failed.code == 487:
            return Outcome.CALLED_OFF
        return classify(
            failed.code,
            failed.q850,
            rang=failed.rang,
            progress_for=failed.progress_for,
            delivered=failed.delivered,
            analytics=failed.analytics,
        )


def _detail(failed: Failed, at: Address) -> str:
    # Without a response the code is our own, and means little to an operator.
    if failed.why == "transport":
        return f"{shown(at)} can't be reached"
    if failed.why == "timeout":
        return f"{shown(at)} answered nothing"
    return f"{failed.code} {failed.reason}".strip()


class CallLeg:
    """Collects the events of one call; a dialer awaits its two futures and follows its media."""

    __slots__ = (
        "_addresses",
        "_follow",
        "_media",
        "_ringing",
        "address",
        "call_id",
        "decided",
        "digits",
        "digits_at",
        "dropped_from",
        "ended",
        "ending",
    )

    def __init__(
        self, call_id: str, address: Address, ringing: Callable[[], None], resolve: Resolve
    ) -> None:
        """The INVITE was sent to `address`. `resolve` looks up the host names in the far end's
        session descriptions."""
        loop = asyncio.get_running_loop()
        self._addresses = MediaAddresses(resolve)
        self.call_id = call_id
        self.address = address
        self._ringing: Callable[[], None] | None = ringing
        self.decided: asyncio.Future[Answered | Failed] = loop.create_future()
        self.ending: asyncio.Future[None] = loop.create_future()
        """Done when the call begins to end other than by us: playback must stop."""
        self.ended: asyncio.Future[Ended] = loop.create_future()
        self.digits = ""
        """The digits received by INFO."""
        self.digits_at: float | None = None
        """When the first of them was received, by CLOCK_MONOTONIC."""
        self.dropped_from: Address | None = None
        """Where a response came from that was dropped, as its source is not accepted."""
        self._media: MediaChanged | None = None
        self._follow: Callable[[MediaChanged], None] | None = None

    async def resolved(self, agreed: NegotiatedMedia) -> NegotiatedMedia:
        """`agreed` with an IP address to send to; raises FarEndError where its host has none."""
        return await self._addresses.resolved(agreed)

    def close(self) -> None:
        """Cancel pending look-ups: the call is over."""
        self._addresses.close()

    def follow_media(self, follow: Callable[[MediaChanged], None]) -> None:
        """Call `follow` with each change of the media; at once if there has been one."""
        self._follow = follow
        if self._media is not None:
            follow(self._media)

    def receive(self, event: Event) -> None:
        """Take note of an event of this call; those that decide nothing are passed over."""
        match event:
            case Answered() | Failed() if not self.decided.done():
                self._ringing = None  # it refers to the attempt, and that to this leg
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
            case _:
                pass

    def _begin_to_end(self) -> None:
        if not self.ending.done():
            self.ending.set_result(None)

    def _change_media(self, changed: MediaChanged) -> None:
        self._media = changed
        if self._follow is not None:
            self._follow(changed)


class CallObserver(Protocol):
    """Must be quick, and must not raise: it is called for every message."""

    def invited(self, order: DialRequest, sip_call_id: str) -> None:
        """An INVITE for `order` is about to leave; an attempt may have several."""

    def tap(
        self, direction: Literal["in", "out"], data: bytes, address: Address, at: float, /
    ) -> None:
        """A datagram came or leaves; `at` is in Unix seconds."""

    def over(self, order: DialRequest, attempted: AttemptResult | None) -> None:
        """The attempt has ended; None where it was cancelled.

        One may end without an INVITE: there may have been nothing to play.
        """
