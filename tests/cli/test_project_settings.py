"""`bitel project set`, `bitel ledger` and `bitel dnc`: what the operator writes down."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from bitel.demo.stage import WITHOUT_LIMITS
from bitel.store import do_not_call, projects

if TYPE_CHECKING:
    from tests.cli.shell import Shell


@pytest.fixture
def shop(shell: Shell) -> Shell:
    shell.config.write_text(
        f'data_dir = "{shell.data_dir}"\n'
        '[[dialers]]\nid = "main"\ntrunks = ["sip:127.0.0.1:5060"]\nbind = "127.0.0.1:5070"\n'
        '[[dialers]]\nid = "spare"\ntrunks = ["sip:127.0.0.1:5060"]\nbind = "127.0.0.1:5071"\n'
    )
    shell.admin("project", "create", "shop", *WITHOUT_LIMITS)
    return shell


def listed(shell: Shell) -> Any:
    (row,) = json.loads(shell.admin("project", "list", "--json"))
    return row


def test_every_limit_of_a_project_is_set_and_lifted(shop: Shell) -> None:
    before = listed(shop)
    shop.admin(
        *("project", "set", "shop", "--daily-spend", "1000.5", "--rate", "600"),
        *("--window", "sat-wed 09:00-21:00 Asia/Tehran", "--call-rate", "30"),
        *("--allow-prefix", "+98, +4930", "--forbid-prefix", "+98900"),
        *("--dialers", "spare", "--default-dialer", "spare", "--disable"),
        *("--parallel-calls", "--unwanted-to-dnc"),
        *("--hold-seconds", "0", "--max-calls-per-number-per-day", "3"),
    )
    assert listed(shop) == {
        **before,
        "dailySpend": 1000.5,
        "requestsPerMinute": 600,
        "callsPerMinute": 30,
        "window": "sat-wed 09:00-21:00 Asia/Tehran",
        "allowedPrefixes": ["+98", "+4930"],
        "forbiddenPrefixes": ["+98900"],
        "dialers": ["spare"],
        "defaultDialer": "spare",
        "disabled": True,
        "oneCallPerNumber": False,
        "unwantedToDoNotCall": True,
        "holdSeconds": 0,
        "maxCallsPerNumberPerDay": 3,
    }
    shop.admin(
        *("project", "set", "shop", "--daily-spend", "unlimited", "--rate", "settings"),
        *("--window", "always", "--call-rate", "settings", "--allow-prefix", "home"),
        *("--forbid-prefix", "none", "--dialers", "all", "--default-dialer", "none", "--enable"),
        *("--one-call-per-number", "--unwanted-ignored"),
        *("--hold-seconds", "60", "--max-calls-per-number-per-day", "unlimited"),
    )
    assert listed(shop) == before


@pytest.mark.parametrize(
    ("option", "value", "status"),
    [
        ("--window", "whenever", 1),
        ("--allow-prefix", "98", 1),
        ("--allow-prefix", ",", 2),
        ("--forbid-prefix", "+x", 1),
        ("--rate", "0", 2),
        ("--rate", "fast", 2),
        ("--call-rate", "-1", 2),
        ("--daily-spend", "-1", 1),
        ("--daily-spend", "1e13", 2),
        ("--daily-spend", "0.00001", 2),
        ("--balance", "NaN", 2),
        ("--hold-seconds", "3601", 2),
        ("--max-calls-per-number-per-day", "0", 2),
        ("--max-calls-per-number-per-day", "many", 2),
        ("--daily-spend", "much", 2),
        ("--dialers", "main,nowhere", 1),
        ("--default-dialer", "nowhere", 1),
    ],
)
def test_what_can_not_be_is_refused_and_changes_nothing(
    shop: Shell, option: str, value: str, status: int
) -> None:
    before = listed(shop)
    result, out, err = shop.run(
        *("project", "set", "shop", "--balance", "7", option, value, "--config", str(shop.config))
    )
    assert (result, out) == (status, ""), err
    assert listed(shop) == before


def test_the_ledger_tells_of_every_movement(shop: Shell) -> None:
    shop.admin("project", "create", "other")
    for name, balance in (("shop", "10"), ("shop", "7.5"), ("other", "1")):
        shop.admin("project", "set", name, "--balance", balance)
    mine = json.loads(shop.admin("ledger", "shop", "--json"))
    assert [(row["amount"], row["kind"], row["project"]) for row in mine] == [
        (-2.5, "top-up", "shop"),
        (10.0, "top-up", "shop"),
    ]
    assert len(json.loads(shop.admin("ledger", "--json"))) == 3
    assert len(json.loads(shop.admin("ledger", "shop", "--limit", "1", "--json"))) == 1
    assert "-2.5" in shop.admin("ledger", "shop").splitlines()[0]
    assert shop.run("ledger", "nobody", "--config", str(shop.config))[0] == 1


def test_numbers_go_on_the_list_and_off_it(shop: Shell) -> None:
    config = ("--config", str(shop.config))
    assert shop.admin("dnc", "add", "shop", "0912 123 4567") == ""
    shop.admin("dnc", "add", "shop", "+989351234567")
    assert shop.admin("dnc", "list", "shop").split() == ["+989121234567", "+989351234567"]
    assert json.loads(shop.admin("dnc", "list", "shop", "--json"))[0] == "+989121234567"
    assert shop.run("dnc", "add", "shop", "09121234567", *config)[0] == 1
    assert shop.run("dnc", "add", "shop", "letters", *config)[0] == 1
    shop.admin("dnc", "remove", "shop", "۰۹۱۲۱۲۳۴۵۶۷")
    assert shop.admin("dnc", "list", "shop") == "+989351234567"
    assert shop.run("dnc", "remove", "shop", "09121234567", *config)[0] == 1
    assert shop.run("dnc", "list", "nobody", *config)[0] == 1


def test_a_long_list_is_shown_whole(shop: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitel.cli.dnc.PAGE", 3)
    numbers = [f"+98912000000{digit}" for digit in range(8)]

    def work(conn: Any) -> None:
        found = projects.find(conn, "shop")
        assert found is not None
        for number in numbers:
            do_not_call.add(conn, found.id, number)

    from bitel.store.database import Database

    with Database.open(f"sqlite:///{shop.data_dir / 'bitel.db'}") as database:
        database.write_now(work)
    assert shop.admin("dnc", "list", "shop").split() == numbers
