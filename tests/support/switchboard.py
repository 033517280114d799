"""A dialer at work over a real store: places calls at peers, and reads what was written of them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection

from bitel.dialer.config import SipTrunkConfig
from bitel.dialer.playlist import Codec, Playlist, PlaylistSource
from bitel.dialer.sip_dialer import SipTrunkDialer
from bitel.dialer.trunk import Trunk
from bitel.dialing.dispatcher import Dispatcher
from bitel.dialing.limit_shares import Limits
from bitel.domain.attempts import DialRequest, Outcome
from bitel.domain.calls import Call, CallStatus, NewCall
from bitel.domain.ids import new_id
from bitel.domain.pricing import Rate, Tariff
from bitel.g711 import Codes, Pcm, alaw_encode, ulaw_encode
from bitel.recordings.audio_match import match
from bitel.recordings.sample import synthesise
from bitel.rtp.shared_clip import clip_of
from bitel.store import balances, calls
from bitel.store.calls import AttemptRow
from bitel.store.database import Database
from tests.support import call_rows, factories
from tests.support.free_ports import free_range
from tests.support.waiting import until_found

HOST = "127.0.0.1"
T1 = 0.02
"""Seconds: Timers B and F are 1.28 s then, and nobody waits long for what never comes."""
_TARIFF = Tariff((Rate("+98", Decimal(1), increment=1),))
_PIECE = 2000
"""Samples, a quarter of a second."""
_A_LAW_SILENCE = b"\xd5"
_ENCODERS: Mapping[Codec, Callable[[Pcm], Codes]] = {"PCMA": alaw_encode, "PCMU": ulaw_encode}


class OneClip(PlaylistSource):
    """Plays the same to every callee: `seconds` of silence, or `sound` in the codec of the call."""

    def __init__(self, folder: Path, seconds: float, sound: Pcm | None = None) -> None:
        silence = _A_LAW_SILENCE * round(seconds * 8000)
        self._clips = {
            codec: clip_of(silence if sound is None else encode(sound).tobytes())
            for codec, encode in _ENCODERS.items()
        }

    async def for_request(
        self, request: DialRequest, codecs: Sequence[Codec]
    ) -> Mapping[str, Playlist]:
        """The clip in each of the codecs."""
        return {codec: [self._clips[codec]] for codec in codecs}


def assert_answered(record: Record, by: str = "us") -> None:
    """Check that it was answered with 200, ended by that side, and billed once for its duration."""
    assert record.outcome is Outcome.ANSWERED, record
    assert (record.attempt.sip_code, record.attempt.ended_by) == (200, by), record
    assert (record.bill_seconds, record.bills) == (math.ceil(record.talked), 1)


def sample(seconds: float) -> Pcm:
    """A tune at 8 kHz, no part of which is like another."""
    return np.ascontiguousarray(synthesise(seconds)[::2])


def share_received(sent: Pcm, received: Pcm) -> float:
    """The share of `sent` that is in `received`, 0 to 1, matched by quarters of a second.

    Each is matched by itself, because a peer that records by its own clock shifts all audio after a
    packet that it drops or inserts, and after a hold.
    """
    pieces = [sent[at : at + _PIECE] for at in range(0, len(sent), _PIECE)]
    return sum(match(piece, received).covered for piece in pieces) / len(pieces)


@dataclass(frozen=True, slots=True)
class Record:
    """What the store holds of a call after its one attempt."""

    status: CallStatus
    bill_seconds: int
    bills: int
    """Entries of the ledger; a call that was answered has one, any other none."""
    attempt: AttemptRow

    @property
    def outcome(self) -> Outcome | None:
        """What became of the attempt."""
        return self.attempt.outcome

    @property
    def talked(self) -> float:
        """Seconds from the answer to the end."""
        assert self.attempt.answered_at is not None, "nobody answered"
        assert self.attempt.ended_at is not None, "it is not over"
        return self.attempt.ended_at - self.attempt.answered_at


class Switchboard:
    """Places calls by way of `dialer`."""

    def __init__(self, database: Database, dialer: SipTrunkDialer) -> None:
        self.dialer = dialer
        self._database = database
        # Several may share a database.
        self._dialer_id = f"dialer-{new_id(time.time())}"
        self._dispatcher = Dispatcher(
            self._dialer_id,
            "worker",
            dialer,
            Limits(max_channels=100, calls_per_second=1000.0, ring_timeout=45.0),
            database,
            _TARIFF,
            time.time,
        )

    async def call(self, number: str = "09121234567") -> Record:
        """Make one attempt to reach somebody, and wait until it is settled.

        After trouble with the trunk the call itself is still WAITING: it is to be tried again.
        """
        new = await self._database.write(lambda conn: _place(conn, self._dialer_id, number))
        self._dispatcher.wake()

        async def settled() -> list[AttemptRow] | None:
            attempts = await self._database.read(lambda conn: calls.attempts(conn, new.id))
            return attempts if attempts and attempts[0].claim == "settled" else None

        attempts = await until_found(settled, 90)
        found = await self._database.read(lambda conn: calls.find(conn, new.project_id, new.id))
        assert found is not None
        entries = await self._database.read(lambda conn: balances.entries(conn, new.project_id))
        return Record(found.status, found.bill_seconds, len(entries), attempts[0])

    async def call_until_over(self, number: str = "09121234567") -> tuple[Call, list[AttemptRow]]:
        """Make as many attempts as the call takes, at most 30 s; what was written of them."""
        new = await self._database.write(lambda conn: _place(conn, self._dialer_id, number))
        self._dispatcher.wake()

        async def over() -> Call | None:
            found = await self._database.read(lambda conn: calls.find(conn, new.project_id, new.id))
            assert found is not None
            return found if found.status.final else None

        found = await until_found(over, 30)
        attempts = await self._database.read(lambda conn: calls.attempts(conn, new.id))
        return found, attempts

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Dial what is due inside the block."""
        await self._dispatcher.take_over()
        task = asyncio.create_task(self._dispatcher.run())
        try:
            yield
        finally:
            await self._dispatcher.drain(5.0)
            await task


def _place(conn: Connection, dialer_id: str, number: str) -> NewCall:
    """A call of a project of its own, so that the project's ledger is the call's."""
    now = time.time()
    project_id, recording_id = factories.make_project(conn, now, f"customer {new_id(now)}")
    new = factories.new_call(
        project_id,
        recording_id,
        now,
        dialer_id=dialer_id,
        phone_number=number,
        e164=f"+98{number.removeprefix('0')}",
        retry_count=0,
        expires_at=now + 600,
    )
    call_rows.place(conn, [new])
    return new


@asynccontextmanager
async def switchboard(
    folder: Path,
    database: Database,
    *trunks: str,
    clip: float = 0.04,
    sound: Pcm | None = None,
    **config: Any,
) -> AsyncIterator[Switchboard]:
    """A dialer that calls by way of `trunks` and plays `clip` seconds of silence, or `sound`.

    `config` are fields of SipTrunkConfig. Numbers are dialled as `+98…`.
    """
    values = {"t1": T1, "ring_timeout": 10.0, "ping_interval": 0.0, **config}
    dialer = SipTrunkDialer(
        SipTrunkConfig(
            tuple(Trunk.parse(trunk) for trunk in trunks),
            (HOST, 0),
            free_range(20),
            **values,
        ),
        OneClip(folder, clip, sound),
        time.time,
    )
    await dialer.start()
    try:
        made = Switchboard(database, dialer)
        async with made.at_work():
            yield made
    finally:
        await dialer.close()
