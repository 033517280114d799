"""pjsua2 (PJSIP) as an independent callee, in a process of its own, on loopback, without audio
devices.

`pjsua2_phone(...)` is the test's side. Run with `-m`, this module is the phone's process, with the
interpreter of the environment that `scripts/peers` makes: pjsua2 is licensed under the GPL and is
no dependency of this project. It does with each call what its steps say, one after the other:

`180`, `183`, `200`, `486` …  send that response; 183 and 200 with a session description
`wait 0.5`                    wait that many seconds
`rfc4733 159#`, `info 159#`   key digits, as telephone events or by INFO
`hold`, `hold by update`      send an offer of `sendonly`, by re-INVITE or by UPDATE
`resume`                      take the call back, by re-INVITE
`reinvite`, `update`          offer the same again
`reinvite without offer`      ask for an offer
`codec PCMU`                  have only that codec from now on
`refer`                       ask the caller to call another number
`hang up`                     send BYE

Beside "incoming", "established", "closed" and "recorded" it reports the final response to each of
its requests within a call, as in "INFO 200", and each step that is done.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tests.peers.phone_process import (
    HOST,
    PhoneProcess,
    Transport,
    folder_of_peers,
    phone_process,
    report,
)

if TYPE_CHECKING:
    pj: Any

Reliable = Literal["off", "optional", "required"]
Timer = Literal["off", "optional", "required"]
HoldKind = Literal["rfc3264", "rfc2543"]


def why_missing() -> str:
    """A sentence that says why pjsua2 can't run here; empty if it can."""
    python = _python()
    return "" if python.exists() else f"there is no pjsua2 in {python.parent}: run scripts/peers"


