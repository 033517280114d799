"""One call each against SIPp's reading of an RFC, from the order to the bill.

Every scenario in `scenarios/rfc*.xml` is named after the section that it checks. SIPp must say that
all went as written there, and the store must hold what became of the call: its status, what the
attempt came to, and one bill where there was a 2xx, else none.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from bitel.dialer.sip_dialer import SipTrunkDialer
from bitel.dialing.dialer import OnAnswered, OnRinging, ignore_ringing
from bitel.domain.attempts import AttemptResult, DialRequest, Outcome
from bitel.domain.calls import CallStatus
from bitel.sip import session_timer
from bitel.store.database import Database
from tests.peers.rtp_listener import ear
from tests.peers.sipp import Sipp, sipp
from tests.support.switchboard import T1, Record, switchboard

STATUS = {
    Outcome.ANSWERED: CallStatus.NORMAL,
    Outcome.BUSY: CallStatus.USER_BUSY,
    Outcome.NO_ANSWER: CallStatus.NO_ANSWER,
    Outcome.BAD_NUMBER: CallStatus.ERROR,
    Outcome.REFUSED: CallStatus.ERROR,
    Outcome.MEDIA_MISMATCH: CallStatus.ERROR,
    Outcome.TRUNK_TROUBLE: CallStatus.WAITING,
    Outcome.RANG_THEN_FAILED: CallStatus.NO_ANSWER,
    Outcome.REFUSED_FOR_GOOD: CallStatus.ERROR,
}


@dataclass(frozen=True, slots=True)
class Case:
    """A scenario, what it needs, and what must be written of its call."""

    scenario: str
    outcome: Outcome = Outcome.ANSWERED
    sip_code: int | None = 200
    q850: int | None = None
    ended_by: str = "us"
    clip: float = 0.1
    """Seconds that are played."""
    sipp_calls: int = 1
    values: dict[str, Any] = field(default_factory=dict)
    """Keywords of the scenario."""
    config: dict[str, Any] = field(default_factory=dict)
    """Settings of the dialer."""

    def __str__(self) -> str:
        return "-".join([self.scenario, *self.values.values()])


def unknown_code(code: int, outcome: Outcome) -> Case:
    return Case(
        "rfc3261_8.1.3.2_unknown_code", outcome, code, ended_by="far", values={"code": str(code)}
    )


def with_reason(code: int, cause: int, outcome: Outcome) -> Case:
    values = {"code": str(code), "cause": str(cause)}
    return Case("rfc3326_2_reason_q850", outcome, code, cause, "far", values=values)


def after_ringing(code: int, cause: int, outcome: Outcome) -> Case:
    values = {"code": str(code), "cause": str(cause)}
    return Case("rfc3326_2_reason_after_ringing", outcome, code, cause, "far", values=values)


CASES = [
    Case("rfc3261_12.2.1.1_loose_route"),
    Case("rfc3261_16.12.1.2_strict_route"),
    Case("rfc3261_12.2.2_target_refresh", clip=0.6),
    Case("rfc3261_12.1.2_no_to_tag"),
    Case("rfc3261_12.2.2_cseq_out_of_order", clip=0.6),
    Case("rfc3261_12.2.2_stranger_in_dialog", clip=0.6),
    Case("rfc3261_13.2.2.4_forked_answers", clip=0.4),
    Case(
        "rfc3261_9.1_late_200_after_cancel",
        Outcome.NO_ANSWER,
        487,
        config={"ring_timeout": 0.3},
    ),
    Case("rfc3261_13.2.2.4_late_200_after_timer_b", Outcome.TRUNK_TROUBLE, 408, ended_by="far"),
    Case("rfc3261_14.2_offer_asked_for", clip=0.6),
    Case("rfc3261_15.1.1_bye_unanswered"),
    Case("rfc3261_8.2.2.2_merged_request", ended_by="far", clip=5.0),
    Case("rfc3261_15.1.2_bye_with_isup", ended_by="far", clip=5.0),
    Case("rfc6086_4.2.2_info_digits", ended_by="far", clip=5.0),
    Case("rfc3262_4_out_of_order"),
    Case("rfc3262_4_reliable_provisional"),
    Case("rfc3262_5_answer_in_183"),
    Case("rfc4028_7.3_session_too_short"),
    Case("rfc4028_9_refresher_uas", clip=0.8),
    Case("rfc3261_8.1.3.4_redirect_within", sipp_calls=2),
    unknown_code(499, Outcome.REFUSED),
    unknown_code(599, Outcome.TRUNK_TROUBLE),
    unknown_code(699, Outcome.REFUSED_FOR_GOOD),
    with_reason(503, 17, Outcome.BUSY),
    with_reason(480, 1, Outcome.BAD_NUMBER),
    with_reason(486, 34, Outcome.BUSY),
    with_reason(480, 41, Outcome.TRUNK_TROUBLE),
    after_ringing(480, 41, Outcome.NO_ANSWER),
    after_ringing(487, 27, Outcome.NO_ANSWER),
    after_ringing(408, 102, Outcome.NO_ANSWER),
    after_ringing(503, 42, Outcome.RANG_THEN_FAILED),
    after_ringing(500, 17, Outcome.RANG_THEN_FAILED),
    after_ringing(486, 34, Outcome.BUSY),
    after_ringing(404, 1, Outcome.BAD_NUMBER),
    after_ringing(607, 21, Outcome.REFUSED_FOR_GOOD),
    Case("rfc3326_2_reason_in_bye", q850=31, ended_by="far", clip=5.0),
    Case("rfc3960_3_early_media_then_busy", Outcome.BUSY, 486, ended_by="far"),
    Case("rfc3581_3_rport_received"),
    Case("rfc3264_6_port_0", Outcome.MEDIA_MISMATCH, 488, ended_by="far"),
    Case("rfc3264_6.1_no_common_codec", Outcome.MEDIA_MISMATCH, 488, ended_by="far"),
    Case(
        "rfc3325_9.1_asserted_identity",
        config={"caller_id": "02191000000", "identity": "pai", "privacy": True},
    ),
]


TOO_LONG = {"caller_id": "0" * 800, "identity": "pai"}
"""Settings with which an INVITE has more than 1300 bytes."""


async def dial(
    case: Case, callee: Sipp, folder: Path, database: Database, transport: str = "udp"
) -> Record:
    """Place the case's call; what was written of it, once that and SIPp's count are as wanted."""
    trunk = f"sip:127.0.0.1:{callee.port};transport={transport}"
    async with switchboard(folder, database, trunk, clip=case.clip, **case.config) as board:
        record = await board.call()
        report = await callee.report()
    assert (report.exit_code, report.successful) == (0, case.sipp_calls), report
    attempt = record.attempt
    found = (record.outcome, attempt.sip_code, attempt.ended_by)
    assert found == (case.outcome, case.sip_code, case.ended_by), record
    if case.q850 is not None:
        assert attempt.q850 == case.q850
    answered = case.outcome is Outcome.ANSWERED
    assert record.status is STATUS[case.outcome]
    # A 2xx without a common codec is charged by the carrier, as any other.
    is_billed = answered or case.outcome is Outcome.MEDIA_MISMATCH
    assert record.bills == int(is_billed)
    assert (record.bill_seconds > 0) == is_billed
    return record


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_call(case: Case, tmp_path: Path, sqlite_database: Database) -> None:
    async with sipp(case.scenario, case.sipp_calls, tmp_path, **case.values) as callee:
        await dial(case, callee, tmp_path, sqlite_database)


OVER_TCP = {
    "rfc3261_12.2.1.1_loose_route",
    "rfc3261_12.2.2_target_refresh",
    "rfc3261_13.2.2.4_forked_answers",
    "rfc3261_9.1_late_200_after_cancel",
    "rfc3261_15.1.2_bye_with_isup",
    "rfc6086_4.2.2_info_digits",
    "rfc3262_4_out_of_order",
    "rfc3262_4_reliable_provisional",
    "rfc3326_2_reason_in_bye",
}


@pytest.mark.parametrize("case", [case for case in CASES if case.scenario in OVER_TCP], ids=str)
async def test_a_call_over_tcp(case: Case, tmp_path: Path, sqlite_database: Database) -> None:
    async with sipp(case.scenario, case.sipp_calls, tmp_path, tcp=True, **case.values) as callee:
        await dial(case, callee, tmp_path, sqlite_database, "tcp")


def store_answers_after_the_bye(dialer: SipTrunkDialer) -> None:
    """The ACK waits for the answer to be stored, which may take longer than the callee stays."""
    dial_at_once = dialer.dial

    async def dial(
        request: DialRequest, on_answered: OnAnswered, on_ringing: OnRinging = ignore_ringing
    ) -> AttemptResult:
        async def heard_late(answered_at: float) -> bool:
            leg = dialer._attempts[request.attempt_id].leg
            assert leg is not None
            await leg.ended
            return await on_answered(answered_at)

        return await dial_at_once(request, heard_late, on_ringing)

    dialer.dial = dial  # type: ignore[method-assign]


@pytest.mark.parametrize("tcp", [False, True])
async def test_rfc3261_13_2_2_4_an_answer_with_its_bye_right_behind_it_is_acknowledged(
    tcp: bool, tmp_path: Path, sqlite_database: Database
) -> None:
    scenario = "rfc3261_13.2.2.4_bye_behind_200"
    async with sipp(scenario, 1, tmp_path, tcp=tcp) as callee:
        trunk = f"sip:127.0.0.1:{callee.port};transport={'tcp' if tcp else 'udp'}"
        async with switchboard(tmp_path, sqlite_database, trunk) as board:
            store_answers_after_the_bye(board.dialer)
            record = await board.call()
            report = await callee.report()
    assert (report.exit_code, report.successful) == (0, 1), report.complaints
    assert (record.outcome, record.attempt.ended_by) == (Outcome.ANSWERED, "far"), record


@pytest.mark.parametrize(
    "scenario",
    [
        "rfc3264_8.4_hold_sendonly",
        "rfc3264_8.4_hold_inactive",
        "rfc3264_8.4_hold_0.0.0.0",
        "rfc3311_5.2_update_hold",
    ],
)
async def test_a_call_on_hold_waits_with_its_recording(
    scenario: str, tmp_path: Path, sqlite_database: Database
) -> None:
    """0.2 s are heard, 0.7 s held, and the rest of the second is heard after that."""
    async with ear() as heard, sipp(scenario, 1, tmp_path, rtp_port=str(heard.port)) as callee:
        case = Case(scenario, clip=1.0)
        record = await dial(case, callee, tmp_path, sqlite_database)
    assert len(heard.packets) == 50, "all of the recording, and nothing twice"
    assert heard.longest_pause > 0.6
    assert record.talked > 1.6


@pytest.mark.parametrize(
    ("scenario", "payload_type", "size"),
    [
        ("rfc8866_6.4_other_ptime", 8, 320),
        ("rfc3264_6.1_other_codec", 0, 160),
        ("rfc4733_2.4.1_other_event_payload_type", 8, 160),
        ("rfc3264_6.1_recvonly_answer", 8, 160),
        ("rfc3261_13.2.1_answer_in_unreliable_183", 8, 160),
        ("rfc5621_5_multipart_mixed", 8, 160),
    ],
)
async def test_the_recording_is_sent_as_the_answer_asks(
    scenario: str, payload_type: int, size: int, tmp_path: Path, sqlite_database: Database
) -> None:
    async with ear() as heard, sipp(scenario, 1, tmp_path, rtp_port=str(heard.port)) as callee:
        await dial(Case(scenario, clip=0.4), callee, tmp_path, sqlite_database)
    assert {packet.payload_type for packet in heard.packets} == {payload_type}
    assert {packet.size for packet in heard.packets} == {size}
    assert len(heard.packets) == 3200 // size


@pytest.mark.parametrize(
    ("scenario", "is_moved_early"),
    [
        ("rfc3264_8.2_other_audio_line", False),
        ("rfc3311_5.2_update_before_ack", False),
        ("rfc3311_5.2_update_before_answer", True),
    ],
)
async def test_the_recording_goes_where_the_last_description_says(
    scenario: str, is_moved_early: bool, tmp_path: Path, sqlite_database: Database
) -> None:
    async with ear() as first, ear() as second:
        callee_of = sipp(
            scenario, 1, tmp_path, rtp_port=str(first.port), other_rtp_port=str(second.port)
        )
        async with callee_of as callee:
            await dial(Case(scenario, clip=1.0), callee, tmp_path, sqlite_database)
        assert len(first.packets) + len(second.packets) == 50
        assert bool(first.packets) is not is_moved_early
        assert len(second.packets) > 30


async def test_rfc3264_8_3_2_a_codec_has_the_number_that_the_far_end_gives_it(
    tmp_path: Path, sqlite_database: Database
) -> None:
    """PCMA under 98, then, in the running stream, under 99."""
    scenario = "rfc3264_8.3.2_renumbered_codec"
    async with ear() as heard, sipp(scenario, 1, tmp_path, rtp_port=str(heard.port)) as callee:
        await dial(Case(scenario, clip=1.0), callee, tmp_path, sqlite_database)
    kinds = [packet.payload_type for packet in heard.packets]
    assert len(kinds) == 50
    assert [kind for kind, _ in groupby(kinds)] == [98, 99]


async def test_rfc3960_3_early_media_is_never_billed(
    tmp_path: Path, sqlite_database: Database
) -> None:
    """Nor is anything played into it."""
    scenario = "rfc3960_3_early_media_183"
    async with ear() as heard, sipp(scenario, 1, tmp_path, rtp_port=str(heard.port)) as callee:
        record = await dial(Case(scenario), callee, tmp_path, sqlite_database)
    assert len(heard.packets) == 5, "nothing is played before the answer"
    attempt = record.attempt
    assert attempt.ended_at is not None
    assert record.talked < attempt.ended_at - attempt.started_at - 0.6
    assert record.bill_seconds == math.ceil(record.talked)


async def test_rfc3261_8_1_3_4_nobody_unknown_is_called(
    tmp_path: Path, sqlite_database: Database
) -> None:
    scenario = "rfc3261_8.1.3.4_redirect_elsewhere"
    async with ear() as stranger:
        elsewhere = f"127.0.0.1:{stranger.port}"
        async with sipp(scenario, 1, tmp_path, elsewhere=elsewhere) as callee:
            case = Case(scenario, Outcome.REFUSED, 302, ended_by="far")
            await dial(case, callee, tmp_path, sqlite_database)
        assert not stranger.packets


async def test_rfc3263_4_3_another_trunk_where_nobody_answers(
    tmp_path: Path, sqlite_database: Database
) -> None:
    silent, answering = tmp_path / "silent", tmp_path / "answering"
    silent.mkdir()
    answering.mkdir()
    async with (
        sipp("rfc3263_4.3_no_answer_at_all", 1, silent) as first,
        sipp("answering", 1, answering) as second,
    ):
        trunks = [f"sip:127.0.0.1:{each.port}" for each in (first, second)]
        async with switchboard(tmp_path, sqlite_database, *trunks) as board:
            record = await board.call()
        assert (record.status, record.bills) == (CallStatus.NORMAL, 1)
        answered_at = record.attempt.answered_at
        assert answered_at is not None
        assert answered_at - record.attempt.started_at > 64 * T1
        for callee in (first, second):
            report = await callee.report()
            assert (report.exit_code, report.successful) == (0, 1), report.complaints


async def test_rfc4028_session_timers(tmp_path: Path, sqlite_database: Database) -> None:
    """Sessions of 10 s, with their refreshes, all at once since they take their time."""
    cases = [
        Case("rfc4028_7.4_refresher_uac", clip=6.0),
        Case("rfc4028_7.4_refresher_by_reinvite", clip=6.0),
        Case("rfc3261_12.2.1.2_target_refresh", clip=6.0),
        Case("rfc4028_10_never_refreshed", q850=102, clip=30.0),
    ]

    async def one(case: Case) -> Record:
        folder = tmp_path / case.scenario
        folder.mkdir()
        async with sipp(case.scenario, 1, folder) as callee:
            return await dial(case, callee, folder, sqlite_database)

    records = await asyncio.gather(*(one(case) for case in cases))
    expired = records[3]
    assert 6.5 < expired.talked < 9.5, "a third before the end of 10 s"


async def test_rfc3261_14_2_both_ends_at_once(
    tmp_path: Path, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No session is short enough to be refreshed while a test waits, and then once more.
    monkeypatch.setattr(session_timer, "refresh_after", lambda seconds: 0.3)
    async with sipp("rfc3261_14.2_glare_491", 1, tmp_path) as callee:
        case = Case("rfc3261_14.2_glare_491", clip=5.5)
        record = await dial(case, callee, tmp_path, sqlite_database)
    assert record.talked > 5.4, "the call goes on meanwhile"


async def test_rfc3261_18_1_1_what_is_too_long_for_udp_goes_by_tcp(
    tmp_path: Path, sqlite_database: Database
) -> None:
    """SIPp listens for TCP only, at a trunk of UDP."""
    case = Case("answering", config=TOO_LONG)
    async with sipp(case.scenario, 1, tmp_path, tcp=True) as callee:
        await dial(case, callee, tmp_path, sqlite_database)


async def test_rfc3261_18_1_1_and_by_udp_where_there_is_no_tcp(
    tmp_path: Path, sqlite_database: Database
) -> None:
    case = Case("answering", config=TOO_LONG)
    async with sipp(case.scenario, 1, tmp_path) as callee:
        await dial(case, callee, tmp_path, sqlite_database)
