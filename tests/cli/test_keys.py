"""Commands about the keys that sign tokens: list, rotate, retire, rewrap."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import jwt
import pytest

from bitel.settings import load

if TYPE_CHECKING:
    from tests.cli.shell import Shell

SECRET = "the secret of the keys"


@pytest.fixture
def token(shell: Shell) -> str:
    shell.admin("project", "create", "shop")
    return shell.admin("token", "create", "shop")


def kid(token: str) -> Any:
    return jwt.get_unverified_header(token)["kid"]


def listed(shell: Shell) -> list[dict[str, Any]]:
    keys: list[dict[str, Any]] = json.loads(shell.admin("key", "list", "--json"))
    return keys


def set_secret(shell: Shell, secret: str) -> None:
    setting = f'signing_key_secret = "{secret}"\n' if secret else ""
    shell.config.write_text(f'data_dir = "{shell.data_dir}"\n{setting}')


def test_a_rotation_prints_the_new_key_and_until_when_others_are_accepted(
    shell: Shell, token: str
) -> None:
    config = ("--config", str(shell.config))
    status, out, err = shell.run("key", "rotate", "--overlap", "2", *config)
    assert (status, "tokens made before are refused from " in err) == (0, True)
    new, old = listed(shell)
    assert (new["id"], old["id"]) == (out.strip(), kid(token))
    assert (new["signs"], old["signs"], new["retiredAt"]) == (True, False, None)
    assert abs(old["retiredAt"] - time.time() - 2 * 86_400) < 60
    assert kid(shell.admin("token", "create", "shop")) == new["id"]
    assert "accepted until" in shell.admin("key", "list")


def test_a_key_that_is_kept_is_retired_by_hand_and_the_one_that_signs_not(
    shell: Shell, token: str
) -> None:
    new = shell.admin("key", "rotate", "--keep")
    config = ("--config", str(shell.config))
    status, _, err = shell.run("key", "retire", new, *config)
    assert (status, "bitel key rotate" in err) == (1, True)
    assert shell.admin("key", "list").splitlines()[1].endswith("accepted")
    shell.admin("key", "retire", kid(token))
    assert "retired on" in shell.admin("key", "list")
    status, _, err = shell.run("token", "revoke", token, *config)
    assert status == 1


def test_keys_are_wrapped_with_the_secret_of_the_settings_and_later_with_another(
    shell: Shell, token: str
) -> None:
    set_secret(shell, SECRET)
    shell.admin("token", "create", "shop")
    assert [key["wrapped"] for key in listed(shell)] == [True]
    old_secret = shell.config.with_name("old-secret")
    old_secret.write_text(f"{SECRET}\n")
    for secret, wrapped in (("another secret of them", True), ("", False)):
        set_secret(shell, secret)
        config = ("--config", str(shell.config))
        status, _, err = shell.run("token", "create", "shop", *config)
        assert (status, "wrapped" in err) == (1, True)
        assert SECRET not in err
        status, _, err = shell.run("key", "rewrap", str(old_secret), *config)
        assert (status, "1 keys were changed" in err) == (0, True)
        assert [key["wrapped"] for key in listed(shell)] == [wrapped]
        assert kid(shell.admin("token", "create", "shop")) == kid(token)
        old_secret.write_text(secret)


def test_the_secret_is_masked(shell: Shell) -> None:
    set_secret(shell, SECRET)
    settings = load(shell.config)
    assert settings.signing_key_secret.get_secret_value() == SECRET
    assert SECRET not in repr(settings)
    status, out, err = shell.run("check-config", "--config", str(shell.config))
    assert status == 0
    assert SECRET not in out + err
