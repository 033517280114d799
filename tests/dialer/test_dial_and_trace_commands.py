"""`bitel dial` and `bitel trace`, as processes of their own against a phone in this one."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import pytest

from bitel.dialer.sip_trace import TraceStore
from bitel.domain.attempts import AttemptResult, DialRequest, Outcome
from bitel.recordings.sample import write_sample
from bitel.sip.grammar import Address
from bitel.test_phone.phone import Phone, PhoneConfig
from bitel.test_phone.rules import parse_rules

COMMANDS = """
import sys, typer
from bitel.cli import calls, trial
from bitel.errors import BitelError
app = typer.Typer(pretty_exceptions_enable=False)
app.command("dial")(trial.dial)
app.command("trace")(calls.trace)
try:
    app()
except BitelError as error:
    sys.exit(f"bitel: {error}")
"""


async def run(*words: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", COMMANDS, *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def settings(folder: Path, trunk: str, bind: str = "127.0.0.1:0") -> str:
    path = folder / "bitel.toml"
    path.write_text(
        f"""data_dir = "{folder / "data"}"
        [[dialers]]
        id = "main"
        trunks = ["{trunk}"]
        bind = "{bind}"
        rtp_ports = "20000-65000"
        """
    )
    return f"--config={path}"


async def test_a_call_shows_its_messages_though_the_port_is_taken(tmp_path: Path) -> None:
    voice = tmp_path / "voice.wav"
    write_sample(voice, 0.5)
    rules = parse_rules(["*busy=busy", "*99=busy", "*=answer:after=0.1"])
    phone = Phone(PhoneConfig(listen=("127.0.0.1", 0), rules=rules))
    await phone.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        config = settings(tmp_path, "sip:{}:{}".format(*phone.address), bind)
        answered = await run("dial", "09121234567", f"--voice={voice}", "--dialer=main", config)
        busy = await run("dial", "09121234599", f"--voice={voice}", "--full", config)
    await phone.stop()
    code, out, err = answered
    assert (code, err) == (0, "")
    words = ("INVITE sip:+98912", "180 Ringing (INV", "200 OK (INVITE)", "ACK ", "BYE ", "(BYE)")
    places = [out.find(word) for word in words]
    assert -1 not in places, out
    assert places == sorted(places)
    assert out.splitlines()[-1].startswith("+989121234567: answered after 0.")
    code, out, _ = busy
    assert code == 1
    assert "    a=rtpmap:8 PCMA/8000" in out
    assert out.splitlines()[-1] == "+989121234599: busy (486 Busy Here)"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("dial", "12", "--dialer=main"), "12"),
        (("dial", "09121234567", "--dialer=other"), "no dialer is named 'other'; there is main"),
        (("trace", "0" * 32), "no trace of a call"),
    ],
)
async def test_what_can_not_be(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    code, _, err = await run(*words, settings(tmp_path, "sip:127.0.0.1:9"))
    assert code == 1
    assert says in err
    assert len(err.splitlines()) == 1


async def test_a_trace_is_shown(tmp_path: Path) -> None:
    config = settings(tmp_path, "sip:127.0.0.1:9")
    traces = TraceStore(tmp_path / "data" / "traces")
    order = DialRequest("a1", f"{5:032x}", "+98912", None)
    traces.invited(order, "sip-id")
    traces.tap(
        "out", b"INVITE sip:1@far SIP/2.0\r\nCall-ID: sip-id\r\n\r\n", Address("192.0.2.1", 5060), 1
    )
    traces.over(order, AttemptResult(Outcome.BUSY, 1.0, 2.0, detail="486 Busy Here"))
    traces.close()
    code, out, _ = await run("trace", f"{5:032x}", config)
    assert code == 0
    arrow, ending = out.splitlines()
    assert " INVITE sip:1@far ─" in arrow
    assert ending == "attempt a1 ended as busy: 486 Busy Here"
    code, out, _ = await run("trace", f"{5:032x}", "--full", config)
    assert "    Call-ID: sip-id\n" in out
