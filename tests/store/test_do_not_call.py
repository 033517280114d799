"""The list of numbers that a project must not call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitel.store import do_not_call
from bitel.store.database import Connection

if TYPE_CHECKING:
    from tests.support.store_world import World


def test_a_list_is_a_projects_own(world: World) -> None:
    other = world.another("other")
    first, second = "+989120000001", "+989120000002"

    def add(one: World, number: str) -> bool:
        return one.do(lambda conn: do_not_call.add(conn, one.project_id, number))

    def remove(one: World, number: str) -> bool:
        return one.do(lambda conn: do_not_call.remove(conn, one.project_id, number))

    def listing(one: World, after: str = "", limit: int = 9) -> list[str]:
        return one.do(lambda conn: do_not_call.listing(conn, one.project_id, after, limit))

    assert add(world, second)
    assert add(world, first)
    assert not add(world, first)
    assert add(other, first)
    assert listing(world) == [first, second]
    assert listing(world, limit=1) == [first]
    assert listing(world, after=first) == [second]
    assert remove(world, first)
    assert not remove(world, first)
    assert (listing(world), listing(other)) == ([second], [first])


def test_many_numbers_are_looked_up_at_once(world: World) -> None:
    listed = [f"+98912{n:07}" for n in range(0, 3000, 3)]
    asked = [f"+98912{n:07}" for n in range(2500)]

    def among() -> set[str]:
        return world.do(lambda conn: do_not_call.contains_many(conn, world.project_id, asked))

    assert among() == set()

    def add_all(conn: Connection) -> None:
        for number in listed:
            do_not_call.add(conn, world.project_id, number)

    world.do(add_all)
    assert among() == set(listed) & set(asked)
    assert world.do(lambda conn: do_not_call.contains_many(conn, world.project_id, [])) == set()
