"""`bitel erase`: a person is in nothing that is stored, but on the do-not-call list."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bitel.dialer import sip_trace
from bitel.dialer.sip_trace import ERRORS, Entry, Share, TraceFiles
from bitel.domain.attempts import Media
from bitel.domain.ids import new_id
from bitel.domain.recipients import Recipient, pack
from bitel.store import recipient_lists
from bitel.store.database import Database
from bitel.store.recipient_lists import RecipientList
from tests.support.clocks import FakeClock
from tests.support.factories import answered
from tests.support.store_world import World

if TYPE_CHECKING:
    from tests.cli.shell import Shell

NUMBER, OTHER = "+989121234567", "+989121234568"


def trace(call_id: str, number: str) -> tuple[str, bytes]:
    message = f"INVITE sip:{number}@carrier SIP/2.0\r\nTo: <sip:{number}@carrier>\r\n\r\n".encode()
    entry = Entry(
        call_id, new_id(1.0), "answered", f"said {number}", [(1.0, "out", "x:1", message)]
    )
    return call_id, entry.encode()


def test_a_person_is_erased_and_others_are_not(shell: Shell) -> None:
    shell.admin("project", "create", "other")
    clock = FakeClock()
    with Database.open(f"sqlite:///{shell.data_dir / 'bitel.db'}") as database:
        world = World.make(database, clock)
        lease = world.take_over()
        calls = {}
        for number in (NUMBER, OTHER):
            calls[number] = world.place(e164=number, phone_number=number.replace("+98", "0"))
            [claim] = world.claim(lease)
            done = answered(claim)
            heard = done.result._replace(media=Media(1, 1, "42"))
            world.settle(lease, done._replace(result=heard))
        waiting = world.place(e164=NUMBER, phone_number="0912 123 4567")
        traces = shell.data_dir / "traces"
        share = Share(100, 1_000_000, 30)
        entries = [trace(calls[NUMBER], NUMBER), trace(calls[OTHER], OTHER)]
        for folder in (traces, traces / ERRORS):
            files = TraceFiles(folder, share, lambda: 1e10)
            files.prepare()
            files.add(entries)
        people = [Recipient("0912 123 4567"), Recipient(OTHER)]
        now = world.clock()
        new = RecipientList(new_id(now), world.project_id, "people.csv", now, 2, ())
        world.do(lambda conn: recipient_lists.add(conn, new, [pack(people)]))
    shell.admin("dnc", "add", "shop", NUMBER)

    said = shell.admin("erase", "shop", "0912 123 4567", "--yes")

    assert said == ("erased from 2 calls and the traces of 2 attempts, and from 1 rows of lists")
    stored = b"".join(
        path.read_bytes() for path in shell.data_dir.rglob("*") if path.suffix in (".trace",)
    )
    assert NUMBER.encode() not in stored
    assert OTHER.encode() in stored
    assert sip_trace.read(traces, calls[NUMBER]) == []
    [message, _] = sip_trace.read(traces, calls[OTHER])
    assert OTHER in str(message)
    with Database.open(f"sqlite:///{shell.data_dir / 'bitel.db'}") as database:
        world.database = database
        gone, kept, canceled = (world.call(each) for each in (calls[NUMBER], calls[OTHER], waiting))
        assert (gone.phone_number, canceled.phone_number) == ("", "")
        assert canceled.status.name == "CANCELED"
        assert (kept.phone_number, kept.price) == (OTHER.replace("+98", "0"), gone.price)
        assert [each.media and each.media.digits for each in world.attempts(calls[NUMBER])] == [""]
        [piece] = world.do(
            lambda conn: list(recipient_lists.recipients(conn, world.project_id, new.id))
        )
        assert piece == [people[1]]
    assert shell.admin("dnc", "list", "shop") == NUMBER

    assert shell.admin("erase", "shop", NUMBER, "--yes").startswith("erased from 0 calls")


def test_files_keep_their_length_so_that_a_service_may_go_on_writing(tmp_path: Path) -> None:
    files = TraceFiles(tmp_path, Share(100, 1_000_000, 30), lambda: 1e10)
    files.prepare()
    first, second = new_id(1.0), new_id(2.0)
    files.add([trace(first, NUMBER), trace(second, OTHER)])
    [path] = sip_trace.names_of_files(tmp_path)
    size = path.stat().st_size
    assert sip_trace.erase(tmp_path, {first}) == 1
    assert path.stat().st_size == size
    third = new_id(3.0)
    files.add([trace(third, OTHER)])
    assert [each[0] for each in files.of_calls({second, third})] == [second, third]
    assert len(sip_trace.read(tmp_path, third)) == 2
