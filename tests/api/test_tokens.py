"""The secret behind tokens: made once, kept from others, and what a token says."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jwt
import pytest

from bitel.api.auth import KEY_FILE, Claims, TokenSigner
from bitel.errors import SettingsError, UnauthorizedError

PROJECT, TOKEN = "a" * 32, "b" * 32


def test_the_secret_is_made_on_first_use_for_nobody_else_to_read(tmp_path: Path) -> None:
    data_dir = tmp_path / "made" / "here"
    token = TokenSigner.open(data_dir).issue(PROJECT, TOKEN)
    key = data_dir / KEY_FILE
    assert key.stat().st_mode & 0o777 == 0o600
    assert len(key.read_bytes()) >= 32
    assert data_dir.stat().st_mode & 0o077 == 0
    assert [path.name for path in data_dir.iterdir()] == [KEY_FILE]
    assert TokenSigner.open(data_dir).verify(token) == Claims(PROJECT, TOKEN)


def test_of_many_makers_one_wins(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        signers = list(pool.map(lambda _: TokenSigner.open(tmp_path), range(64)))
    tokens = {signer.issue(PROJECT, TOKEN) for signer in signers}
    assert len(tokens) == 1
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    TokenSigner.open(tmp_path)
    (tmp_path / KEY_FILE).chmod(mode)
    with pytest.raises(SettingsError, match="chmod 600"):
        TokenSigner.open(tmp_path)


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    key = tmp_path / KEY_FILE
    key.touch(mode=0o600)
    with pytest.raises(SettingsError, match="shorter than 32 bytes"):
        TokenSigner.open(tmp_path)


def test_a_folder_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="signing secret"):
        TokenSigner.open(tmp_path / "file")


def test_a_token_says_who_it_is_for(tmp_path: Path) -> None:
    signer = TokenSigner.open(tmp_path)
    unlimited = jwt.decode(signer.issue(PROJECT, TOKEN), options={"verify_signature": False})
    assert unlimited == {"sub": PROJECT, "iss": "Bitel", "aud": "Bitel", "jti": TOKEN}
    limited = signer.issue(PROJECT, TOKEN, expires_at=4_000_000_000.5)
    assert jwt.decode(limited, options={"verify_signature": False})["exp"] == 4_000_000_000
    assert jwt.get_unverified_header(limited)["alg"] == "HS256"


def test_an_expired_token_is_refused_also_when_it_was_good_before(tmp_path: Path) -> None:
    signer = TokenSigner.open(tmp_path)
    token = signer.issue(PROJECT, TOKEN, expires_at=1.0)
    for _ in range(2):
        with pytest.raises(UnauthorizedError, match="expired"):
            signer.verify(token)


def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitel.api.auth._REMEMBERED", 8)
    signer = TokenSigner(os.urandom(48))
    for number in range(100):
        token = signer.issue(PROJECT, f"{number:032x}")
        assert signer.verify(token) == signer.verify(token)
    assert len(signer._verified) <= 8
