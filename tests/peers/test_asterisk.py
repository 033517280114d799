"""The dialer against Asterisk: the audio received, call flows, results and bills."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bitel.client import CallDetails, Client
from bitel.demo.play import read_wav
from bitel.demo.stage import Stage, free_port
from bitel.domain.attempts import Outcome
from bitel.g711 import Pcm
from bitel.sip import Credentials
from bitel.sip_transport.tls import TlsFiles
from bitel.store.database import Database
from tests.peers import pjsua2_phone
from tests.peers.asterisk import why_missing
from tests.peers.asterisk_phone import (
    PASSWORD,
    SERVICE,
    USERNAME,
    AsteriskPhone,
    asterisk_phone,
)
from tests.peers.baresip_phone import baresip_phone
from tests.support.prerequisites import need_peer
from tests.support.service_calls import call_all, reports, sent, token, upload
from tests.support.switchboard import (
    Record,
    Switchboard,
    assert_answered,
    sample,
    share_received,
    switchboard,
)
from tests.support.waiting import until

T1 = 0.5
"""Seconds: RFC 3261's own, as Asterisk's is."""


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsteriskPhone]:
    """One Asterisk for all tests of this file."""
    sentence = why_missing()
    need_peer(not sentence, sentence)
    with asterisk_phone(tmp_path_factory.mktemp("certificates"), free_port()) as running:
        yield running


@dataclass
class Calling:
    """Places calls to Asterisk that play `sound`."""

    phone: AsteriskPhone
    board: Switchboard
    sound: Pcm

    async def call(self, behaviour: str) -> tuple[str, Record]:
        """Call a number of this behaviour; the number, and the record of the call."""
        number = self.phone.number(behaviour)
        return number, await self.board.call(number)

    async def share_received(self, number: str) -> float:
        """The share of `sound` that Asterisk recorded, 0 to 1."""
        return share_received(self.sound, await self.phone.received(number))


class Dial:
    """Makes dialers of a test for the Asterisk of the module."""

    def __init__(self, phone: AsteriskPhone, folder: Path, database: Database) -> None:
        self.phone = phone
        self._folder = folder
        self._database = database

    @asynccontextmanager
    async def __call__(
        self, endpoint: str = "plain", transport: str = "udp", seconds: float = 1.0, **config: Any
    ) -> AsyncIterator[Calling]:
        """A dialer whose calls are those of `endpoint`, and play for `seconds`."""
        sound = sample(seconds)
        async with switchboard(
            self._folder,
            self._database,
            self.phone.trunk(transport),
            sound=sound,
            t1=T1,
            caller_id=endpoint,
            tls=TlsFiles(ca=self.phone.authority.files.certificate),
            **config,
        ) as board:
            yield Calling(self.phone, board, sound)


@pytest.fixture
def dial(phone: AsteriskPhone, tmp_path: Path, sqlite_database: Database) -> Dial:
    return Dial(phone, tmp_path, sqlite_database)


@pytest.mark.interop("answers over {transport}, records all that we play", rfc="RFC 3261 §13")
@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
async def test_the_whole_recording_is_received(dial: Dial, transport: str) -> None:
    async with dial(transport=transport, seconds=3.0) as calling:
        number, record = await calling.call("ring, answer")
        assert await calling.share_received(number) >= 0.98
    assert_answered(record)
    assert record.attempt.rang_at is not None
    assert (await dial.phone.ended(number))["Cause"] == "16"


@pytest.mark.interop("answers in µ-law alone", rfc="RFC 3264 §6.1")
async def test_ulaw(dial: Dial) -> None:
    async with dial("ulaw", seconds=2.0) as calling:
        number, record = await calling.call("answer")
        assert await calling.share_received(number) >= 0.98
    assert_answered(record)


@pytest.mark.interop("has no codec of ours: 488", rfc="RFC 3264 §6.1")
async def test_no_common_codec(dial: Dial) -> None:
    async with dial("gsm") as calling:
        _, record = await calling.call("answer")
    assert (record.outcome, record.attempt.sip_code) == (Outcome.MEDIA_MISMATCH, 488)
    assert record.bills == 0


FAILURES: dict[str, tuple[Outcome, int, int | None]] = {
    "busy": (Outcome.BUSY, 486, None),
    "congestion": (Outcome.TRUNK_TROUBLE, 503, None),
    "unallocated number": (Outcome.BAD_NUMBER, 404, 1),
    "call rejected": (Outcome.BUSY, 403, 21),
    "no circuit": (Outcome.TRUNK_TROUBLE, 503, 34),
    "ring, no answer": (Outcome.NO_ANSWER, 480, 19),
    "ring, network out of order": (Outcome.RANG_THEN_FAILED, 500, 38),
    "early media, busy": (Outcome.BUSY, 486, 17),
}


@pytest.mark.interop("fails the call: {behaviour}", rfc="RFC 3326 §2")
@pytest.mark.parametrize("behaviour", FAILURES)
async def test_a_call_that_fails(dial: Dial, behaviour: str) -> None:
    async with dial() as calling:
        _, record = await calling.call(behaviour)
    outcome, code, cause = FAILURES[behaviour]
    assert (record.outcome, record.attempt.sip_code) == (outcome, code), record
    assert cause is None or record.attempt.q850 == cause, record
    assert record.bills == 0


@pytest.mark.interop("rings until we cancel", rfc="RFC 3261 §9.1")
async def test_cancelled(dial: Dial) -> None:
    async with dial(ring_timeout=1.0) as calling:
        number, record = await calling.call("ring")
    assert (record.outcome, record.attempt.sip_code) == (Outcome.NO_ANSWER, 487)
    assert record.bills == 0
    await dial.phone.ended(number)


@pytest.mark.interop("hangs up, with a Q.850 cause in its BYE", rfc="RFC 3326 §2")
@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
async def test_it_hangs_up(dial: Dial, transport: str) -> None:
    async with dial(transport=transport, seconds=5.0) as calling:
        _, record = await calling.call("hang up")
    assert_answered(record, by="far")
    assert record.attempt.q850 == 16


@pytest.mark.interop("finds us behind a NAT, by rport and symmetric RTP", rfc="RFC 3581 §4")
async def test_behind_a_nat(dial: Dial) -> None:
    """What we say of our own address is wrong; its BYE and its audio come to the right one."""
    async with dial("nat", seconds=5.0, public_address="192.0.2.1") as calling:
        _, record = await calling.call("greet, hang up")
    assert_answered(record, by="far")
    assert record.attempt.media is not None
    assert record.attempt.media.received > 10


@pytest.mark.interop("answers 20 calls at once", rfc="RFC 3261 §13")
async def test_calls_at_once(dial: Dial) -> None:
    async with dial(seconds=2.0) as calling:
        calls = await asyncio.gather(*(calling.call("ring, answer") for _ in range(20)))
        shares = [await calling.share_received(number) for number, _ in calls]
    for _, record in calls:
        assert_answered(record)
    assert min(shares) >= 0.95, shares


@pytest.mark.interop("plays early media, then answers", rfc="RFC 3960 §3.2")
async def test_early_media(dial: Dial) -> None:
    async with dial() as calling:
        number, record = await calling.call("early media, answer")
        assert await calling.share_received(number) >= 0.98, "nothing is played before the answer"
    assert_answered(record)
    assert record.attempt.ended_at is not None
    assert record.attempt.ended_at - record.attempt.started_at > record.talked + 0.4


@pytest.mark.interop("sends 180 and 183 reliably", rfc="RFC 3262 §4")
@pytest.mark.parametrize("behaviour", ["ring, answer", "early media, answer"])
async def test_reliable_provisional_responses(dial: Dial, behaviour: str) -> None:
    async with dial("reliable") as calling:
        number, record = await calling.call(behaviour)
        assert await calling.share_received(number) >= 0.98
    assert_answered(record)


@pytest.mark.interop("keys digits by {method}", rfc="RFC 4733 §2.5, RFC 6086 §4")
@pytest.mark.parametrize(
    ("endpoint", "method"),
    [("plain", "telephone events"), ("info", "INFO")],
    ids=["rfc4733", "info"],
)
async def test_digits(dial: Dial, endpoint: str, method: str) -> None:
    async with dial(endpoint, seconds=2.5) as calling:
        _, record = await calling.call("key digits")
    assert_answered(record)
    assert record.attempt.media is not None
    assert record.attempt.media.digits == "159#"


@pytest.mark.interop("puts the call on hold, and resumes it", rfc="RFC 3264 §8.4")
async def test_hold(dial: Dial) -> None:
    async with dial("holding", seconds=3.0) as calling:
        number, record = await calling.call("hold")
        assert dial.phone.events("UserEvent", number, UserEvent="resumed")
        # What is on its way between the first recording and the hold is in neither of them.
        assert await calling.share_received(number) >= 0.9
    assert_answered(record)
    assert record.talked > 3.9, "three seconds of recording, and a second of hold"
    assert record.attempt.media is not None
    assert record.attempt.media.sent == 150


@pytest.mark.interop("redirects to another URI of the number", rfc="RFC 3261 §8.1.3.4")
async def test_redirect(dial: Dial) -> None:
    async with dial() as calling:
        number, record = await calling.call("redirect")
        assert await calling.share_received(number) >= 0.98
    assert_answered(record)


@pytest.mark.interop("{behaviour}, which is not followed", rfc="RFC 3261 §8.1.3.4")
@pytest.mark.parametrize("behaviour", ["redirect to another number", "redirect elsewhere"])
async def test_a_redirection_that_is_not_followed(dial: Dial, behaviour: str) -> None:
    """Another number than the one dialled is another person, and another host is no trunk."""
    async with dial() as calling:
        _, record = await calling.call(behaviour)
    assert (record.outcome, record.attempt.sip_code) == (Outcome.REFUSED, 302)
    assert record.bills == 0


@pytest.mark.interop("asks for a transfer, which is refused", rfc="RFC 3515 §2.4.2")
async def test_refer(dial: Dial) -> None:
    async with dial(seconds=2.0) as calling:
        number, record = await calling.call("refer")
        (transfer,) = dial.phone.events("UserEvent", number, UserEvent="transfer")
        assert transfer["Status"] == "FAILURE"
        assert await calling.share_received(number) >= 0.95
    assert_answered(record)


@pytest.mark.interop("is a fax machine: offers T.38 in a re-INVITE", rfc="RFC 3264 §8.3")
async def test_fax(dial: Dial) -> None:
    """It does so after its tone of 3 s. The offer is refused, and the call goes on as it was."""
    async with dial("fax", seconds=5.0) as calling:
        number, record = await calling.call("fax")
    assert_answered(record)
    assert record.attempt.media is not None
    assert record.attempt.media.sent == 250
    messages = dial.phone.messages(number)
    (offer,) = (message for message in messages if "m=image" in message and "INVITE" in message)
    (cseq,) = (line for line in offer.splitlines() if line.startswith("CSeq"))
    answers = [message for message in messages if cseq in message and "SIP/2.0" in message[:7]]
    assert [answer.split()[1] for answer in answers] == ["488"]


@pytest.mark.interop("sends an UPDATE without a session description", rfc="RFC 3311 §5.2")
async def test_update(dial: Dial) -> None:
    async with dial("update", seconds=2.0) as calling:
        number, record = await calling.call("connected line")
        assert await calling.share_received(number) >= 0.98
    assert_answered(record)
    assert any(message.startswith("UPDATE") for message in dial.phone.messages(number))


@pytest.mark.interop("demands digest authentication, {algorithm}", rfc="RFC 8760 §2")
@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
async def test_digest(dial: Dial, algorithm: str) -> None:
    async with dial(algorithm, credentials=Credentials(USERNAME, PASSWORD)) as calling:
        number, record = await calling.call("answer")
        assert await calling.share_received(number) >= 0.98
    assert_answered(record)


@pytest.mark.interop("refuses a wrong password", rfc="RFC 3261 §22.2")
async def test_wrong_password(dial: Dial) -> None:
    async with dial("md5", credentials=Credentials(USERNAME, "wrong")) as calling:
        _, record = await calling.call("answer")
    assert (record.outcome, record.attempt.sip_code) == (Outcome.REFUSED, 401)
    assert record.bills == 0


@pytest.mark.interop("registers us, over {transport}", rfc="RFC 3261 §10.2")
@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
async def test_registration(dial: Dial, transport: str) -> None:
    async with dial(
        USERNAME, transport, register=True, credentials=Credentials(USERNAME, PASSWORD)
    ) as calling:
        await until(lambda: calling.board.dialer.up)
        assert dial.phone.contact()
        number, record = await calling.call("answer")
        assert await calling.share_received(number) >= 0.98
    assert_answered(record)
    assert dial.phone.contact() == ""


@pytest.mark.interop("answers OPTIONS", rfc="RFC 3261 §11.2")
async def test_options(dial: Dial) -> None:
    async with dial(ping_interval=0.1) as calling:
        await until(lambda: calling.board.dialer.up)


@pytest.mark.soak
@pytest.mark.interop("requires a session timer, and the session is refreshed", rfc="RFC 4028 §7.4")
async def test_session_timer(dial: Dial) -> None:
    """90 s are the shortest session that the RFC allows: half of it passes until the refresh."""
    async with dial("timers", seconds=50.0) as calling:
        number, record = await calling.call("answer")
        assert await calling.share_received(number) >= 0.98
    assert_answered(record)


@pytest.mark.interop("is a switchboard that moves the media to a phone", rfc="RFC 3264 §8.3.1")
async def test_media_is_moved_to_the_phone_behind(dial: Dial, tmp_path: Path) -> None:
    """Asterisk takes itself out of the path of RTP with a re-INVITE to either side."""
    recording = tmp_path / "received.wav"
    async with baresip_phone("answer", record=recording) as behind:
        dial.phone.asterisk.ask("Setvar", Variable="PHONE", Value=str(behind.port))
        async with dial("direct", seconds=3.0) as calling:
            number, record = await calling.call("switchboard")
        await behind.saw("recorded")
    assert_answered(record)
    assert any(message.startswith("INVITE sip:127") for message in dial.phone.messages(number))
    # baresip drops what it gets before the ACK, and what it has not played when the call ends.
    assert share_received(calling.sound, read_wav(recording)) >= 0.9


@pytest.mark.interop("is a switchboard whose phone puts us on hold", rfc="RFC 3264 §8.4")
async def test_hold_by_the_phone_behind(dial: Dial) -> None:
    sentence = pjsua2_phone.why_missing()
    need_peer(not sentence, sentence)
    steps = "180", "200", "wait 0.5", "hold", "wait 1", "resume"
    async with pjsua2_phone.pjsua2_phone(*steps) as behind:
        dial.phone.asterisk.ask("Setvar", Variable="PHONE", Value=str(behind.port))
        async with dial("holding", seconds=2.0) as calling:
            number, record = await calling.call("switchboard")
        await behind.saw("closed")
    assert_answered(record)
    assert record.talked > 2.9, "two seconds of recording, and a second of hold"
    assert record.attempt.media is not None
    assert record.attempt.media.sent == 100
    assert any("a=sendonly" in message for message in dial.phone.messages(number))


@pytest.mark.interop("registers the whole service, and takes its calls", rfc="RFC 3261 §10.2")
async def test_the_whole_service(phone: AsteriskPhone, tmp_path: Path) -> None:
    """One after the other is answered, is busy, and keys digits."""
    dialer = {
        "caller_id": SERVICE,
        "username": USERNAME,
        "password": PASSWORD,
        "register": True,
    }
    before = len(phone.log())
    numbers = [phone.number(behaviour) for behaviour in ("answer", "busy", "key digits")]
    with Stage(tmp_path / "stage", dialer=dialer, trunk=phone.trunk()) as stage:
        calls = await asyncio.to_thread(call_all, stage, numbers, 2.0)
        assert reports(calls) == [("NORMAL", 3), ("USER_BUSY", 0), ("NORMAL", 3)]
        assert share_received(sent(stage), await phone.received(numbers[0])) >= 0.98
    registered = [message for message in phone.log()[before:] if message.startswith("REGISTER")]
    # Each of them is challenged once, and the second removes the binding.
    assert len(registered) == 4
    assert phone.contact() == ""


@pytest.mark.interop("keys the digits of a menu by {method}", rfc="RFC 4733 §2.5, RFC 6086 §4")
@pytest.mark.parametrize(
    ("endpoint", "method"),
    [("plain", "telephone events"), ("info", "INFO"), ("inband", "tones in the audio")],
    ids=["rfc4733", "info", "inband"],
)
async def test_keys_of_a_menu(
    phone: AsteriskPhone, tmp_path: Path, endpoint: str, method: str
) -> None:
    """It keys 159#, with 5 in a menu below; the digits after that change nothing."""
    number, collecting = (phone.number("key digits") for _ in range(2))
    with Stage(tmp_path / "stage", dialer={"caller_id": endpoint}, trunk=phone.trunk()) as stage:
        placed = partial(_call_with_menus, stage, number, collecting)
        chosen, collected = await asyncio.to_thread(placed)
    assert (chosen["reports"], chosen["status"]) == (["first", "second"], "NORMAL")
    assert chosen["keys"].startswith("15")
    assert (collected["keys"], collected["status"]) == ("159#", "NORMAL")
    # The recording alone lasts 20 s.
    assert chosen["billSec"] <= 6
    assert collected["billSec"] <= 6


def _call_with_menus(stage: Stage, number: str, collecting: str) -> tuple[CallDetails, CallDetails]:
    stage.start_service()
    with Client(token(stage), stage.url) as client:
        voice, short = upload(stage, client, 20.0), upload(stage, client, 0.5)
        below = {"keys": {"5": {"play": short, "report": "second"}}}
        menu = {"keys": {"1": {"report": "first", "play": short, "menu": below}}}
        calls = [
            client.call(number, voice, retry_count=0, menu=menu)["id"],
            client.call(
                collecting, voice, retry_count=0, menu={"collect": {"digits": 9, "end": "#"}}
            )["id"],
        ]
        for each in calls:
            client.wait(each, 60)
        chosen, collected = (client.call_details(each) for each in calls)
    return chosen, collected
