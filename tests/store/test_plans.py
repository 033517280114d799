"""The queries that run all the time find their rows through an index, on both databases."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import psycopg
import pytest
from sqlalchemy import URL, Connection, Executable, event, text

from bitel.domain.calls import CallStatus
from bitel.domain.campaign_json import CampaignPhase
from bitel.domain.ids import new_id
from bitel.store import (
    balances,
    call_frequency,
    call_lists,
    calls,
    campaign_schedules,
    campaigns,
    claims,
    do_not_call,
    endings,
    fair_queue,
    idempotency,
    migrate,
    monitoring,
    number_exclusion,
    one_time_passwords,
    placing,
    recordings,
    recovery,
    settling,
    speech_parts,
    sql_batch,
    tokens,
    webhooks,
)
from bitel.store.call_lists import CallFilter, Span
from bitel.store.campaigns import Campaign
from bitel.store.database import Database
from bitel.store.schema import metadata
from bitel.store.sql_batch import Statement
from tests.support import call_rows

if TYPE_CHECKING:
    from tests.support.store_world import World


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def untouched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """A migrated database that no other test has written to.

    What PostgreSQL plans depends on the statistics that earlier rows have left behind.
    """
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('plans') / 'bitel.db'}"
    else:
        server: URL = request.getfixturevalue("postgres")
        name = f"bitel_plans_{uuid.uuid4().hex}"
        with psycopg.connect(
            server.render_as_string(hide_password=False), autocommit=True
        ) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        url = server.set(database=name).render_as_string(hide_password=False)
    migrate.upgrade(url)
    with Database.open(url) as opened:
        yield opened


TABLES = frozenset(metadata.tables)
IDS = ["a", "b"]
ROWS = [("a",), ("b",)]
MINE = {"dialer_id": "main", "epoch": 1}
LANE = {"dialer_id": "main", "lane": 1, "now": 1.0, "most": 5}
QUERIES: dict[str, tuple[Executable, dict[str, Any], set[str]]] = {
    "lanes": (fair_queue._LANES.core, {"dialer_id": "main", "after": -1}, {"ix_call_due"}),
    "to postpone": (fair_queue._DUE_IDS.core, {**LANE, "project_id": "p"}, {"ix_call_due"}),
    "windows": (campaign_schedules._WINDOWS.core, {}, {"ix_project_window"}),
    "campaigns": (
        campaign_schedules._RUNNING.core,
        {"dialer_id": "main", "after_project": "", "after_campaign": "", "most": 5},
        {"ix_campaign_unfinished", "ix_call_due_in_campaign"},
    ),
    "campaigns at their end": (
        campaign_schedules._ENDED.core,
        {"dialer_id": "main", "date": 1.0, "most": 5},
        {"ix_campaign_ending"},
    ),
    "left of a campaign": (
        campaign_schedules._LEFT.core,
        {"campaign_id": "c", "most": 5},
        {"ix_call_due_in_campaign"},
    ),
    "expired": (
        claims._EXPIRED.core,
        {"dialer_id": "main", "now": 1.0, "most": 5},
        {"ix_call_expiring"},
    ),
    "next due": (
        claims._NEXT_DUE.core,
        {"dialer_id": "main"},
        {"ix_call_next", "ix_call_expiring"},
    ),
    "queue": (
        monitoring._QUEUE,
        {"dialer_id": "main", "most": 5},
        {"ix_call_next", "ix_call_due_in_campaign"},
    ),
    # Two indexes hold the open attempts and nothing else.
    "left open": (recovery._LEFT_OPEN, {"dialer_id": "main"}, {"_attempt_open"}),
    "cancel requests": (
        claims._CANCEL_REQUESTS,
        {"dialer_id": "main"},
        {"ix_cancel_request_dialer"},
    ),
    "campaign's state": (campaigns._FIND, {"id": "c", "project_id": "p"}, set()),
    "campaign's page": (
        campaigns._PAGE,
        {"campaign_id": "c", "project_id": "p", "after": "", "most": 5},
        {"ix_call_campaign"},
    ),
    "campaign's due": (
        campaigns._DUE,
        {"campaign_id": "c", "most": 5},
        {"ix_call_due_in_campaign"},
    ),
    "needed recording": (
        recordings._NEEDED,
        {"recording_id": "r"},
        {"ix_call_needing_recording"},
    ),
    "speech": (
        recordings._FIND_SPEECH,
        {"project_id": "p", "speech_key": "k"},
        {"uq_recording_speech_key"},
    ),
    "recordings": (
        recordings._PAGE,
        {"project_id": "p", "after": "", "most": 5},
        {"ix_recording_project"},
    ),
    "campaigns to render": (speech_parts._CAMPAIGNS.core, {"after": ""}, {"ix_call_unrendered"}),
    "calls to render": (
        speech_parts._CALLS.core,
        {"campaign_id": "c", "most": 5},
        {"ix_call_unrendered"},
    ),
    "spoken parts": (
        speech_parts._FIND.core,
        {"project_id": "p", "keys": ROWS},
        {"speech_part_"},
    ),
    "tries": (webhooks._TRIES, {"ids": IDS}, {"ix_webhook_try_event"}),
    "old keys": (idempotency._OLD, {"before": 1.0, "most": 5}, {"ix_idempotency_key_created"}),
    "orphans": (recovery._ORPHANED_CALLS, {"known": IDS, "after": ""}, {"ix_call_"}),
    "orphaned campaigns": (
        recovery._ORPHANED_CAMPAIGNS,
        {"known": IDS, "after": ""},
        {"ix_campaign_unfinished"},
    ),
    "left by lost dialers": (
        recovery._ORPHANED_ATTEMPTS,
        {"known": IDS, "after": ""},
        {"ix_attempt_open"},
    ),
    "ledger": (
        balances._ENTRIES,
        {"project_id": "p", "before": "z", "most": 5},
        {"ix_ledger_entry_project"},
    ),
    # By primary key; which of their indexes is best depends on how full the tables are.
    "heard": (
        claims._MARK_ANSWERED.core,
        {"answers": [("a", 1.0)], "the_dialer": "main", "the_epoch": 1},
        set(),
    ),
    "ringing": (
        claims._MARK_RINGING.core,
        {"ringing": [("a", 1.0)], "the_dialer": "main", "the_epoch": 1},
        set(),
    ),
    "heard already": (
        claims._ANSWERED_BEFORE.core,
        {"answers": [("a", 1.0)], "the_dialer": "main", "the_epoch": 1},
        set(),
    ),
    "to claim": (claims._CLAIM_CALLS.core, {"taken": [("a", "b", 1)]}, set()),
    "to settle": (settling._MINE.core, {"ids": ROWS, **MINE}, set()),
    "to park": (number_exclusion._PARK.core, {"parked": [("a", 1.0)]}, set()),
    "to end": (endings._TO_END.core, {"ids": ROWS}, set()),
    "ended attempts": (endings._END_ATTEMPTS.core, {"ended": [("a",) + (None,) * 17]}, set()),
    "ended calls": (endings._END_CALLS.core, {"ended": [("a",) + (None,) * 5], "now": 1.0}, set()),
    "again": (endings._DUE_AGAIN.core, {"again": [("a", 1.0)]}, set()),
    "forgotten requests": (endings._FORGET_REQUESTS.core, {"over": ROWS}, set()),
    "asked": (endings._REQUESTED.core, {"ids": ROWS}, set()),
    "budgets": (balances._LIMITED.core, {"asked": ROWS}, set()),
    "playable": (placing._PLAYABLE.core, {"wanted": ROWS}, set()),
    "limits and lists": (placing._SPECIAL.core, {"asked": ROWS}, set()),
    "attempts": (calls._ATTEMPTS, {"call_id": "a"}, set()),
    "forgotten numbers": (
        call_frequency._FORGET,
        {"before": 1.0, "most": 5},
        {"ix_placed_number_age"},
    ),
    "find": (calls._FIND, {"id": "a", "project_id": "p"}, set()),
    "find each": (calls._FIND_EACH.core, {"asked": [("a", "p"), ("b", "p")]}, set()),
    "token": (tokens._VALID, {"id": "a", "project_id": "p", "now": 1.0}, set()),
    "do not call": (do_not_call._AMONG, {"project_id": "p", "ids": IDS}, set()),
}


DUE = {**LANE, "now": 2e9, "asked": [("p", 0.5, "a"), ("q", -1.0, "")]}

# Those that each kind of database has in words of its own.
OWN: dict[str, tuple[Statement, dict[str, Any], set[str]]] = {
    "turns": (fair_queue.CALLS.turns, {**LANE, "closed": ROWS, "after": "a"}, {"ix_call_due"}),
    "closed": (fair_queue._CLOSED_WITH_DUE, {**LANE, "closed": ROWS, "after": ""}, {"ix_call_due"}),
    "due": (fair_queue.CALLS.due, DUE, {"ix_call_due"}),
    "taken numbers": (
        number_exclusion._TAKEN,
        {"numbers": [("p", "+98912"), ("q", "+98913")], "now": 1.0},
        {"ix_call_in_flight", "ix_call_may_ring"},
    ),
    "calls to numbers": (
        call_frequency._PLACED,
        {"numbers": [("p", "+98912"), ("q", "+98913")], "since": 1.0},
        {"ix_placed_number"},
    ),
    "older passwords": (
        one_time_passwords._OLDER,
        {"placed": [("p", "+98912", "a"), ("q", "+98913", "b")]},
        {"ix_call_waiting_otp"},
    ),
    "superseded passwords": (
        one_time_passwords._SUPERSEDED,
        {"asked": [("p", "+98912", "a"), ("q", "+98913", "b")]},
        {"ix_call_waiting_otp", "ix_call_"},
    ),
    "events' projects": (
        webhooks._QUEUE.turns,
        {"now": 1.0, "closed": ROWS, "after": "a", "most": 5},
        {"ix_webhook_event_due"},
    ),
    "due in campaigns": (
        fair_queue.CAMPAIGN_CALLS.due,
        {"now": 2e9, "asked": DUE["asked"], "most": 5},
        {"ix_call_due_in_campaign"},
    ),
    "events": (
        webhooks._QUEUE.due,
        {"now": 1.0, "asked": DUE["asked"], "most": 5},
        {"ix_webhook_event_due"},
    ),
}
# Those whose rows go in as values, in SQLite, where the others above have them as JSON.
GIVEN_ROWS: dict[str, tuple[Statement, dict[str, Any]]] = {
    "heard": (
        claims._MARK_ANSWERED,
        {"answers": [("a", 1.0)], "the_dialer": "main", "the_epoch": 1},
    ),
    "ringing": (
        claims._MARK_RINGING,
        {"ringing": [("a", 1.0)], "the_dialer": "main", "the_epoch": 1},
    ),
    "to claim": (claims._CLAIM_CALLS, {"taken": [("a", "b", 1)]}),
    "to settle": (settling._MINE, {"ids": ROWS, **MINE}),
    "to park": (number_exclusion._PARK, {"parked": [("a", 1.0)]}),
    "to end": (endings._TO_END, {"ids": ROWS}),
    "ended attempts": (endings._END_ATTEMPTS, {"ended": [("a",) + (None,) * 17]}),
    "ended calls": (endings._END_CALLS, {"ended": [("a",) + (None,) * 5], "now": 1.0}),
    "again": (endings._DUE_AGAIN, {"again": [("a", 1.0)]}),
}


def plan(conn: Connection, query: Executable, values: dict[str, Any]) -> str:
    """How the database would carry out the query, just as the driver gets it."""
    seen: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
        seen.append((statement, parameters))

    event.listen(conn, "before_cursor_execute", note)
    conn.execute(query, values)
    event.remove(conn, "before_cursor_execute", note)
    return explained(conn, *seen[-1])  # before it there may be a BEGIN


def plans_of(conn: Connection, work: Callable[[], object]) -> list[str]:
    """How the database would carry out each query of `work`, just as the driver gets them."""
    seen: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
        if statement.startswith("SELECT"):
            seen.append((statement, parameters))

    event.listen(conn, "before_cursor_execute", note)
    work()
    event.remove(conn, "before_cursor_execute", note)
    plans = []
    for statement, parameters in seen:
        if "set_config" in statement:
            sql_batch.execute(conn, statement, parameters)
        else:
            plans.append(explained(conn, statement, parameters))
    return plans


def explained(conn: Connection, statement: str, parameters: Any) -> str:
    if conn.dialect.name == "sqlite":
        explain = "EXPLAIN QUERY PLAN "
    else:  # the plan that is kept, where the server can say it
        is_16 = (conn.dialect.server_version_info or ()) >= (16,)
        explain = "EXPLAIN (GENERIC_PLAN) " if is_16 else "EXPLAIN "
    rows = sql_batch.execute(conn, explain + statement, parameters).fetchall()
    said = "\n".join(str(row[-1]) for row in rows)
    if conn.dialect.name == "sqlite":
        # Its plans name an alias alone.
        for table, alias in re.findall(r"\b(\w+) AS (\w+)", statement):
            if table in TABLES:
                said = re.sub(rf"\b(SCAN|SEARCH) {alias}\b", rf"\1 {table}", said)
    return said


@pytest.mark.parametrize("name", QUERIES)
def test_the_query_uses_its_index(untouched: Database, name: str) -> None:
    query, values, indexes = QUERIES[name]

    said = untouched.write_now(lambda conn: plan(conn, query, values))
    looks_up(said, indexes)
    if name in ("to postpone", "campaign's page"):
        in_order(said)


@pytest.mark.parametrize("name", OWN)
def test_what_each_database_has_words_of_its_own_for_uses_its_index(
    untouched: Database, name: str
) -> None:
    query, values, indexes = OWN[name]

    said = untouched.write_now(lambda conn: explained(conn, *query.prepare(conn.dialect, values)))
    looks_up(said, indexes)
    in_order(said)


@pytest.mark.parametrize("rows", [1, 5, 100])
@pytest.mark.parametrize("name", GIVEN_ROWS)
def test_rows_that_are_given_as_values_are_looked_up_by_their_keys(
    sqlite_world: World, name: str, rows: int
) -> None:
    statement, values = GIVEN_ROWS[name]
    many = {key: one * rows if isinstance(one, list) else one for key, one in values.items()}

    said = sqlite_world.do(lambda conn: explained(conn, *statement.prepare(conn.dialect, many)))
    looks_up(said, set())
    # These hold all that wait.
    assert not {
        each for each in ("ix_call_due", "ix_call_next", "ix_call_expiring") if each in said
    }
    assert "ix_attempt_open" not in said  # it holds all that run


def test_calls_that_are_due_are_read_in_their_order(untouched: Database) -> None:
    said = untouched.write_now(due_plan)
    looks_up(said, {"ix_call_due"})
    in_order(said)


def test_calls_behind_those_of_another_project_are_found_by_their_index(world: World) -> None:
    placed = [world.new_call(requested_at=world.clock() + n) for n in range(300)]
    world.do(lambda conn: call_rows.place(conn, placed))
    # From now on the database expects all calls to be of that project, whichever it is asked for.
    world.do(lambda conn: conn.execute(text("ANALYZE call")))

    said = world.do(due_plan)

    looks_up(said, {"ix_call_due"})
    in_order(said)


def test_waiting_calls_of_a_campaign_are_found_however_many_are_over(world: World) -> None:
    campaign = Campaign(new_id(1.0), world.project_id, "main", world.recording_id, 1.0, 300)
    placed = [world.new_call(campaign_id=campaign.id) for _ in range(300)]
    world.do(lambda conn: campaigns.add(conn, campaign))
    world.do(lambda conn: call_rows.place(conn, placed))
    ends = [endings.CallEnd(each.id, CallStatus.NORMAL) for each in placed[:290]]
    world.do(lambda conn: endings.end_calls(conn, ends, 2.0))
    world.do(lambda conn: conn.execute(text("ANALYZE call")))
    due = {"now": 2e9, "asked": [(campaign.id, -1.0, "")], "most": 5}
    running = {"dialer_id": "main", "after_project": "", "after_campaign": "", "most": 5}

    queries = ((fair_queue.CAMPAIGN_CALLS.due, due), (campaign_schedules._RUNNING, running))
    for query, values in queries:
        said = world.do(
            lambda conn: explained(conn, *query.prepare(conn.dialect, values))  # noqa: B023
        )
        looks_up(said, {"ix_call_due_in_campaign"})
        in_order(said)


# What may be asked for in lists of calls, and the index that is read for it.
LISTS: dict[str, tuple[CallFilter, str]] = {
    "all": (CallFilter(), "ix_call_project"),
    "of a status": (CallFilter({CallStatus.NORMAL}), "ix_call_status"),
    "of statuses": (CallFilter({CallStatus.NORMAL, CallStatus.ERROR}), "ix_call_status"),
    "with a reference": (CallFilter(reference="a"), "ix_call_reference"),
    "of a campaign": (CallFilter(campaign_id="c"), "ix_call_campaign"),
    "of a campaign's status": (
        CallFilter({CallStatus.NORMAL}, campaign_id="c"),
        "ix_call_status",
    ),
    "with a reference, and all else": (
        CallFilter({CallStatus.NORMAL}, None, "a", "c"),
        "ix_call_reference",
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_calls_are_read_along_an_index(untouched: Database, name: str) -> None:
    wanted, index = LISTS[name]

    def find(conn: Connection) -> None:
        narrowed = patch.object(call_lists, "_narrowed", lambda _c, _id, span: span)
        with narrowed:  # of a campaign without calls nothing is read
            call_lists.find_calls(conn, "p", wanted, Span(), 5)

    plans = untouched.write_now(lambda conn: plans_of(conn, lambda: find(conn)))
    assert plans
    for said in plans:
        looks_up(said, {index})
        in_order(said)


@pytest.mark.parametrize(
    "wanted", [CallFilter(e164="+98912"), CallFilter({CallStatus.NORMAL}, "+98912", "a", "c")]
)
def test_calls_to_a_number_are_looked_up_in_each_campaign(world: World, wanted: CallFilter) -> None:
    campaign = Campaign(new_id(1.0), world.project_id, "main", world.recording_id, 1.0, 300)
    placed = [world.new_call(campaign_id=campaign.id) for _ in range(300)]
    world.do(lambda conn: campaigns.add(conn, campaign))
    world.do(lambda conn: call_rows.place(conn, placed))
    world.do(lambda conn: conn.execute(text("ANALYZE call")))

    def find(conn: Connection) -> None:
        call_lists.find_calls(conn, world.project_id, wanted, Span(), 5)

    plans = world.do(lambda conn: plans_of(conn, lambda: find(conn)))
    together = "\n".join(plans)
    looks_up(together, {"ix_call_number", "ix_campaign_project", "ix_call_number_in_campaign"})


def test_the_ends_of_a_campaign_are_looked_up(untouched: Database) -> None:
    plans = untouched.write_now(
        lambda conn: plans_of(conn, lambda: call_lists._narrowed(conn, "c", Span()))
    )
    assert len(plans) == 2
    for said in plans:
        looks_up(said, {"ix_call_campaign"})


@pytest.mark.parametrize("phases", [None, {CampaignPhase.PAUSED}, set(CampaignPhase)])
def test_lists_of_campaigns_are_read_along_an_index(
    untouched: Database, phases: set[CampaignPhase] | None
) -> None:
    plans = untouched.write_now(
        lambda conn: plans_of(
            conn, lambda: call_lists.find_campaigns(conn, "p", phases, 1.0, Span(), 5)
        )
    )
    assert plans
    for said in plans:
        looks_up(said, {"ix_campaign_project"})
        in_order(said)


def due_plan(conn: Connection) -> str:
    return explained(conn, *fair_queue.CALLS.due.prepare(conn.dialect, DUE))


def looks_up(said: str, indexes: set[str]) -> None:
    """The plan reads no table whole, and goes by these indexes.

    What else is scanned are the rows that were given, as JSON or as values, and what subqueries
    have found; each version of SQLite has words of its own for these.
    """
    # All that is in a partial index is wanted.
    said = re.sub(r"SCAN project USING (COVERING )?INDEX", "", said)
    scanned = re.findall(r"\bSCAN (?:TABLE )?(\w+)", said)
    assert TABLES.isdisjoint(scanned), said
    assert "Seq Scan" not in said
    assert all(index in said for index in indexes)


def in_order(said: str) -> None:
    """The plan sorts nothing."""
    assert "TEMP B-TREE" not in said
    assert "Sort" not in said


@pytest.mark.parametrize(
    ("statement", "is_whole"),
    [
        ("SELECT id FROM call WHERE phone_number = 'a'", True),
        ("SELECT one.id FROM call AS one WHERE one.phone_number = 'a'", True),
        ("SELECT id FROM call WHERE id = 'a'", False),
        (
            "SELECT one.id FROM (VALUES ('a'), ('b')) AS v JOIN call AS one ON one.id = v.column1",
            False,
        ),
    ],
)
def test_a_table_that_is_read_whole_is_noticed(
    sqlite_world: World, statement: str, is_whole: bool
) -> None:
    said = sqlite_world.do(lambda conn: explained(conn, statement, ()))
    if is_whole:
        with pytest.raises(AssertionError):
            looks_up(said, set())
    else:
        looks_up(said, set())
