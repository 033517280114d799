"""Many calls through the whole service over a lossy link, and which of them ended right.

Service and phone are processes of their own; the link loses, doubles and reorders SIP datagrams
both ways, and leaves RTP alone. How a callee behaves stands in the last digit of its number, so
that each call can be judged: by the status that the client sees, by the ledger, and by the phone's
own log.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from bitel.client import Call, Client
from bitel.demo.stage import Stage
from bitel.recordings.sample import write_sample
from bitel.store.database import Database
from tests.support import phone_log
from tests.support.lossy_relay import Loss, Passed, lossy_relay
from tests.support.phone_log import Seen

RULES = (
    "*[0-4]=answer:after=0.5",
    "*[5-6]=answer:after=0.5:hangup=0.5",
    "*7=busy",
    "*8=reject:404",
    "*9=ring",
)
ANSWERED = "0123456"
HANGS_UP = "56"
STATUS = {**dict.fromkeys(ANSWERED, "NORMAL"), "7": "USER_BUSY", "8": "ERROR", "9": "NO_ANSWER"}

RING_TIMEOUT = 20  # seconds: room for six INVITEs, T1 being 500 ms
TARIFF = '[[tariff]]\nprefix = "+98"\nper_minute = "60"\nincrement = 1\n'


@dataclass(frozen=True, slots=True)
class Played:
    """What became of the calls. `wrong` has a sentence for each that did not end right."""

    calls: int
    wrong: Sequence[str]
    statuses: Counter[str]
    passed: Passed

    @property
    def right(self) -> float:
        """The share of calls that ended right."""
        return 1 - len(self.wrong) / self.calls


async def play(
    folder: Path,
    loss: Loss,
    calls: int,
    pace: float,
    patience: float,
    starting: asyncio.Lock | None = None,
) -> Played:
    """Place `calls` calls, `pace` a second, and judge them when all are over.

    Several at a time share `starting`, lest their starts hold up each other. Raises
    UnavailableError where a call is not over within `patience` seconds.
    """
    async with lossy_relay(loss) as relay:
        host, port = relay.address
        stage = Stage(
            folder,
            rules=RULES,
            record=False,
            extra=TARIFF,
            dialer={
                "ring_timeout": RING_TIMEOUT,
                "calls_per_second": pace,
                "max_channels": calls,
                # What the phone sends of its own accord goes through the link too.
                "public_address": "{}:{}".format(*relay.back_address),
            },
            trunk=f"sip:{host}:{port}",
            phone_options=[f"--public-address={host}:{port}"],
        )
        with stage:
            async with starting or asyncio.Lock():
                await asyncio.to_thread(stage.start_phone)
                relay.callee = ("127.0.0.1", stage.ports.phone)
                await asyncio.to_thread(stage.start_service)
            ended = await asyncio.to_thread(_call_all, stage, calls, patience)
        billed = _billed(stage)
        seen = {number[-10:]: each for number, each in phone_log.read(stage.phone_log).items()}
    judged = (_judge(call, billed, seen.get(call["phoneNumber"][-10:], ())) for call in ended)
    wrong = [sentence for sentence in judged if sentence]
    return Played(calls, wrong, Counter(call["status"] for call in ended), relay.passed)


def _call_all(stage: Stage, calls: int, patience: float) -> list[Call]:
    sample = stage.folder / "sample.wav"
    write_sample(sample, 1.0)
    with Client(stage.token(), stage.url) as client:
        voice = client.upload(sample)
        numbers = [f"09121{n:06}" for n in range(calls)]
        placed = client.batch(numbers, voice["id"], retry_count=0)["calls"]
        ended = [client.wait(call["id"], patience) for call in placed]
    assert stage.stop_service() == 0
    return ended


def _billed(stage: Stage) -> Mapping[str, list[Decimal]]:
    """What the ledger has of each call: an amount for each time it was billed."""
    billed: dict[str, list[Decimal]] = {}
    with Database.open(f"sqlite:///{stage.folder / 'data' / 'bitel.db'}") as database:
        rows = database.read_now(
            lambda conn: conn.exec_driver_sql(
                "SELECT call_id, amount FROM ledger_entry WHERE kind = 'call'"
            ).all()
        )
    for call_id, amount in rows:
        billed.setdefault(call_id, []).append(Decimal(str(amount)))
    return billed


def _judge(call: Call, billed: Mapping[str, list[Decimal]], seen: Sequence[Seen]) -> str:
    """What is wrong with how a call ended; empty where nothing is."""
    number, status = call["phoneNumber"], call["status"]
    entries = billed.get(call["id"], [])
    answered = number[-1] in ANSWERED
    if status != STATUS[number[-1]]:
        return f"{number} ended as {status}, and not as {STATUS[number[-1]]}"
    if len(entries) != answered:
        return f"{number} was billed {len(entries)} times"
    if answered and (call["billSec"] < 1 or call["price"] >= 0):
        return f"{number} was answered, and cost {call['price']} for {call['billSec']} s"
    heard = sum(one.audio_at is not None for one in seen)
    # Where its 200 is lost, who hangs up soon is gone before we can speak.
    if heard != answered and not (heard == 0 and number[-1] in HANGS_UP):
        return f"{number} heard us in {heard} calls"
    if phone_log.called_again_after_audio({number: seen}):
        return f"{number} was called again after it had heard us"
    if phone_log.in_two_calls_at_once({number: seen}):
        return f"{number} was in two calls at once"
    return ""
