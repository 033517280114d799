"""Stored lists of recipients: pieces, deletion, and removal of one number."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.domain.ids import new_id
from bitel.domain.phone_numbers import number_test
from bitel.domain.recipients import Recipient, pack, unpack
from bitel.errors import ConflictError, NotFoundError
from bitel.store import recipient_lists
from bitel.store.recipient_lists import RecipientList
from bitel.store.schema import recipient_list, recipient_list_piece

if TYPE_CHECKING:
    from tests.support.store_world import World

A, B = "09121234567", "09351234567"

TEXT = st.text(max_size=20)
RECIPIENTS = st.lists(
    st.builds(
        Recipient,
        TEXT,
        st.none() | TEXT,
        st.dictionaries(TEXT, TEXT, max_size=3),
        st.none() | TEXT,
        st.none() | st.integers(1, 2**31),
    ),
    max_size=5,
)


@given(RECIPIENTS)
def test_a_piece_is_unpacked_as_it_was_packed(recipients: list[Recipient]) -> None:
    assert unpack(pack(recipients)) == recipients


@given(st.binary(max_size=60))
def test_other_bytes_are_no_piece(packed: bytes) -> None:
    with pytest.raises(ValueError):
        unpack(packed)


def test_a_piece_that_unpacks_to_too_much_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        unpack(pack([Recipient("0" * 9_000_000)]))


def make(world: World, *pieces: list[Recipient]) -> str:
    now = world.clock()
    count = sum(map(len, pieces))
    new = RecipientList(new_id(now), world.project_id, "people.csv", now, count, ("name",))
    world.do(partial(recipient_lists.add, new=new, packed=[pack(each) for each in pieces]))
    return new.id


def read(world: World, list_id: str) -> list[list[Recipient]]:
    found = partial(recipient_lists.recipients, project_id=world.project_id, list_id=list_id)
    return world.do(lambda conn: [list(piece) for piece in found(conn)])


def test_recipients_come_in_their_pieces(world: World) -> None:
    other = world.another("other")
    pieces = [[Recipient(f"{n}{m}", variables={"name": "Ø"}) for m in range(3)] for n in range(12)]
    list_id = make(world, *pieces)
    make(world, [Recipient("x")])
    assert read(world, list_id) == pieces
    with pytest.raises(NotFoundError):
        read(other, list_id)
    assert (
        world.do(partial(recipient_lists.find, project_id=other.project_id, list_id=list_id))
        is None
    )


def test_a_list_is_found_when_it_is_whole(world: World) -> None:
    now = world.clock()
    new = RecipientList(new_id(now), world.project_id, "x.csv", now, 2, ())
    find = partial(recipient_lists.find, project_id=world.project_id, list_id=new.id)
    world.do(partial(recipient_lists.begin, new=new))
    for position in range(2):
        packed = [pack([Recipient(A)])]
        world.do(partial(recipient_lists.add_pieces, list_id=new.id, first=position, packed=packed))
        assert world.do(find) is None
        assert world.do(partial(recipient_lists.pages, project_id=world.project_id)) == []
        with pytest.raises(NotFoundError):
            read(world, new.id)
    world.do(partial(recipient_lists.finish, new=new))
    assert world.do(find) == new
    world.do(partial(recipient_lists.abandon, list_id=new.id))
    assert world.do(find) is None
    with pytest.raises(ConflictError):
        world.do(partial(recipient_lists.finish, new=new))


def test_a_number_is_removed_from_all_lists_of_a_project(world: World) -> None:
    other = world.another("other")
    people = [
        Recipient(A, "r1", {"name": "Sara", "home": "02112345678"}),
        Recipient(B, "r2", {"name": "Ali", "home": "+98 912 123 4567"}),
        Recipient("0912-123-4567", "r3", {"name": "Sara"}),
        Recipient("0912", "r4", {"name": "4567"}),
    ]
    ids = [make(world, people[:2], people[2:], [people[3]]), make(world, [people[0]])]
    theirs = make(other, people)
    is_number = number_test("+989121234567", "IR")
    place: tuple[str, int] | None = ("", -1)
    changed = steps = 0
    while place is not None:
        erase = partial(recipient_lists.erase_number, is_number=is_number, after=place)
        place, count = world.do(partial(erase, project_id=world.project_id))
        changed, steps = changed + count, steps + 1
    assert (changed, steps) == (4, 5)
    kept = people[1]._replace(variables={"name": "Ali", "home": ""})
    assert read(world, ids[0]) == [[kept], [people[3]], [people[3]]]
    with pytest.raises(NotFoundError):
        read(world, ids[1])
    assert read(other, theirs) == [people]


def test_old_lists_are_deleted_one_at_a_time(world: World) -> None:
    old = [make(world, [Recipient(A)], [Recipient(B)]) for _ in range(2)]
    world.clock.advance(100)
    new = make(world, [Recipient(A)])
    after, deleted = "", []
    while True:
        delete = partial(recipient_lists.delete_old, before=world.clock() - 50, after=after)
        after, count = world.do(delete)
        if not after:
            break
        deleted += [after] * count
    assert deleted == sorted(old)
    assert [len(piece) for piece in read(world, new)] == [1]
    assert (world.count(recipient_list), world.count(recipient_list_piece)) == (1, 1)
