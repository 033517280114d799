"""The rules about several workers, and what the capture adds to the callee's evidence."""

from __future__ import annotations

from typing import Any

from tests.chaos.checks import check
from tests.chaos.evidence import Evidence, Exit, Fault, Invitation
from tests.chaos.fleet_rules import check_fleet, taken_over
from tests.chaos.test_checker import answered, failed, refused, ringing, run_with
from tests.chaos.wire import Datagram, add_wire

WORKER = "worker1"
CUT = Fault("carrier-cut", 0.2, 9.0, WORKER)


def kinds(evidence: Evidence) -> set[str]:
    return {each.kind for each in check(evidence)}


def fleet_kinds(evidence: Evidence, rate: int = 2, channels: int = 2) -> list[str]:
    evidence.workers = frozenset({"worker1", "worker2", "worker3"})
    return [each.kind for each in check_fleet(evidence, rate, channels)]


def sent(at: float, start: str, call: str = "a", method: str = "") -> Datagram:
    branch = f"z9hG4bK{call}" if start in ("INVITE", "CANCEL") else f"z9hG4bK{start}"
    return Datagram(at, WORKER, True, start, method or start, call, branch, "")


def arrived(at: float, code: int, call: str = "a") -> Datagram:
    return Datagram(at, WORKER, False, str(code), "INVITE", call, f"z9hG4bK{call}", "")


def with_wire(run: Evidence, *datagrams: Datagram, **more: Any) -> Evidence:
    run.lost_invites = add_wire(run.invitations, datagrams)
    for name, value in more.items():
        setattr(run, name, value)
    return run


def late_bye(at: float = 0.0, call: str = "a") -> list[Invitation]:
    """A call that plays 1.6 s, and whose BYE reaches the callee 20 s after the answer."""
    return answered(at, call, talk=20.0)


def test_more_invites_in_a_second_than_the_rate_and_one_are_found() -> None:
    calls = [each for n in range(4) for each in refused(0.3 * n, f"r{n}", after=0.1)]
    assert fleet_kinds(Evidence(invitations=calls)) == ["rate exceeded"]
    assert fleet_kinds(Evidence(invitations=calls[:3])) == []


def test_an_invite_that_was_lost_counts_for_the_rate() -> None:
    calls = [each for n in range(3) for each in refused(0.3 * n, f"r{n}", after=0.1)]
    run = with_wire(Evidence(invitations=calls), sent(0.95, "INVITE", "lost"))
    assert run.lost_invites == [0.95]
    assert fleet_kinds(run) == ["rate exceeded"]


def test_more_calls_at_once_than_channels_are_found() -> None:
    calls = [each for n in range(3) for each in answered(2.0 * n, f"c{n}", talk=9.0)]
    assert fleet_kinds(Evidence(invitations=calls, ended=99.0)) == ["channels exceeded"]


def test_a_call_whose_bye_was_lost_is_over_when_it_was_sent() -> None:
    calls = [*late_bye(0.0, "a"), *late_bye(2.0, "b"), *answered(6.0, "c")]
    assert fleet_kinds(Evidence(invitations=calls, ended=99.0)) == ["channels exceeded"]
    run = with_wire(Evidence(invitations=calls, ended=99.0), sent(5.0, "BYE"))
    assert fleet_kinds(run) == []


def test_a_death_that_only_disturbed_workers_could_notice_is_no_violation() -> None:
    death = Fault("kill", 100.0, 100.0, "worker1")
    cuts = [Fault("db-cut", 101.0, 115.0, name) for name in ("worker2", "worker3")]
    assert fleet_kinds(Evidence(faults=[death])) == ["death noticed late"]
    assert fleet_kinds(Evidence(faults=[death, cuts[0]])) == ["death noticed late"]
    assert fleet_kinds(Evidence(faults=[death, *cuts])) == []


def test_the_death_of_a_process_that_had_lost_its_lease_need_not_be_noticed() -> None:
    death = Fault("kill", 100.0, 100.0, "worker1")
    lost = [("worker1", 95.0)]
    assert fleet_kinds(Evidence(faults=[death], taken_over=lost)) == []
    earlier = [Exit(97.0, 1, "lease ended", name="worker1")]
    late = Evidence(faults=[death], taken_over=lost, exits=earlier)
    assert fleet_kinds(late) == ["death noticed late"]


def test_a_lease_that_others_end_is_read_from_the_log() -> None:
    line = "2026-11-27T22:34:26.351590Z [warning  ] worker_dead dialer=main worker=vm-2-{}-6cc181"
    log = [line.format(pid) for pid in (27508, 27509)]
    assert [name for name, _ in taken_over(log, {27508: "worker1"})] == ["worker1"]


def test_ringing_of_which_the_service_received_nothing_spends_no_retry() -> None:
    calls = refused(0.0, "a", 480), refused(9.0, "b", 480)
    heard = [arrived(each.first + 0.1, 180, each.call) for some in calls for each in some]
    rang = with_wire(failed(*calls), *heard)
    assert "rang more often than allowed" in kinds(rang)
    lost = with_wire(failed(*calls), *heard[1:], faults=[CUT])
    assert "rang more often than allowed" not in kinds(lost)


def test_a_cancel_may_have_been_sent_first_while_the_link_was_down() -> None:
    kind = "rang more often than allowed"
    calls = refused(0.0, "a", 487, after=6.5), refused(20.0, "b", 480)
    wire = [sent(6.4, "CANCEL"), arrived(0.1, 180, "a"), arrived(20.1, 180, "b")]
    assert kind in kinds(with_wire(failed(*calls), *wire, is_fleet=True))
    down = [Fault("link-down", 0.2, 6.0, WORKER)]
    assert kind not in kinds(with_wire(failed(*calls), *wire, faults=down, is_fleet=True))
    long_ago = [down[0]._replace(until=2.0)]
    assert kind in kinds(with_wire(failed(*calls), *wire, faults=long_ago, is_fleet=True))


def test_an_invite_is_repeated_while_the_first_response_is_lost() -> None:
    again = ringing(0.0)
    again[0].sent.append(1.5)
    assert "INVITE repeated late" in kinds(with_wire(failed(again), arrived(0.1, 180)))
    assert "INVITE repeated late" not in kinds(with_wire(failed(again), arrived(1.6, 180)))


def test_a_recording_that_the_network_lost_as_a_whole_is_no_violation() -> None:
    kind = "NORMAL without audio, hung up by us"
    silent = run_with(answered(0.0, packets=0))
    wire = [sent(0.45, "ACK"), sent(2.0, "BYE"), arrived(0.41, 200)]
    assert kind in kinds(with_wire(silent, *wire))
    assert kind not in kinds(with_wire(silent, *wire, faults=[CUT]))
    other = CUT._replace(detail="worker2")
    assert kind in kinds(with_wire(silent, *wire, faults=[other]))
    short = CUT._replace(at=1.1)
    assert kind in kinds(with_wire(silent, *wire, faults=[short]))


def test_the_death_of_another_worker_excuses_nothing() -> None:
    kind = "number in two attempts at once"
    dead = {"exits": [Exit(3.0, -9, "kill", name=WORKER)], "is_fleet": True}
    calls = ringing(0.0), refused(38.0, "b")
    mine = with_wire(failed(*calls, retry_count=1), sent(0.0, "INVITE"), **dead)
    assert kind not in kinds(mine)
    theirs = with_wire(failed(*calls, retry_count=1), sent(0.0, "INVITE"), **dead)
    theirs.exits = [Exit(3.0, -9, "kill", name="worker2")]
    assert kind in kinds(theirs)
