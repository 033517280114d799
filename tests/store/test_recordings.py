"""Recordings: uploads and speech, listed, found and removed."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from bitel.domain.ids import new_id
from bitel.errors import ConflictError, InvalidRequestError, NotFoundError
from bitel.store import recordings
from bitel.store.database import Connection, Database
from bitel.store.recordings import Recording
from tests.support import call_rows

if TYPE_CHECKING:
    from tests.support.store_world import World


def speech(world: World, key: str = "salam") -> Recording:
    now = world.clock()
    return Recording(new_id(now), world.project_id, "سلام", 1.0, 9, now, "speech", key)


def add(world: World, new: Recording) -> Recording:
    return world.do(lambda conn: recordings.add(conn, new))


def remove(world: World, recording_id: str) -> None:
    now = world.clock()
    world.do(lambda conn: recordings.remove(conn, world.project_id, recording_id, now))


def by_key(world: World, key: str = "salam") -> Recording | None:
    return world.do(lambda conn: recordings.find_by_speech_key(conn, world.project_id, key))


def test_speech_is_kept_once(world: World) -> None:
    assert by_key(world) is None
    first = speech(world)
    assert add(world, first) == first
    assert add(world, speech(world)) == first
    assert by_key(world) == first
    other = world.another("other")
    assert by_key(other) is None
    assert add(other, speech(other)).project_id == other.project_id


def test_speech_that_was_removed_can_be_made_anew(world: World) -> None:
    first = add(world, speech(world))
    remove(world, first.id)
    assert by_key(world) is None

    second = add(world, speech(world))

    assert second.id != first.id
    assert by_key(world) == second


def test_uploads_are_never_the_same(world: World) -> None:
    new = replace(speech(world), kind="upload", speech_key=None)
    assert add(world, new) == new
    again = replace(new, id=new_id(1.0))
    assert add(world, again) == again


def test_recordings_are_listed_page_by_page(world: World) -> None:
    ids = [world.recording_id]
    for key in "abcd":
        world.clock.advance(1)
        ids.append(add(world, speech(world, key)).id)
    world.another("other")
    remove(world, ids.pop(2))

    def page(after: str | None) -> list[str]:
        of = world.project_id
        return [one.id for one in world.do(lambda conn: recordings.page(conn, of, after, 2))]

    assert page(None) == ids[:2]
    assert page(ids[1]) == ids[2:]
    assert page(ids[3]) == []


def test_a_recording_that_a_call_needs_stays(world: World) -> None:
    call_id = world.place()
    with pytest.raises(ConflictError, match="calls that are not over"):
        remove(world, world.recording_id)
    lease = world.take_over()
    world.claim(lease)
    with pytest.raises(ConflictError):
        remove(world, world.recording_id)
    world.take_over()
    world.cancel(call_id)

    remove(world, world.recording_id)

    assert world.do(lambda c: recordings.find(c, world.project_id, world.recording_id)) is None
    with pytest.raises(NotFoundError):
        remove(world, world.recording_id)


def test_nobody_removes_what_is_not_theirs(world: World) -> None:
    other = world.another("other")
    for theirs in (other.recording_id, "unknown"):
        with pytest.raises(NotFoundError, match="no recording"):
            remove(world, theirs)


def test_audio_without_a_recording_is_told_from_what_is_needed(world: World) -> None:
    gone = add(world, speech(world))
    remove(world, gone.id)
    asked = [world.recording_id, gone.id, "unknown"]

    assert world.do(lambda conn: recordings.live(conn, asked)) == {world.recording_id}
    assert world.do(lambda conn: recordings.live(conn, [])) == set()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_recording_that_is_being_removed_is_not_called_with(
    world: World, database_url: str
) -> None:
    removed, done = threading.Event(), threading.Event()
    refused = []

    def place() -> None:
        with Database.open(database_url) as other:
            removed.wait(5)
            try:
                other.write_now(lambda conn: call_rows.place(conn, [world.new_call()]))
            except InvalidRequestError as error:
                refused.append(error)
            done.set()

    def slowly(conn: Connection) -> None:
        recordings.remove(conn, world.project_id, world.recording_id, world.clock())
        removed.set()
        assert not done.wait(0.2)

    thread = threading.Thread(target=place)
    thread.start()
    world.do(slowly)
    thread.join(5)

    assert len(refused) == 1
