"""The demo from start to end: upload, five calls at once, and a look at what came of them."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
import wave
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.live import Live

from bitel.client import Call, Client
from bitel.demo.scenario import PARTS, RING_TIMEOUT, SAMPLE_SECONDS, TARIFF_TOML, faults, rules
from bitel.demo.show import table
from bitel.demo.stage import Stage
from bitel.errors import BitelError
from bitel.g711 import Pcm
from bitel.recordings.audio_match import Match, match
from bitel.recordings.sample import write_sample

LIMIT = 55.0
"""Seconds after which calls that are not over count as failed."""

LEAST_CORRELATION = 0.98
LONGEST_GAP_MS = 20.0


def play(heard: Path, console: Console) -> bool:
    """Play the demo in a temporary folder and leave what was heard at `heard`.

    True when every call ended as it should and the audio arrived whole.
    """
    with tempfile.TemporaryDirectory(prefix="bitel-demo-") as folder:
        stage = Stage(
            Path(folder),
            rules=rules(),
            dialer={"ring_timeout": RING_TIMEOUT, "calls_per_second": 50},
            extra=TARIFF_TOML,
        )
        with stage:
            console.print(f"Starting the service, and a phone for a carrier, in {folder} …")
            stage.start_phone()
            stage.start_service()
            with Client(stage.token(), stage.url) as client:
                found = _call_everybody(stage, client, heard, console)
            if stage.stop_service() != 0:
                found.append("the service did not stop cleanly")
    for fault in found:
        console.print(f"[red]{fault}[/red]")
    if not found:
        console.print("[green]All is as it should be.[/green]")
    return not found


def _call_everybody(stage: Stage, client: Client, heard: Path, console: Console) -> list[str]:
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
    return found + _listen(stage, uploaded, heard, console)


def _watch(client: Client, calls: dict[str, Call], console: Console) -> None:
    started = time.monotonic()
    # Without a terminal, only how it ended is shown.
    live = Live(console=console, refresh_per_second=8) if console.is_terminal else None
    with live or contextlib.nullcontext():
        while True:
            for number, call in calls.items():
                if not call["statusCode"]:
                    calls[number] = client.status(call["id"])
            elapsed = time.monotonic() - started
            if live is not None:
                live.update(table(PARTS, calls, elapsed))
            if all(call["statusCode"] for call in calls.values()) or elapsed > LIMIT:
                break
            time.sleep(0.2)  # between two looks at a running service
    if live is None:
        console.print(table(PARTS, calls, elapsed))


def _listen(stage: Stage, uploaded: Path, heard: Path, console: Console) -> list[str]:
    number = PARTS[0].number.removeprefix("0")
    recordings = sorted(stage.heard.glob(f"*{number}_*.wav"))
    if len(recordings) != 1:
        return [f"{PARTS[0].number} heard {len(recordings)} calls, not 1"]
    shutil.copyfile(recordings[0], heard)
    found: Match = match(read_wav(uploaded), read_wav(heard))
    console.print(
        f"{heard.name} is what {PARTS[0].number} heard: correlation with the upload "
        f"{found.correlation:.4f}, longest gap {found.longest_gap_ms:.0f} ms"
    )
    if found.correlation < LEAST_CORRELATION or found.longest_gap_ms > LONGEST_GAP_MS:
        return [f"{heard.name} does not match what was uploaded"]
    return []


def read_wav(path: Path) -> Pcm:
    """The samples of a WAV of ours: 16 bit, mono, 8 kHz. Raises BitelError for another."""
    with wave.open(str(path), "rb") as file:
        if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, 8000):
            raise BitelError(f"{path} is not 16-bit mono at 8 kHz")
        return np.frombuffer(file.readframes(file.getnframes()), np.int16)
