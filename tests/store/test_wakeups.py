"""Wake-ups between processes that share a PostgreSQL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg
import pytest

from bitel.store import engines, wakeups
from bitel.store.wakeups import EVERYTHING, Wakeups
from tests.support.waiting import wait_until


class Process:
    def __init__(self, url: str) -> None:
        self.woken: list[str] = []
        self.wakeups = Wakeups(engines.parse_url(url), self.woken.append)

    def topics(self) -> list[str]:
        return [each for each in self.woken if each != EVERYTHING]


@contextlib.contextmanager
def processes(url: str, count: int) -> Iterator[list[Process]]:
    made = [Process(url) for _ in range(count)]
    for each in made:
        each.wakeups.start()
    try:
        wait_until(lambda: all(EVERYTHING in each.woken for each in made), 10)
        yield made
    finally:
        for each in made:
            each.wakeups.close()


def test_a_topic_reaches_the_other_processes_once(postgres_url: str) -> None:
    with processes(postgres_url, 3) as (first, second, third):
        first.wakeups.send("calls:main")
        wait_until(lambda: second.topics() == third.topics() == ["calls:main"], 10)
        second.wakeups.send("events")
        wait_until(lambda: first.topics() == ["events"], 10)
        assert second.topics() == ["calls:main"], "its own do not come back"


def test_a_lost_connection_is_replaced_and_everything_is_looked_at(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeups, "_FIRST_RETRY", 0.05)
    with processes(postgres_url, 2) as (first, second):
        first.wakeups.send("calls:main")
        wait_until(lambda: second.topics() == ["calls:main"], 10)
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        wait_until(lambda: second.woken.count(EVERYTHING) == 2, 10)
        wait_until(lambda: first.woken.count(EVERYTHING) == 2, 10)

        def sent() -> bool:
            first.wakeups.send("events")
            return "events" in second.topics()

        wait_until(sent, 10)


def test_what_breaks_in_one_wake_up_does_not_end_the_listening(postgres_url: str) -> None:
    woken: list[str] = []

    def wake(topic: str) -> None:
        woken.append(topic)
        if topic == "broken":
            raise RuntimeError("it can't be read")

    listener = Wakeups(engines.parse_url(postgres_url), wake)
    listener.start()
    with processes(postgres_url, 1) as (sender,):
        wait_until(lambda: EVERYTHING in woken, 10)
        for topic in ("broken", "calls:main"):
            sender.wakeups.send(topic)
            wait_until(lambda: topic in woken, 10)  # noqa: B023
    listener.close()
