"""The results of a campaign as a table: what each line says, and how it is streamed."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import insert, update

from bitel.api import results_csv
from bitel.api.results_csv import COLUMNS, safe_cell
from bitel.api.server import BoundedProtocol
from bitel.domain.attempts import Media, Outcome
from bitel.domain.ids import new_id, new_ids
from bitel.domain.retry import RetryAt
from bitel.store import call_details, claims, settling
from bitel.store import campaigns as campaign_rows
from bitel.store.campaigns import Campaign
from bitel.store.schema import attempt, call
from tests.support import factories
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.api.stage import Stage

V2 = "/api/v2/voice"


async def place(stage: Stage, **body: Any) -> str:
    async with stage.client() as client:
        answer = await client.post(f"{V2}/batch", json={"voiceId": stage.recording_id, **body})
    campaign_id: str = answer.json()["campaignId"]
    return campaign_id


async def table(stage: Stage, campaign_id: str) -> list[dict[str, str]]:
    async with stage.client() as client:
        answer = await client.get(f"{V2}/campaign/{campaign_id}/results.csv")
    assert answer.status_code == 200
    return list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"), newline="")))


async def test_each_call_is_a_line_with_all_of_its_attempts(stage: Stage) -> None:
    campaign_id = await place(
        stage,
        recipients=[
            {"phoneNumber": "0912 000 0001", "reference": "سفارش, ۱"},
            {"phoneNumber": "+989120000002", "reference": "=1+1"},
        ],
    )
    now = stage.clock()
    lease, taken = stage.take()
    first, second = sorted(taken, key=lambda one: one.e164)
    busy = factories.settlement(
        first, RetryAt(now + 60, spends_retry=True, trouble=0), Outcome.BUSY, sip_code=486
    )
    stage.do(lambda conn: settling.settle(conn, lease, [busy], now + 20))
    stage.clock.now = now = now + 100
    taken = stage.do(lambda conn: claims.claim(conn, lease, 10, now))
    media = Media(250, 240, "1#", 0.125, None)
    answered = factories.answered(taken[0])
    answered = answered._replace(
        result=answered.result._replace(media=media, rang_at=taken[0].started_at + 3)
    )
    stage.do(lambda conn: settling.settle(conn, lease, [answered], now + 20))
    stage.do(
        lambda conn: conn.execute(
            update(attempt).where(attempt.c.id == taken[0].attempt_id).values(machine="human")
        )
    )

    one, other = await table(stage, campaign_id)
    assert list(one) == list(COLUMNS)
    assert one == {
        "id": first.call_id,
        "phoneNumber": "0912 000 0001",
        "reference": "سفارش, ۱",
        "status": "NORMAL",
        "reason": "answered",
        "billSec": "12",
        "requestDate": "2023-11-14T22:13:20Z",
        "executionDate": "2023-11-14T22:15:00Z",
        "price": "-34.2",
        "attempts": "2",
        "keys": "1#",
        "machine": "human",
        "lastOutcome": "ANSWERED",
        "lastSipCode": "200",
        "attemptDetails": "1: BUSY 486, dialled 2023-11-14T22:13:20Z, ended 2023-11-14T22:13:40Z; "
        "2: ANSWERED 200, dialled 2023-11-14T22:15:00Z, rang 2023-11-14T22:15:03Z, "
        "answered 2023-11-14T22:15:08Z, ended 2023-11-14T22:15:20Z, keys 1#",
        "reports": "",
    }
    assert (other["id"], other["phoneNumber"]) == (second.call_id, "+989120000002")
    assert other["reference"] == "'=1+1"
    assert (other["status"], other["attempts"]) == ("WAITING", "1")
    assert (other["lastOutcome"], other["executionDate"]) == ("UNDER_WAY", "")


async def test_the_answer_is_a_file_that_excel_reads_as_utf_8(sqlite_stage: Stage) -> None:
    campaign_id = await place(sqlite_stage, phoneNumbers=["09120000001"])
    async with sqlite_stage.client() as client:
        answer = await client.get(f"{V2}/campaign/{campaign_id}/results.csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == (
        f'attachment; filename="campaign-{campaign_id}.csv"'
    )
    assert answer.headers["cache-control"] == "no-store"
    assert answer.content.startswith(b"\xef\xbb\xbfid,phoneNumber,")
    assert answer.content.count(b"\r\n") == answer.content.count(b"\n") == 2


async def test_a_campaign_of_another_project_is_not_found(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    campaign_id = await place(stage, phoneNumbers=["09120000001"])
    _, other = stage.new_token(stage.new_project("other"))
    async with stage.client(other) as theirs, stage.client() as ours:
        for client, wanted in ((theirs, campaign_id), (ours, "0" * 32), (ours, "x")):
            answer = await client.get(f"{V2}/campaign/{wanted}/results.csv")
            assert answer.status_code == 404
            assert answer.json()["error"] == "NotFound"


def large(stage: Stage, calls: int) -> str:
    """Store a campaign of many calls, past the API."""
    now = stage.clock()
    campaign_id, ids = new_id(now), new_ids(now, calls)
    fields = {
        "project_id": stage.project_id,
        "campaign_id": campaign_id,
        "dialer_id": "main",
        "e164": "+989120000001",
        "recording_id": stage.recording_id,
        "lane": 2,
        "status": 1,
        "retry_count": 0,
        "retries_left": 0,
        "retry_interval": 60,
        "requested_at": now,
        "expires_at": now,
        "trouble": 0,
        "attempts": 0,
        "executed_at": now,
        "bill_seconds": 1,
        "price": 0,
        "reason": "",
    }

    def add(conn: Any) -> None:
        campaign_rows.add(
            conn, Campaign(campaign_id, stage.project_id, "main", stage.recording_id, now, calls)
        )
        conn.execute(insert(call), [{**fields, "id": one, "phone_number": one} for one in ids])

    stage.do(add)
    return campaign_id


@pytest.mark.parametrize("calls", [0, 7, 8, 20])
async def test_pages_leave_out_no_call_and_repeat_none(
    sqlite_stage: Stage, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    monkeypatch.setattr(results_csv, "CALLS_AT_ONCE", 4)
    campaign_id = large(sqlite_stage, calls) if calls else ""
    if not calls:
        campaign_id = new_id(sqlite_stage.clock())
        new = Campaign(campaign_id, sqlite_stage.project_id, "main", None, 1.0, 0)
        sqlite_stage.do(lambda conn: campaign_rows.add(conn, new))
    found = [line["id"] for line in await table(sqlite_stage, campaign_id)]
    stored = [row.id for row in sqlite_stage.rows()]
    assert found == stored
    assert len(found) == calls


async def test_a_client_that_reads_nothing_holds_a_few_pages_and_no_connection(
    sqlite_stage: Stage,
    served: Callable[[Stage], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = sqlite_stage
    campaign_id = large(stage, 100_000)
    pages = 0
    page = call_details.page_of_campaign

    def counted(*args: Any) -> Any:
        nonlocal pages
        pages += 1
        return page(*args)

    monkeypatch.setattr(call_details, "page_of_campaign", counted)
    is_paused = False
    pause, resume = BoundedProtocol.pause_writing, BoundedProtocol.resume_writing

    def paused(protocol: BoundedProtocol) -> None:
        nonlocal is_paused
        is_paused = True
        pause(protocol)

    def resumed(protocol: BoundedProtocol) -> None:
        nonlocal is_paused
        is_paused = False
        resume(protocol)

    monkeypatch.setattr(BoundedProtocol, "pause_writing", paused)
    monkeypatch.setattr(BoundedProtocol, "resume_writing", resumed)
    downloads = stage.app.state.services.downloads
    async with served(stage) as url:
        address = httpx.URL(url)
        reader, writer = await asyncio.open_connection(address.host, address.port, limit=1024)
        writer.write(
            f"GET {V2}/campaign/{campaign_id}/results.csv HTTP/1.1\r\nHost: bitel\r\n"
            f"Authorization: Bearer {stage.token}\r\n\r\n".encode()
        )
        await until(lambda: pages > 1)
        before, seen_so = pages, 0
        while seen_so < 20:  # until the buffers of the kernel are full
            await asyncio.sleep(0.05)
            seen_so = seen_so + 1 if is_paused and pages == before else 0
            before = pages
        assert pages < 180  # of 200
        # The database answers others meanwhile, by all of its threads.
        async with stage.client(url=url) as client:
            answers = await asyncio.gather(
                *(client.get(f"{V2}/campaign/{campaign_id}") for _ in range(10))
            )
        assert {answer.status_code for answer in answers} == {200}
        assert pages == before
        assert downloads._count[stage.project_id] == 1
        writer.transport.abort()
        await until(lambda: not downloads._count)
        assert pages <= before + 1
        assert reader is not None


async def test_downloads_of_a_project_are_limited(
    sqlite_stage: Stage, served: Callable[[Stage], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = sqlite_stage
    campaign_id = await place(stage, phoneNumbers=["09120000001"])
    path = f"{V2}/campaign/{campaign_id}/results.csv"
    going = asyncio.Event()
    read = stage.parts.database.read

    async def held(work: Any) -> Any:
        if "_pieces" in work.__qualname__:
            await going.wait()
        return await read(work)

    monkeypatch.setattr(stage.parts.database, "read", held)
    async with served(stage) as url, stage.client(url=url) as client:
        first = [asyncio.create_task(client.get(path)) for _ in range(results_csv.MOST_DOWNLOADS)]
        downloads = stage.app.state.services.downloads
        await until(lambda: downloads._count[stage.project_id] == len(first))
        third = await client.get(path)
        assert (third.status_code, third.json()["error"]) == (429, "TooManyRequests")
        going.set()
        assert {(await each).status_code for each in first} == {200}
        assert (await client.get(path)).status_code == 200


@given(st.text())
@example("=cmd|' /C calc'!A0")
@example("  =1")
@example("\t=1")
@example("＝1+1")
@example("@SUM(1)")
@example("-1+1")
@example("+98-912")
def test_no_cell_is_a_formula(text: str) -> None:
    cell = safe_cell(text)
    assert cell.removeprefix("'") == text.removeprefix("'")
    is_number = cell.lstrip("+-").replace(".", "", 1).isdecimal()
    assert is_number or cell.lstrip()[:1] not in tuple("=+-@＝＋－＠")
    assert cell[:1] not in ("\t", "\r", "\n")


@pytest.mark.parametrize("text", ["", "+989121234567", "-34.2", "12", "a=1", "order-4711", "علی"])
def test_what_is_no_formula_stays_as_it_is(text: str) -> None:
    assert safe_cell(text) == text
