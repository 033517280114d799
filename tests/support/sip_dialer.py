"""A dialer on free ports that calls carriers of the test, and plays next to nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bitel.dialer.call_attempt import CallObserver
from bitel.dialer.config import SipTrunkConfig
from bitel.dialer.playlist import Codec, Playlist, PlaylistSource
from bitel.dialer.resolver import Resolver
from bitel.dialer.sip_dialer import SipTrunkDialer
from bitel.dialer.trunk import Trunk
from bitel.domain.attempts import AttemptResult, DialRequest
from bitel.rtp.shared_clip import clip_of
from tests.support.free_ports import free_range

HOST = "127.0.0.1"


class OneClip(PlaylistSource):
    """Plays `sound`, 40 ms of silence by default, in every call."""

    def __init__(self, folder: Path, sound: bytes = b"\xd5" * 320) -> None:
        self._clip = clip_of(sound)

    async def for_request(
        self, request: DialRequest, codecs: Sequence[Codec]
    ) -> Mapping[str, Playlist]:
        return {codec: [self._clip] for codec in codecs}


class Dialled:
    """Places calls by way of `dialer`."""

    def __init__(self, dialer: SipTrunkDialer) -> None:
        self.dialer = dialer
        self.count = 0

    @property
    def port(self) -> int:
        """Where the dialer speaks SIP from."""
        return self.dialer._sip.local[1]

    async def call(
        self,
        number: str = "+989121234567",
        recording: str | None = "recording",
        digits: str = "",
        caller_id: str = "",
    ) -> AttemptResult:
        """Make one attempt."""
        self.count += 1
        order = DialRequest(
            f"attempt{self.count}", f"{self.count:032x}", number, recording, digits,
            caller_id=caller_id,
        )  # fmt: skip
        return await self.dialer.dial(order, self._heard)

    async def _heard(self, at: float) -> bool:
        return True


@asynccontextmanager
async def dialer(
    folder: Path,
    *trunks: str,
    targets: Resolver | None = None,
    watch: CallObserver | None = None,
    sound: bytes = b"\xd5" * 320,
    playlists: PlaylistSource | None = None,
    clock: Callable[[], float] = time.time,
    registers: Callable[[], bool] = lambda: True,
    **config: Any,
) -> AsyncIterator[Dialled]:
    """A dialer with T1 of 20 ms, so that a request times out after 1.3 s."""
    values: dict[str, Any] = {
        "bind": (HOST, 0),
        "t1": 0.02,
        "ring_timeout": 5.0,
        "ping_interval": 0.0,
        **config,
    }
    made = SipTrunkDialer(
        SipTrunkConfig(
            tuple(Trunk.parse(trunk) for trunk in trunks),
            rtp_ports=free_range(10),
            **values,
        ),
        playlists or OneClip(folder, sound),
        clock,
        resolver=targets,
        observer=watch,
        system_clock=clock,
    )
    made.registers = registers
    await made.start()
    try:
        yield Dialled(made)
    finally:
        await made.close()


@asynccontextmanager
async def running_call(
    folder: Path, trunk: str, **config: Any
) -> AsyncIterator[tuple[Dialled, asyncio.Task[AttemptResult]]]:
    """A call that has begun, over a `dialer` of these parameters; its end is awaited on exit."""
    async with dialer(folder, trunk, **config) as calls:
        call = asyncio.create_task(calls.call())
        try:
            yield calls, call
        finally:
            await asyncio.wait_for(call, 20)
