"""`bitel init`, and which commands make a database: the others say that there is none."""

from __future__ import annotations

import os
import shutil
import stat
from typing import TYPE_CHECKING

import pytest

from bitel.settings import load

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.shell import Shell


@pytest.fixture(autouse=True)
def without_database(shell: Shell) -> None:
    shutil.rmtree(shell.data_dir)


def test_init_makes_settings_and_a_database_and_says_where(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "new" / "bitel.toml"
    status, out, err = shell.run("init", "--config", str(config))
    data_dir = config.parent / "bitel-data"
    assert status == 0
    assert out.splitlines() == [
        f"settings  {config} (created)",
        f"data_dir  {data_dir}",
        f"database  {data_dir / 'bitel.db'}",
    ]
    assert f"created the database {data_dir / 'bitel.db'}" in err
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    _, listed, _ = shell.run("key", "list", "--config", str(config))
    assert listed.rstrip().endswith("plain    signs")
    assert load(config).dialers == []

    written = config.read_text()
    config.write_text(written + "\n# mine\n")
    status, out, err = shell.run("init", "--config", str(config))
    assert (status, err) == (0, ""), "what is there stays"
    assert out.startswith(f"settings  {config}\n")
    assert config.read_text().endswith("# mine\n")


def test_the_template_is_what_a_carrier_needs(tmp_path: Path) -> None:
    from bitel.cli.service import TEMPLATE

    (tmp_path / "carrier-password").write_text("s3cret\n")
    lines = [
        line.removeprefix("# ") if line.startswith(("# [[", "# ")) and "=" in line else line
        for line in TEMPLATE.replace("# [[", "[[").splitlines()
    ]
    config = tmp_path / "bitel.toml"
    config.write_text("\n".join(lines).replace('username = ""', 'username = "acme"'))
    loaded = load(config)
    assert [dialer.id for dialer in loaded.dialers] == ["main"]
    assert loaded.dialers[0].password.get_secret_value() == "s3cret"
    assert len(loaded.tariff) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("project", "list"),
        ("project", "set", "acme", "--balance", "1"),
        ("project", "delete", "acme", "--yes"),
        ("token", "create", "acme"),
        ("token", "list", "acme"),
        ("token", "revoke", "x"),
        ("ledger", "acme"),
        ("attempts", "x"),
        ("campaign", "list"),
        ("dnc", "list", "acme"),
        ("dnc", "add", "acme", "09121234567"),
        ("webhook", "deliveries"),
    ],
    ids=" ".join,
)
def test_other_commands_make_no_database(shell: Shell, arguments: tuple[str, ...]) -> None:
    status, out, err = shell.run(*arguments, "--config", str(shell.config))
    path = shell.data_dir / "bitel.db"
    assert (status, out) == (1, "")
    assert err == (
        f"bitel: there is no database of bitel at {path}; `bitel init` or `bitel serve` makes it\n"
    )
    assert not shell.data_dir.exists()


@pytest.mark.parametrize("arguments", [("status", "x"), ("servers",), ("trace", "x")])
def test_clients_and_readers_make_nothing(
    shell: Shell, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITEL_TOKEN", "x")
    monkeypatch.setenv("BITEL_URL", "http://127.0.0.1:9")
    status, _, _ = shell.run(*arguments, "--config", str(shell.config))
    assert status == 1
    assert not shell.data_dir.exists()


def test_a_project_is_created_and_the_new_database_named(shell: Shell) -> None:
    status, out, err = shell.run("project", "create", "acme", "--config", str(shell.config))
    assert (status, len(out.strip())) == (0, 32)
    created = f"bitel: created the database {shell.data_dir / 'bitel.db'}\n"
    assert err.startswith(created)
    _, _, err = shell.run("project", "create", "beta", "--config", str(shell.config))
    assert created not in err


def test_the_folder_of_the_settings_is_where_data_is(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, etc = tmp_path / "elsewhere", tmp_path / "etc"
    for folder in (elsewhere, etc):
        folder.mkdir()
    config = etc / "bitel.toml"
    config.write_text('data_dir = "data"\n')
    monkeypatch.chdir(elsewhere)
    assert shell.run("project", "create", "acme", "--config", str(config))[0] == 0
    assert (etc / "data" / "bitel.db").exists()
    assert os.listdir(elsewhere) == []

    monkeypatch.chdir(etc)
    assert shell.run("project", "list", "--config", "bitel.toml")[0] == 0


def test_data_where_an_earlier_version_put_it_is_not_left_behind(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier version read `data_dir` relative to the working directory."""
    work, etc = tmp_path / "work", tmp_path / "etc"
    (work / "data").mkdir(parents=True)
    (work / "data" / "bitel.db").touch()
    etc.mkdir()
    config = etc / "bitel.toml"
    config.write_text('data_dir = "data"\n')
    monkeypatch.chdir(work)
    status, _, err = shell.run("project", "create", "acme", "--config", str(config))
    assert status == 1
    assert str(work / "data") in err
    assert str(etc / "data") in err
    assert not (etc / "data").exists()
