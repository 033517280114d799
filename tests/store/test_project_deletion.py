"""Deleting a project: all of its rows go, and none of another's."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from bitel.domain.ids import new_id
from bitel.domain.menus import KeyAction, Menu, request_menu
from bitel.domain.recipients import Recipient, pack
from bitel.domain.webhooks import request_webhook
from bitel.errors import ConflictError
from bitel.store import (
    campaigns,
    claims,
    do_not_call,
    event_rows,
    idempotency,
    menus,
    project_deletion,
    projects,
    recipient_lists,
    recordings,
    speech_parts,
    tokens,
    webhooks,
)
from bitel.store.campaigns import Campaign
from bitel.store.recipient_lists import RecipientList
from bitel.store.schema import (
    campaign_key,
    metadata,
    placed_number,
    project,
    speech_part,
    webhook_try,
)
from bitel.store.speech_parts import SpeechPart
from bitel.store.webhooks import DeliveryAttempt
from tests.support.factories import answered

if TYPE_CHECKING:
    from tests.support.store_world import World


def fill(world: World) -> None:
    """Rows in every table that a project has rows in."""
    now, project_id = world.clock(), world.project_id
    world.change(webhook_url="https://example.net/hook", webhook_secret="whsec_x")
    campaign_id = new_id(now)
    campaign = Campaign(campaign_id, project_id, "main", world.recording_id, now, 2)
    world.do(lambda conn: campaigns.add(conn, campaign))
    for _ in range(3):
        world.place(campaign_id=campaign_id)
    lease = world.take_over()
    world.settle(lease, *map(answered, world.claim(lease)))
    now = world.clock()
    for delivery in world.do(lambda conn: webhooks.claim_due(conn, now, 9, 99)):
        tried = DeliveryAttempt(delivery.event_id, now, 0.5, False, 500, "", now + 60)
        world.do(partial(webhooks.record, tried=[tried]))
    named = request_webhook(project_id, "https://example.net/other", [])
    world.do(lambda conn: event_rows.name_webhooks(conn, [named]))
    world.do(lambda conn: tokens.add(conn, new_id(now), project_id, now, None))
    world.do(lambda conn: do_not_call.add(conn, project_id, "+989121234567"))
    world.do(lambda conn: idempotency.first_answer(conn, project_id, "key", "body", now))
    people = RecipientList(new_id(now), project_id, "people.csv", now, 1, ())
    packed = [pack([Recipient("09121234567")])]
    world.do(partial(recipient_lists.add, new=people, packed=packed))
    part = SpeechPart(new_id(now), project_id, "key", 0.5)
    world.do(lambda conn: speech_parts.add(conn, [part], now))
    row = {"project_id": project_id, "e164": "+989121234567", "placed_at": now, "is_otp": False}
    world.do(lambda conn: conn.execute(placed_number.insert().values(row)))
    pressed = {"campaign_id": campaign_id, "key": "1", "calls": 2}
    world.do(lambda conn: conn.execute(campaign_key.insert().values(pressed)))
    menu = request_menu(project_id, Menu({"1": KeyAction(world.recording_id)}))
    world.do(lambda conn: menus.add(conn, menu))


def counts(world: World) -> dict[str, int]:
    return {table.name: world.count(table) for table in metadata.sorted_tables}


def delete(world: World) -> list[str]:
    """Delete the project; the ids of its recordings."""
    world.do(lambda conn: project_deletion.disable(conn, world.project_id))
    found = [
        each
        for piece in project_deletion.recordings(world.database, world.project_id)
        for each in piece
    ]
    project_deletion.delete_project(world.database, world.project_id, world.clock())
    return found


def test_all_rows_of_a_project_go_and_none_of_another(world: World) -> None:
    fill(world)
    before = counts(world)
    other = world.another("other")
    fill(other)
    both = counts(world)
    grown = {name for name in both if both[name] > before[name]}
    # A cancel request goes with its attempt; these others belong to no project, or are pauses.
    of_none = {
        "dialer", "worker", "worker_share", "pause", "retention_cursor", "schema_compatibility",
        "signing_key", "api_process", "trace_request", "trace_reply", "incomplete_batch",
        "group_dialer",
    }  # fmt: skip
    assert grown == set(both) - of_none - {"cancel_request"}

    query = select(speech_part.c.id).where(speech_part.c.project_id == other.project_id)
    part_id = world.do(lambda conn: conn.execute(query).scalar_one())
    assert delete(other) == [other.recording_id, part_id]

    # The rows of a project and of its recordings stay, without a name.
    assert counts(world) == before | {"project": 2, "recording": 2}
    assert world.do(lambda conn: projects.find(conn, "other")) is None
    assert world.do(lambda conn: projects.by_id(conn, other.project_id)) is None
    assert world.do(lambda conn: recordings.page(conn, other.project_id)) == []
    names = world.do(lambda conn: conn.execute(select(project.c.name)).scalars().all())
    assert set(names) == {"shop", other.project_id}
    again = world.another("other")
    assert again.project_id != other.project_id


def test_more_rows_than_a_piece(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project_deletion, "PIECE", 2)
    monkeypatch.setattr(project_deletion, "WINDOW", 2)
    fill(world)
    delete(world)
    left = {name: count for name, count in counts(world).items() if count}
    assert left == {
        "dialer": 1, "worker": 1, "project": 1, "recording": 1, "schema_compatibility": 1,
    }  # fmt: skip


def test_a_project_with_open_calls_stays_and_is_disabled(world: World) -> None:
    waiting = world.place()
    with pytest.raises(ConflictError, match="calls of it are not over"):
        delete_checked(world)
    assert world.project().disabled
    lease = world.take_over()
    [claimed] = world.claim(lease)
    with pytest.raises(ConflictError, match="calls of it are not over"):
        delete_checked(world)
    world.settle(lease, answered(claimed))
    assert world.call(waiting).status.final
    delete_checked(world)
    assert world.do(lambda conn: projects.listing(conn)) == []


def delete_checked(world: World) -> None:
    world.do(lambda conn: project_deletion.disable(conn, world.project_id))
    world.do(lambda conn: project_deletion.check_no_open_calls(conn, world.project_id))
    project_deletion.delete_project(world.database, world.project_id, world.clock())


def test_a_delivery_under_way_harms_no_other(world: World) -> None:
    """What became of it is written after its event was deleted."""
    fill(world)
    other = world.another("other")
    other.change(webhook_url="https://example.net/hook", webhook_secret="whsec_x")
    other.place(expires_at=world.clock())
    now = world.clock()
    assert world.do(lambda conn: claims.expire(conn, "main", now)) == 1
    mine, theirs = (
        DeliveryAttempt(event.event_id, now, 0.1, True, 200, "", None)
        for event in sorted(
            world.do(lambda conn: webhooks.claim_due(conn, now + 999, 1, 9)),
            key=lambda each: each.project_id != world.project_id,
        )
    )
    delete(world)
    world.do(lambda conn: webhooks.record(conn, [mine, theirs]))
    [event] = world.do(lambda conn: webhooks.history(conn, other.project_id))
    assert (event.state, event.tries) == ("delivered", 1)
    assert world.count(webhook_try) == 1
