"""State tables of the four transactions (RFC 3261 §17, with the Accepted state of RFC 6026).

Each table maps (state, input) to (new state, actions); a missing pair is ignored. Timers have the
letters of the RFC. A transaction runs at most one timer of each kind: A, E and G retransmit; B, F
and H time out, and D, I, J, K, L and M end the wait for retransmissions. Starting a timer replaces
the one of its kind. Entering TERMINATED stops both.

Over TCP and TLS there are no retransmissions: A, E and G never run, and D, I, J and K are zero, so
that states that only wait for them are skipped. Those tables are derived from the others.

As in the RFC, the transaction user retransmits and acknowledges a 2xx to INVITE.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """States of a transaction."""

    CALLING = "calling"
    TRYING = "trying"
    PROCEEDING = "proceeding"
    COMPLETED = "completed"
    ACCEPTED = "accepted"
    CONFIRMED = "confirmed"
    TERMINATED = "terminated"


class Input(StrEnum):
    """Inputs. Responses are received by client and sent by server transactions."""

    PROVISIONAL = "1xx"
    SUCCESS = "2xx"
    FAILURE = "300-699"
    REQUEST = "request repeated"
    ACK = "ACK"
    TRANSPORT_FAILED = "transport failed"
    TIMER_A = "A"
    TIMER_B = "B"
    TIMER_D = "D"
    TIMER_E = "E"
    TIMER_F = "F"
    TIMER_G = "G"
    TIMER_H = "H"
    TIMER_I = "I"
    TIMER_J = "J"
    TIMER_K = "K"
    TIMER_L = "L"
    TIMER_M = "M"


class Action(StrEnum):
    """A step of a transition, in order."""

    SEND = "send the response"
    RESEND = "retransmit the last message"
    ACK = "send the ACK of a failure"
    DELIVER = "pass the response to the user"
    REPORT_TIMEOUT = "report a timeout to the user"
    REPORT_TRANSPORT = "report a transport error to the user"
    STOP_REPEATING = "stop A, E or G"
    STOP_TIMERS = "stop both timers"
    START_A = "A"
    START_B = "B"
    START_D = "D"
    START_E = "E"
    START_F = "F"
    START_G = "G"
    START_H = "H"
    START_I = "I"
    START_J = "J"
    START_K = "K"
    START_L = "L"
    START_M = "M"


Table = dict[tuple[State, Input], tuple[State, tuple[Action, ...]]]

S, X, A = State, Input, Action

INVITE_CLIENT: Table = {
    (S.CALLING, X.TIMER_A): (S.CALLING, (A.RESEND, A.START_A)),
    (S.CALLING, X.TIMER_B): (S.TERMINATED, (A.REPORT_TIMEOUT,)),
    (S.CALLING, X.TRANSPORT_FAILED): (S.TERMINATED, (A.REPORT_TRANSPORT,)),
    (S.CALLING, X.PROVISIONAL): (S.PROCEEDING, (A.STOP_TIMERS, A.DELIVER)),
    (S.CALLING, X.SUCCESS): (S.ACCEPTED, (A.STOP_REPEATING, A.START_M, A.DELIVER)),
    (S.CALLING, X.FAILURE): (S.COMPLETED, (A.STOP_REPEATING, A.ACK, A.START_D, A.DELIVER)),
    (S.PROCEEDING, X.PROVISIONAL): (S.PROCEEDING, (A.DELIVER,)),
    (S.PROCEEDING, X.SUCCESS): (S.ACCEPTED, (A.START_M, A.DELIVER)),
    (S.PROCEEDING, X.FAILURE): (S.COMPLETED, (A.ACK, A.START_D, A.DELIVER)),
    (S.COMPLETED, X.FAILURE): (S.COMPLETED, (A.ACK,)),
    (S.COMPLETED, X.TIMER_D): (S.TERMINATED, ()),
    (S.ACCEPTED, X.SUCCESS): (S.ACCEPTED, (A.DELIVER,)),
    (S.ACCEPTED, X.TIMER_M): (S.TERMINATED, ()),
}
"""§17.1.1 and RFC 6026 §7.2. A transport error counts only before any response: after a 1xx the
INVITE is no longer sent, so the error is about something else."""

NON_INVITE_CLIENT: Table = {
    (S.TRYING, X.TIMER_E): (S.TRYING, (A.RESEND, A.START_E)),
    (S.TRYING, X.TIMER_F): (S.TERMINATED, (A.REPORT_TIMEOUT,)),
    (S.TRYING, X.TRANSPORT_FAILED): (S.TERMINATED, (A.REPORT_TRANSPORT,)),
    (S.TRYING, X.PROVISIONAL): (S.PROCEEDING, (A.DELIVER,)),
    (S.TRYING, X.SUCCESS): (S.COMPLETED, (A.STOP_REPEATING, A.START_K, A.DELIVER)),
    (S.TRYING, X.FAILURE): (S.COMPLETED, (A.STOP_REPEATING, A.START_K, A.DELIVER)),
    (S.PROCEEDING, X.TIMER_E): (S.PROCEEDING, (A.RESEND, A.START_E)),
    (S.PROCEEDING, X.TIMER_F): (S.TERMINATED, (A.REPORT_TIMEOUT,)),
    (S.PROCEEDING, X.TRANSPORT_FAILED): (S.TERMINATED, (A.REPORT_TRANSPORT,)),
    (S.PROCEEDING, X.PROVISIONAL): (S.PROCEEDING, (A.DELIVER,)),
    (S.PROCEEDING, X.SUCCESS): (S.COMPLETED, (A.STOP_REPEATING, A.START_K, A.DELIVER)),
    (S.PROCEEDING, X.FAILURE): (S.COMPLETED, (A.STOP_REPEATING, A.START_K, A.DELIVER)),
    (S.COMPLETED, X.TIMER_K): (S.TERMINATED, ()),
}
"""§17.1.2."""

INVITE_SERVER: Table = {
    (S.PROCEEDING, X.REQUEST): (S.PROCEEDING, (A.RESEND,)),
    (S.PROCEEDING, X.PROVISIONAL): (S.PROCEEDING, (A.SEND,)),
    (S.PROCEEDING, X.SUCCESS): (S.ACCEPTED, (A.SEND, A.START_L)),
    (S.PROCEEDING, X.FAILURE): (S.COMPLETED, (A.SEND, A.START_G, A.START_H)),
    (S.COMPLETED, X.REQUEST): (S.COMPLETED, (A.RESEND,)),
    (S.COMPLETED, X.TIMER_G): (S.COMPLETED, (A.RESEND, A.START_G)),
    (S.COMPLETED, X.TIMER_H): (S.TERMINATED, ()),
    (S.COMPLETED, X.ACK): (S.CONFIRMED, (A.STOP_REPEATING, A.START_I)),
    (S.CONFIRMED, X.TIMER_I): (S.TERMINATED, ()),
    (S.ACCEPTED, X.TIMER_L): (S.TERMINATED, ()),
}
"""§17.2.1 and RFC 6026 §7.1. A failure without ACK (timer H) is not reported to the user. An INVITE
retransmitted in Accepted is absorbed, because the user retransmits the 2xx."""

NON_INVITE_SERVER: Table = {
    (S.TRYING, X.PROVISIONAL): (S.PROCEEDING, (A.SEND,)),
    (S.TRYING, X.SUCCESS): (S.COMPLETED, (A.SEND, A.START_J)),
    (S.TRYING, X.FAILURE): (S.COMPLETED, (A.SEND, A.START_J)),
    (S.PROCEEDING, X.REQUEST): (S.PROCEEDING, (A.RESEND,)),
    (S.PROCEEDING, X.PROVISIONAL): (S.PROCEEDING, (A.SEND,)),
    (S.PROCEEDING, X.SUCCESS): (S.COMPLETED, (A.SEND, A.START_J)),
    (S.PROCEEDING, X.FAILURE): (S.COMPLETED, (A.SEND, A.START_J)),
    (S.COMPLETED, X.REQUEST): (S.COMPLETED, (A.RESEND,)),
    (S.COMPLETED, X.TIMER_J): (S.TERMINATED, ()),
}
"""§17.2.2."""

_REPEATING = {A.START_A, A.START_E, A.START_G, A.STOP_REPEATING}
_LINGERING = {A.START_D, A.START_I, A.START_J, A.START_K}
_NOT_OVER_STREAMS = {Input(letter) for letter in "AEGDIJK"}


def _over_streams(table: Table) -> Table:
    """Derive the table for TCP and TLS; the first entry must be of the initial state."""
    changed: Table = {}
    for (state, event), (after, actions) in table.items():
        if event not in _NOT_OVER_STREAMS:
            kept = tuple(each for each in actions if each not in _REPEATING | _LINGERING)
            lingers = not _LINGERING.isdisjoint(actions)
            changed[state, event] = (S.TERMINATED if lingers else after, kept)
    first = next(iter(table))[0]
    reached = {first}
    while more := {after for (s, _), (after, _) in changed.items() if s in reached} - reached:
        reached |= more
    return {key: entry for key, entry in changed.items() if key[0] in reached}


INVITE_CLIENT_STREAM = _over_streams(INVITE_CLIENT)
NON_INVITE_CLIENT_STREAM = _over_streams(NON_INVITE_CLIENT)
INVITE_SERVER_STREAM = _over_streams(INVITE_SERVER)
NON_INVITE_SERVER_STREAM = _over_streams(NON_INVITE_SERVER)
