"""`bitel phone` as the operator runs it: a process of its own."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bitel.sip.events import Answered, Ended, Failed
from tests.support.sip_caller import caller

HOST = "127.0.0.1"


async def start(*options: str) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bitel.cli", "phone", *options), stdout=PIPE, stderr=PIPE
    )


@asynccontextmanager
async def running(*options: str) -> AsyncIterator[tuple[Process, int]]:
    """The command, and the port that it says it is ready on."""
    process = await start("--listen", f"{HOST}:0", *options)
    assert process.stderr is not None
    try:
        line = (await asyncio.wait_for(process.stderr.readline(), 20)).decode()
        ready = re.fullmatch(rf"phone ready on {HOST}:(\d+)\n", line)
        assert ready, line
        yield process, int(ready[1])
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_takes_calls_and_hangs_up_on_sigterm(tmp_path: Path) -> None:
    log = tmp_path / "phone.jsonl"
    rules = ["--rule", "98912*=busy", "--rule", "*=answer:after=0"]
    async with running(*rules, "--log", str(log)) as (process, port), caller((HOST, port)) as one:
        busy = await one.settled(one.call("+989121234567"))
        assert isinstance(busy, Failed)
        assert busy.code == 486
        call = one.call("+4930123456")
        assert isinstance(await one.settled(call), Answered)
        process.send_signal(signal.SIGTERM)
        assert (await one.saw(call, Ended)).by == "far"
        _, stderr = await process.communicate()
        assert process.returncode == 0
    assert b"+4930123456 answered" in stderr
    assert [line.split('"event": "')[1].split('"')[0] for line in log.read_text().splitlines()] == [
        *("invite", "rejected", "end"),
        *("invite", "answered", "hangup", "end"),
    ]


async def test_a_hostile_number_does_not_reach_the_terminal() -> None:
    async with running("--rule", "*=busy") as (process, port), caller((HOST, port)) as one:
        await one.settled(one.call("1%1b%5b2J%0a"))
        process.send_signal(signal.SIGINT)
        _, stderr = await process.communicate()
        assert process.returncode == 0
        assert b"\x1b" not in stderr
        events = [line.split(b" ")[1] for line in stderr.splitlines()]
        assert events == [b"invite", b"rejected", b"end"]


async def test_a_wrong_rule_is_wrong_usage() -> None:
    process = await start("--listen", f"{HOST}:0", "--rule", "1=bussy")
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert b"'bussy' is not a behaviour" in stderr


async def test_a_taken_port_is_one_sentence() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind((HOST, 0))
        port = holder.getsockname()[1]
        process = await start("--listen", f"{HOST}:{port}")
        _, stderr = await process.communicate()
    assert process.returncode == 1
    assert stderr.decode().startswith(f"bitel: the phone can't listen on {HOST}:{port}: ")
    assert stderr.count(b"\n") == 1
