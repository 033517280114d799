"""Who is called in the demo, how the phone behaves, and what must come of it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from bitel.client import Call
from bitel.domain.pricing import Rate, Tariff

RING_TIMEOUT = 6
SAMPLE_SECONDS = 6.0
RATE = Rate("+98", per_minute=Decimal(90), increment=1, connection_fee=Decimal(10))
TARIFF = Tariff((RATE,))

TARIFF_TOML = f"""
[[tariff]]
prefix = "{RATE.prefix}"
per_minute = {RATE.per_minute}
increment = {RATE.increment}
connection_fee = {RATE.connection_fee}
"""


@dataclass(frozen=True, slots=True)
class Part:
    """One number: what it does, and what its call must end as."""

    number: str
    does: str
    behaviour: str
    status: str
    seconds: tuple[int, int]
    """The least and the most seconds that may be billed."""
    retries: int = 0


_WHOLE = (int(SAMPLE_SECONDS), int(SAMPLE_SECONDS) + 2)

PARTS = (
    Part("09120000001", "answers", "answer:after=1", "NORMAL", _WHOLE),
    Part("09120000002", "hangs up early", "answer:after=1:hangup=2", "NORMAL", (2, 3)),
    Part("09120000003", "is busy twice, then answers", "busy*2,answer", "NORMAL", _WHOLE, 2),
    Part("09120000004", "never answers", "ring", "NO_ANSWER", (0, 0)),
    Part("09120000005", "does not exist", "reject:404", "ERROR", (0, 0)),
)


def rules() -> list[str]:
    """The phone's rules for all parts."""
    return [f"*{part.number.removeprefix('0')}={part.behaviour}" for part in PARTS]


def faults(part: Part, call: Call) -> list[str]:
    """What is wrong with a call's final state, a sentence each; empty where all is well."""
    found = []
    if call["status"] != part.status:
        found.append(f"{part.number} ended as {call['status']}, not {part.status}")
    seconds = call["billSec"]
    least, most = part.seconds
    if not least <= seconds <= most:
        found.append(f"{part.number} was billed {seconds} s, not {least} to {most}")
    e164 = "+98" + part.number.removeprefix("0")
    price = TARIFF.price(e164, seconds) if seconds else Decimal(0)
    if Decimal(str(call["price"])) != -price:
        found.append(f"{part.number} cost {call['price']}, not {-price}")
    return found
