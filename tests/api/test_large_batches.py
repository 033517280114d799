"""Large batches over HTTP: others do not wait for them, and a fault leaves nothing of them."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import update

from bitel.store import large_batches, placing, projects
from bitel.store.schema import incomplete_batch, project, recording

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from bitel.domain.calls import NewCalls
    from tests.api.stage import Stage

BATCH = "/api/v2/voice/batch"
PIECE = 100
COUNT = 5 * PIECE + 1


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "CHUNK", PIECE)
    monkeypatch.setattr(large_batches, "PIECE", PIECE)


def body(stage: Stage, **changes: Any) -> dict[str, Any]:
    numbers = [f"0912{number:07}" for number in range(COUNT)]
    return {"phoneNumbers": numbers, "voiceId": stage.recording_id, **changes}


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Connection], Any]], None]:
    """Has something happen once, in the transaction of a batch's third piece."""

    def add(event: Callable[[Connection], Any]) -> None:
        pieces = 0
        plain = large_batches.write_piece

        def write_piece(conn: Connection, calls: NewCalls, prepared: str, now: float) -> None:
            nonlocal pieces
            pieces += 1
            if pieces == 3:
                event(conn)
            plain(conn, calls, prepared, now)

        monkeypatch.setattr(large_batches, "write_piece", write_piece)

    return add


def leftovers(stage: Stage) -> int:
    """Rows that mark a batch as incomplete."""
    return len(stage.do(lambda conn: conn.execute(incomplete_batch.select()).all()))


async def test_others_get_in_between_the_pieces(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that is placed while a batch is written is stored before the batch is."""
    plain, order = large_batches.write_piece, []
    loop = asyncio.get_running_loop()
    single = {"phoneNumber": "09351234567", "voiceId": stage.recording_id}
    tasks: list[asyncio.Task[None]] = []
    async with stage.client() as client:

        async def place_one() -> None:
            answer = await client.post("/api/v2/voice/single", json=single)
            assert answer.status_code == 200
            order.append("single")

        def write_piece(conn: Connection, calls: NewCalls, prepared: str, now: float) -> None:
            if not tasks:
                tasks.append(asyncio.run_coroutine_threadsafe(begun(), loop).result(10))
            plain(conn, calls, prepared, now)

        async def begun() -> asyncio.Task[None]:
            return asyncio.create_task(place_one())

        monkeypatch.setattr(large_batches, "write_piece", write_piece)
        answer = await client.post(BATCH, json=body(stage))
        order.append("batch")
        await asyncio.gather(*tasks)
        calls = await client.get("/api/v2/voice/calls?limit=100")
    assert answer.status_code == 200, answer.text
    assert order == ["single", "batch"]
    assert len(calls.json()["result"]["calls"]) == 100
    assert len(stage.rows()) == COUNT + 1
    assert leftovers(stage) == 0


@pytest.mark.parametrize("fault", ["recording", "abandoned", "broken"])
async def test_a_fault_in_between_leaves_nothing(
    stage: Stage, meanwhile: Callable[..., None], fault: str
) -> None:
    def event(conn: Connection) -> None:
        match fault:
            case "recording":
                is_it = recording.c.id == stage.recording_id
                conn.execute(update(recording).where(is_it).values(deleted_at=stage.clock()))
            case "abandoned":
                conn.execute(update(incomplete_batch).values(is_abandoned=True))
            case _:
                raise RuntimeError("a fault of the program")

    meanwhile(event)
    async with stage.client() as client:
        answer = await client.post(BATCH, json=body(stage))
    expected = {
        "recording": (400, "InvalidRequest"),
        "abandoned": (503, "Unavailable"),
        "broken": (500, "InternalError"),
    }
    assert (answer.status_code, answer.json()["error"]) == expected[fault]
    assert stage.rows() == []
    assert leftovers(stage) == 0


async def test_a_balance_that_was_set_meanwhile_counts(
    stage: Stage, meanwhile: Callable[..., None]
) -> None:
    meanwhile(
        lambda conn: projects.set_balance(conn, stage.project_id, Decimal(10**6), stage.clock())
    )
    async with stage.client() as client:
        answer = await client.post(BATCH, json=body(stage))
    assert answer.status_code == 200, answer.text
    assert len(stage.rows()) == COUNT
    reserved = stage.do(lambda conn: conn.execute(project.select()).one().reserved)
    assert reserved == sum(row.reserved for row in stage.rows())


async def test_the_same_key_at_once_places_one_batch(stage: Stage) -> None:
    headers = {"Idempotency-Key": "once"}
    async with stage.client() as client:
        answers = await asyncio.gather(
            *(client.post(BATCH, json=body(stage), headers=headers) for _ in range(3))
        )
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({answer.content for answer in answers}) == 1
    assert len(stage.rows()) == COUNT
    assert leftovers(stage) == 0


async def test_a_request_that_is_cut_off_leaves_all_or_nothing(
    stage: Stage, meanwhile: Callable[..., None]
) -> None:
    loop = asyncio.get_running_loop()
    async with stage.client() as client:
        request = asyncio.create_task(client.post(BATCH, json=body(stage)))
        meanwhile(lambda _: loop.call_soon_threadsafe(request.cancel))
        with pytest.raises(asyncio.CancelledError):
            await request
    while leftovers(stage):
        await asyncio.sleep(0)
    assert len(stage.rows()) in (0, COUNT)
