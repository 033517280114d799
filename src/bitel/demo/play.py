"""The demo: five concurrent calls of the service to the phone, with checks of their results."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bitel.client import Call, Client
from bitel.demo.stage import Stage
from bitel.domain.pricing import Rate, Tariff
from bitel.errors import BitelError
from bitel.g711 import Pcm
from bitel.recordings.audio_match import match
from bitel.recordings.sample import write_sample

LIMIT = 55.0
"""Seconds after which calls that are not over have failed."""

LEAST_CORRELATION = 0.98
LONGEST_GAP_MS = 20.0
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
    """A call of the demo: the behaviour of its phone, and the expected result."""

    number: str
    does: str
    behaviour: str
    status: str
    seconds: tuple[int, int]
    """Minimum and maximum of billed seconds."""
    retries: int = 0


_WHOLE = (int(SAMPLE_SECONDS), int(SAMPLE_SECONDS) + 2)

PARTS = (
    Part("09120000001", "answers", "answer:after=1", "NORMAL", _WHOLE),
    Part("09120000002", "hangs up early", "answer:after=1:hangup=2", "NORMAL", (2, 3)),
    Part("09120000003", "is busy twice, then answers", "busy*2,answer", "NORMAL", _WHOLE, 2),
    Part("09120000004", "never answers", "ring", "NO_ANSWER", (0, 0)),
    Part("09120000005", "does not exist", "reject:404", "ERROR", (0, 0)),
)

_STYLES = {
    "WAITING": "yellow",
    "NORMAL": "green",
    "NO_ANSWER": "magenta",
    "USER_BUSY": "magenta",
    "ERROR": "red",
}


def play(heard: Path, console: Console) -> bool:
    """Run the demo in a temporary folder, and write the audio of the first call to `heard`.

    Returns whether all calls ended as expected and the audio was received without gaps.
    """
    with tempfile.TemporaryDirectory(prefix="bitel-demo-") as folder:
        stage = Stage(
            Path(folder),
            rules=[f"*{part.number.removeprefix('0')}={part.behaviour}" for part in PARTS],
            dialer={"ring_timeout": RING_TIMEOUT, "calls_per_second": 50},
            extra=TARIFF_TOML,
        )
        with stage:
            console.print(f"Starting the service, and a phone for a carrier, in {folder} …")
            stage.start_phone()
            stage.start_service()
            with Client(stage.token(), stage.url) as client:
                found = _place_calls(stage, client, heard, console)
            if stage.stop_service() != 0:
                found.append("the service did not stop cleanly")
    for fault in found:
        console.print(f"[red]{fault}[/red]")
    if not found:
        console.print("[green]All is as it should be.[/green]")
    return not found


def _place_calls(stage: Stage, client: Client, heard: Path, console: Console) -> list[str]:
    sample = stage.folder / "sample.wav"
    write_sample(sample, SAMPLE_SECONDS)
    voice = client.upload(sample)
    console.print(f"Uploaded {voice['name']}: {voice['duration']:.1f} s, as voice {voice['id']}")
    calls = {
        part.number: client.call(
            part.number, voice["id"], retry_count=part.retries, retry_interval=5
        )
        for part in PARTS
    }
    _watch(client, calls, console)
    found = [fault for part in PARTS for fault in faults(part, calls[part.number])]
    uploaded = stage.folder / "uploaded.wav"
    uploaded.write_bytes(client.recording(voice["id"]))
    return found + _compare_audio(stage, uploaded, heard, console)


def _watch(client: Client, calls: dict[str, Call], console: Console) -> None:
    started = time.monotonic()
    # Without a terminal, only the final table is printed.
    live = Live(console=console, refresh_per_second=8) if console.is_terminal else None
    with live or contextlib.nullcontext():
        while True:
            for number, call in calls.items():
                if not call["statusCode"]:
                    calls[number] = client.status(call["id"])
            elapsed = time.monotonic() - started
            if live is not None:
                live.update(_table(calls, elapsed))
            if all(call["statusCode"] for call in calls.values()) or elapsed > LIMIT:
                break
            time.sleep(0.2)  # the API can only be polled
    if live is None:
        console.print(_table(calls, elapsed))


def _compare_audio(stage: Stage, uploaded: Path, heard: Path, console: Console) -> list[str]:
    number = PARTS[0].number.removeprefix("0")
    recordings = sorted(stage.heard.glob(f"*{number}_*.wav"))
    if len(recordings) != 1:
        return [f"{PARTS[0].number} heard {len(recordings)} calls, not 1"]
    shutil.copyfile(recordings[0], heard)
    found = match(read_wav(uploaded), read_wav(heard))
    console.print(
        f"{heard.name} is what {PARTS[0].number} heard: correlation with the upload "
        f"{found.correlation:.4f}, longest gap {found.longest_gap_ms:.0f} ms"
    )
    if found.correlation < LEAST_CORRELATION or found.longest_gap_ms > LONGEST_GAP_MS:
        return [f"{heard.name} does not match what was uploaded"]
    return []


def read_wav(path: Path) -> Pcm:
    """Return the samples of a 16-bit mono 8 kHz WAV. Raises BitelError for other formats."""
    with wave.open(str(path), "rb") as file:
        if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, 8000):
            raise BitelError(f"{path} is not 16-bit mono at 8 kHz")
        return np.frombuffer(file.readframes(file.getnframes()), np.int16)


def faults(part: Part, call: Call) -> list[str]:
    """Return the faults in a call's final state as sentences."""
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


def _table(calls: Mapping[str, Call], elapsed: float) -> RenderableType:
    """A table of all calls and a progress bar; `calls` are by number."""
    rows = Table("number", "the phone", "status", "billed", "price", title="bitel demo")
    rows.columns[3].justify = rows.columns[4].justify = "right"
    over = 0
    for part in PARTS:
        call = calls[part.number]
        status = call["status"]
        final = status != "WAITING"
        over += final
        billed = (f"{call['billSec']} s", f"{call['price']}") if final else ("", "")
        rows.add_row(part.number, part.does, Text(status, _STYLES.get(status, "")), *billed)
    bar = ProgressBar(total=len(PARTS), completed=over, width=40)
    done = Text(f"{over} of {len(PARTS)} calls are over after {elapsed:.0f} s")
    # The padding ends the bar's line.
    return Group(rows, done, Padding(bar, (0, 0, 1, 0)))