def version() -> str:
    """The version of PJSIP."""
    done = subprocess.run(
        [_python(), "-c", "import importlib.metadata as m; print(m.version('pjsua2-python'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def _python() -> Path:
    return folder_of_peers() / "pjsua2" / "bin" / "python"


@asynccontextmanager
async def pjsua2_phone(
    *steps: str,
    record: Path | None = None,
    transport: Transport = "udp",
    codec: str = "PCMA",
    reliable: Reliable = "off",
    timer: Timer = "off",
    hold: HoldKind = "rfc3264",
) -> AsyncIterator[PhoneProcess]:
    """A phone that does `steps` with each call; it ends with the `async with`.

    `record` is the WAV to write of the latest call's audio, whole once "recorded" was reported.
    `codec` is the only one that it has. `reliable` is for provisional responses (RFC 3262),
    `timer` for session timers of 90 s (RFC 4028), and `hold` the RFC that its holds go by.
    """
    options = [*steps, "--transport", transport, "--codec", codec, "--reliable", reliable]
    options += ["--timer", timer, "--hold", hold]
    options += [] if record is None else ["--record", str(record)]
    python = str(_python())
    async with phone_process(python, "tests.peers.pjsua2_phone", options, transport) as phone:
        yield phone


# From here on: the process. pjsua2's objects are used by its main thread alone.

_POLL = 10
"""Milliseconds of one poll of the stack's events."""
_STEP_TIMEOUT = 5.0
"""Seconds for which a step is tried again while another transaction is under way."""


class _Failed(Exception):
    pass


def _run(options: argparse.Namespace) -> None:
    # The stack logs to stdout until it is configured.
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import pjsua2

    global pj
    pj = pjsua2
    endpoint = pj.Endpoint()
    endpoint.libCreate()
    config = pj.EpConfig()
    config.logConfig.level = config.logConfig.consoleLevel = 0
    config.uaConfig.threadCnt = 0
    config.uaConfig.mainThreadOnly = True
    config.uaConfig.maxCalls = 16
    config.medConfig.clockRate = config.medConfig.sndClockRate = 8000
    config.medConfig.noVad = True
    # On loopback a jitter buffer has nothing to even out; it may neither drop nor wait.
    config.medConfig.jbInit = config.medConfig.jbMinPre = 0
    config.medConfig.jbMaxPre = 1
    endpoint.libInit(config)
    transport = pj.TransportConfig()
    transport.port = options.port
    transport.boundAddress = HOST
    kind = pj.PJSIP_TRANSPORT_TCP if options.transport == "tcp" else pj.PJSIP_TRANSPORT_UDP
    endpoint.transportCreate(kind, transport)
    endpoint.libStart()
    endpoint.audDevManager().setNullDev()
    _allow_only(options.codec)
    account = _account(options)
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    report("ready")
    while not stopped:
        endpoint.libHandleEvents(_POLL)
        for phone in account.phones:
            phone.work()
    # Its objects refer to each other, and may not be freed in the order that Python would.
    sys.stdout.flush()
    os._exit(0)


def _allow_only(name: str) -> None:
    endpoint = pj.Endpoint.instance()
    for codec in endpoint.codecEnum2():
        endpoint.codecSetPriority(codec.codecId, 0)
    endpoint.codecSetPriority(f"{name}/8000/1", 255)


def _account(options: argparse.Namespace) -> Any:
    class Account(pj.Account):  # type: ignore[misc] # pjsua2 is not installed where types are checked
        def __init__(self) -> None:
            super().__init__()
            self.phones: list[Any] = []

        def onIncomingCall(self, parameters: Any) -> None:
            report("incoming")
            self.phones.append(_call(self, parameters.callId, options))

    config = pj.AccountConfig()
    config.idUri = f"sip:phone@{HOST}:{options.port}"
    calls = config.callConfig
    calls.prackUse = {
        "off": pj.PJSUA_100REL_NOT_USED,
        "optional": pj.PJSUA_100REL_OPTIONAL,
        "required": pj.PJSUA_100REL_MANDATORY,
    }[options.reliable]
    calls.timerUse = {
        "off": pj.PJSUA_SIP_TIMER_INACTIVE,
        "optional": pj.PJSUA_SIP_TIMER_OPTIONAL,
        "required": pj.PJSUA_SIP_TIMER_REQUIRED,
    }[options.timer]
    calls.timerMinSESec = calls.timerSessExpiresSec = 90
    if options.hold == "rfc2543":
        calls.holdType = pj.PJSUA_CALL_HOLD_TYPE_RFC2543
    config.mediaConfig.transportConfig.boundAddress = HOST
    account = Account()
    account.create(config)
    return account


def _call(account: Any, call_id: int, options: argparse.Namespace) -> Any:
    class Call(pj.Call):  # type: ignore[misc] # pjsua2 is not installed where types are checked
        def __init__(self) -> None:
            super().__init__(account, call_id)
            self._steps = self._run_steps()
            self._recorder: Any = None
            self._established = False
            self._over = False

        def work(self) -> None:
            """Go on with the steps as far as possible."""
            if not self._over:
                next(self._steps, None)
            elif self._recorder is not None:
                self._recorder = None  # which writes the file's header
                report("recorded")

        def onCallState(self, parameters: Any) -> None:
            state = self.getInfo().state
            if state == pj.PJSIP_INV_STATE_CONFIRMED:
                self._established = True
                report("established")
            elif state == pj.PJSIP_INV_STATE_DISCONNECTED:
                self._over = True
                report("closed")

        def onCallMediaState(self, parameters: Any) -> None:
            info = self.getInfo()  # owns what `media` refers to
            media = info.media
            if options.record is None or not media:
                return
            if media[0].status != pj.PJSUA_CALL_MEDIA_ACTIVE:
                return
            if self._recorder is None:
                self._recorder = pj.AudioMediaRecorder()
                self._recorder.createRecorder(str(options.record))
            self.getAudioMedia(0).startTransmit(self._recorder)

        def onCallTsxState(self, parameters: Any) -> None:
            transaction = parameters.e.body.tsxState.tsx
            if (
                transaction.role == pj.PJSIP_ROLE_UAC
                and transaction.state == pj.PJSIP_TSX_STATE_COMPLETED
            ) or (
                # A 2xx ends the transaction of an INVITE.
                transaction.role == pj.PJSIP_ROLE_UAC
                and transaction.method == "INVITE"
                and transaction.state == pj.PJSIP_TSX_STATE_TERMINATED
                and transaction.statusCode < 300
            ):
                report(f"{transaction.method} {transaction.statusCode}")

        def _run_steps(self) -> Iterator[None]:
            for step in options.steps:
                name, _, value = step.partition(" ")
                if name == "wait":
                    yield from self._wait(float(value))
                elif name.isdigit():
                    yield from self._try(partial(self._respond, int(name)))
                    while name.startswith("2") and not self._established:
                        yield
                else:
                    yield from self._try(partial(self._do, step))
                report(step)

        def _wait(self, seconds: float) -> Iterator[None]:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                yield

        def _try(self, action: Callable[[], object]) -> Iterator[None]:
            end = time.monotonic() + _STEP_TIMEOUT
            while True:
                try:
                    action()
                    return
                except pj.Error as fault:
                    if time.monotonic() > end:
                        report(f"failed: {fault.reason}")
                        raise _Failed(fault.info()) from None
                yield

        def _respond(self, code: int) -> None:
            parameters = pj.CallOpParam(True)
            parameters.statusCode = code
            self.answer(parameters)

        def _do(self, step: str) -> None:
            parameters = pj.CallOpParam(True)
            name, _, value = step.partition(" ")
            if name in ("rfc4733", "info"):
                digits = pj.CallSendDtmfParam()
                digits.digits = value
                info = name == "info"
                digits.method = (
                    pj.PJSUA_DTMF_METHOD_SIP_INFO if info else pj.PJSUA_DTMF_METHOD_RFC2833
                )
                self.sendDtmf(digits)
            elif name == "codec":
                _allow_only(value)
            elif step == "hold":
                self.setHold(pj.CallOpParam())
            elif step == "hold by update":
                parameters.opt.flag = pj.PJSUA_CALL_SET_MEDIA_DIR
                parameters.opt.mediaDir.append(pj.PJMEDIA_DIR_ENCODING)
                self.update(parameters)
            elif step == "resume":
                parameters.opt.flag = pj.PJSUA_CALL_UNHOLD | pj.PJSUA_CALL_SET_MEDIA_DIR
                parameters.opt.mediaDir.append(pj.PJMEDIA_DIR_ENCODING_DECODING)
                self.reinvite(parameters)
            elif step == "reinvite":
                self.reinvite(parameters)
            elif step == "reinvite without offer":
                parameters.opt.flag = pj.PJSUA_CALL_NO_SDP_OFFER
                self.reinvite(parameters)
            elif step == "update":
                self.update(parameters)
            elif step == "refer":
                self.xfer(f"sip:0912@{HOST}:{options.port}", parameters)
            elif step == "hang up":
                self.hangup(parameters)
            else:
                raise _Failed(f"there is no step {step}")

    return Call()


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("steps", nargs="*")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--transport", choices=["udp", "tcp"])
    parser.add_argument("--codec")
    parser.add_argument("--reliable")
    parser.add_argument("--timer")
    parser.add_argument("--hold")
    _run(parser.parse_args())


if __name__ == "__main__":
    _main()
