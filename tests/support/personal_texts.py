"""Campaigns whose recipients each get a text of their own, stored past the API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sqlalchemy import Connection, select, update

from bitel.domain.calls import Lane
from bitel.domain.ids import new_id
from bitel.store import campaigns
from bitel.store.campaigns import Campaign
from bitel.store.schema import call, campaign

if TYPE_CHECKING:
    from tests.support.store_world import World


def place_personal(
    world: World,
    template: str,
    recipients: Sequence[Mapping[str, str]],
    language: str = "fa",
    due_in: float = 0.0,
    spread: float = 1.0,
) -> tuple[str, list[str]]:
    """A campaign and its calls, due `due_in` seconds from now, each `spread` after the one before.

    Returns the campaign's id and those of its calls, in the order of `recipients`.
    """
    now = world.clock()
    campaign_id = new_id(now)
    made = Campaign(campaign_id, world.project_id, "main", None, now, len(recipients))
    world.do(lambda conn: campaigns.add(conn, made))
    ids = [world.place(campaign_id=campaign_id, lane=Lane.BATCH) for _ in recipients]

    def personalize(conn: Connection) -> None:
        conn.execute(
            update(campaign)
            .where(campaign.c.id == campaign_id)
            .values(template=template, language=language)
        )
        for number, (call_id, variables) in enumerate(zip(ids, recipients, strict=True)):
            conn.execute(
                update(call)
                .where(call.c.id == call_id)
                .values(
                    recording_id=None,
                    digits="",
                    parts=(),
                    variables=json.dumps(dict(variables)),
                    due_at=now + due_in + number * spread,
                )
            )

    world.do(personalize)
    return campaign_id, ids


def parts_of(world: World, ids: Sequence[str]) -> list[tuple[str, ...]]:
    """The parts of the calls, in this order; empty while they are not rendered."""
    query = select(call.c.id, call.c.parts).where(call.c.id.in_(ids))
    found = {row.id: row.parts for row in world.do(lambda conn: conn.execute(query).all())}
    return [found[each] for each in ids]
