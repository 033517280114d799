"""A body in pieces becomes a file, or nothing."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitel.errors import PayloadTooLargeError
from bitel.recordings.files import receive


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.lists(st.binary(max_size=50), max_size=10), limit=st.integers(0, 300))
def test_all_or_nothing(tmp_path: Path, chunks: list[bytes], limit: int) -> None:
    into = tmp_path / "upload"
    whole = b"".join(chunks)
    if len(whole) > limit:
        with pytest.raises(PayloadTooLargeError, match=f"larger than {limit} bytes"):
            asyncio.run(receive(pieces(*chunks), into, limit))
        assert not into.exists()
    else:
        assert asyncio.run(receive(pieces(*chunks), into, limit)) == len(whole)
        assert into.read_bytes() == whole
        into.unlink()


async def test_it_stops_the_moment_the_limit_is_passed(tmp_path: Path) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1000
            yield bytes(1000)

    with pytest.raises(PayloadTooLargeError):
        await receive(endless(), tmp_path / "upload", 10_000)
    assert sent == 11_000


async def test_it_holds_one_piece_in_memory(tmp_path: Path) -> None:
    chunk = bytes(64 * 1024)
    tracemalloc.start()
    await receive(pieces(*[chunk] * 1600), tmp_path / "upload", 200 * 1024 * 1024)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "upload").stat().st_size == 1600 * len(chunk)
    assert peak < 8 * 1024 * 1024


async def test_a_client_that_goes_away_leaves_nothing(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(2 * 1024 * 1024)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await receive(broken(), tmp_path / "upload", 10**9)
    assert list(tmp_path.iterdir()) == []


async def test_called_off(tmp_path: Path) -> None:
    started = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield b"the beginning"
        started.set()
        await asyncio.Event().wait()

    receiving = asyncio.create_task(receive(stuck(), tmp_path / "upload", 10**9))
    await started.wait()
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    assert list(tmp_path.iterdir()) == []


async def test_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(b"someone else's")
    with pytest.raises(FileExistsError):
        await receive(pieces(b"mine"), tmp_path / "upload", 100)
    assert (tmp_path / "upload").read_bytes() == b"someone else's"
