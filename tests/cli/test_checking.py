"""`bitel check-config`, `--version`, `servers` and `token list`."""

from __future__ import annotations

import json
import re
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import click
import pytest
import typer

from bitel.cli import main

if TYPE_CHECKING:
    from tests.cli.shell import Service, Shell

DIALER = """[[dialers]]
id = "main"
trunks = ["sip:127.0.0.1:5060"]
username = "bitel"
password = "hunter2"
"""


def test_settings_are_shown_and_nothing_is_made(shell: Shell) -> None:
    folder = shell.data_dir.parent
    shell.config.write_text(
        f'data_dir = "{folder / "new"}"\n'
        'database_url = "postgresql://bitel:hunter2@db.example/calls"\n' + DIALER
    )
    status, out, err = shell.run("check-config", "--config", str(shell.config))
    assert (status, err) == (0, "")
    dialer = "main: sip:127.0.0.1:5060"
    for words in (str(shell.config), str(folder / "new"), "db.example/calls", dialer):
        assert words in out
    assert "hunter2" not in out
    assert not (folder / "new").exists()


def test_settings_without_a_dialer_warn(shell: Shell) -> None:
    status, _, err = shell.run("check-config", "--config", str(shell.config))
    assert (status, "no [[dialers]]" in err) == (0, True)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ("[http]\nport = 70000", "http.port"),
        ("colour = 1", "colour"),
        ('database_url = "mysql://x"', "database_url"),
        ('[notifications]\nurl = "ftp://x"', "notifications.url"),
        ("= 1", "bitel"),
    ],
)
def test_settings_that_are_wrong_are_one_sentence(shell: Shell, settings: str, names: str) -> None:
    shell.config.write_text(settings)
    status, out, err = shell.run("check-config", "--config", str(shell.config))
    assert (status, out) == (1, "")
    assert names in err
    assert err.count("\n") == 1


KUBERNETES = {
    "BITEL_SERVICE_HOST": "10.0.0.7",
    "BITEL_SERVICE_PORT": "8080",
    "BITEL_PORT": "tcp://10.0.0.7:8080",
    "BITEL_PORT_8080_TCP_ADDR": "10.0.0.7",
    "BITEL_HTTP_PORT": "tcp://10.0.0.7:8080",
}


def test_variables_that_others_set_are_named_and_passed_over(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in KUBERNETES.items():
        monkeypatch.setenv(name, value)
    status, _, err = shell.run("check-config", "--config", str(shell.config))
    assert status == 0
    assert ", ".join(sorted(KUBERNETES)) in err


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("BITEL_HTTP_PORT", "BITEL_HTTP__PORT"),
        ("BITEL_DATABSE_URL", "BITEL_DATABASE_URL"),
        ("BITEL_LOGJSON", "BITEL_LOG_JSON"),
        ("BITEL_METRICS_TOKEN", "BITEL_METRICS__TOKEN"),
        ("BITEL_HTPT__PORT", "BITEL_HTTP__PORT"),
        ("BITEL_COLOUR__OF", ""),
    ],
)
def test_a_variable_that_is_misspelt_stops_the_start(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    monkeypatch.setenv(name, "1")
    status, out, err = shell.run("check-config", "--config", str(shell.config))
    assert (status, out) == (1, "")
    assert err.startswith(f"bitel: {name} in the environment names no setting")
    assert meant in err


def test_the_version(shell: Shell) -> None:
    assert shell.run("--version") == (0, f"bitel {version('bitel')}\n", "")


def test_servers(shell: Shell, service: Service) -> None:
    service.on(
        "GET /api/v2/servers",
        [
            {"id": "main", "up": True, "paused": None},
            {"id": "spare", "up": False, "paused": "ten calls were refused"},
        ],
    )
    assert shell.run("servers")[1].splitlines() == [
        "main              up",
        "spare             down  paused: ten calls were refused",
    ]
    assert json.loads(shell.run("servers", "--json")[1])[0]["id"] == "main"


def test_tokens_are_listed_without_themselves(shell: Shell) -> None:
    shell.admin("project", "create", "shop")
    issued = [shell.admin("token", "create", "shop") for _ in range(2)]
    issued.append(shell.admin("token", "create", "shop", "--expires", "10"))
    shell.admin("token", "revoke", issued[1])
    shown = shell.admin("token", "list", "shop")
    until = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 10 * 86_400))
    states = [line.split("  ", 2)[2] for line in shown.splitlines()]
    assert states == ["good", "revoked", f"good until {until}"]
    rows = json.loads(shell.admin("token", "list", "shop", "--json"))
    assert [row["good"] for row in rows] == [True, False, True]
    assert not any(token.rpartition(".")[2] in shown for token in issued)


def commands(group: click.Group, *path: str) -> list[tuple[str, ...]]:
    found = []
    for name, command in group.commands.items():
        place = (*path, name)
        found += commands(command, *place) if isinstance(command, click.Group) else [place]
    return found


def test_no_word_of_a_help_text_is_taken_for_markup(shell: Shell) -> None:
    group: Any = typer.main.get_command(main.app) if isinstance(main.app, typer.Typer) else main.app
    listed = commands(group)
    assert ("trace",) in listed
    for place in listed:
        command: Any = group
        for name in place:
            command = command.commands[name]
        texts = [command.help or "", *(getattr(one, "help", "") or "" for one in command.params)]
        for text in texts:
            assert not re.search(r"\[[a-z/]", text), f"{place}: {text}"
