"""Tokens: what they say, which are accepted, and the keys that sign them, which processes share."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt
import pytest

from bitel.api import signing_keys
from bitel.api.auth import Claims, SigningKey, TokenSigner
from bitel.api.signing_keys import KEY_FILE, SigningKeyRefresher
from bitel.errors import ConflictError, NotFoundError, SettingsError, UnauthorizedError
from bitel.store import signing_keys as store
from bitel.store.database import Database

if TYPE_CHECKING:
    from tests.api.stage import Stage
    from tests.support.clocks import FakeClock

PROJECT, TOKEN = "a" * 32, "b" * 32
SECRET, OTHER = "the secret of the keys", "another secret of them"

Open = Callable[..., TokenSigner]


@pytest.fixture
def opened(database: Database, clock: FakeClock, tmp_path: Path) -> Open:
    """Opens the keys of the database, of a machine with that folder and secret."""

    def open_signer(data_dir: Path = tmp_path / "data", secret: str = "") -> TokenSigner:
        return signing_keys.open_signer(database, data_dir, secret, clock)

    return open_signer


@pytest.fixture
def rotate(database: Database, clock: FakeClock, tmp_path: Path) -> Callable[..., str]:
    def run(retire_at: float | None = None, secret: str = "") -> str:
        now = clock()
        return database.write_now(
            lambda conn: signing_keys.rotate(conn, tmp_path / "data", secret, now, retire_at)
        )

    return run


def file_of_an_earlier_version(data_dir: Path, content: bytes) -> Path:
    data_dir.mkdir(exist_ok=True)
    key = data_dir / KEY_FILE
    key.write_bytes(content)
    key.chmod(0o600)
    return key


def token_of_an_earlier_version(key: bytes) -> str:
    claims = {"sub": PROJECT, "iss": "Bitel", "aud": "Bitel", "jti": TOKEN}
    return jwt.encode(claims, key, algorithm="HS256")


def kid(token: str) -> Any:
    return jwt.get_unverified_header(token)["kid"]


def test_machines_with_one_database_accept_tokens_of_each_other(
    opened: Open, tmp_path: Path
) -> None:
    token = opened(tmp_path / "one").issue(PROJECT, TOKEN)
    assert opened(tmp_path / "other").verify(token) == Claims(PROJECT, TOKEN)
    assert not any(tmp_path.rglob(KEY_FILE))


def test_of_many_first_starts_at_once_one_makes_the_key(
    database_url: str, tmp_path: Path, clock: FakeClock
) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        databases = [stack.enter_context(Database.open(database_url)) for _ in range(4)]
        made = pool.map(
            lambda each: signing_keys.open_signer(each, tmp_path, "", clock), 4 * databases
        )
        keys = {signer.keys for signer in made}
    assert len(keys) == 1
    assert len(keys.pop()) == 1


def test_the_file_of_an_earlier_version_is_imported_once_and_signs(
    opened: Open, database: Database, tmp_path: Path
) -> None:
    content = os.urandom(48)
    for name in ("one", "copy"):
        file_of_an_earlier_version(tmp_path / name, content)
    old = token_of_an_earlier_version(content)
    token = opened(tmp_path / "one").issue(PROJECT, TOKEN)
    # What an earlier version checks, which knows no kid.
    assert jwt.decode(token, content, algorithms=["HS256"], audience="Bitel")["jti"] == TOKEN
    for name in ("one", "copy", "without"):
        assert opened(tmp_path / name).verify(old) == Claims(PROJECT, TOKEN)
    assert len(database.read_now(store.listing)) == 1


def test_a_second_file_is_accepted_too_and_a_retired_one_not_imported_again(
    opened: Open, database: Database, rotate: Callable[..., str], tmp_path: Path, clock: FakeClock
) -> None:
    contents = [os.urandom(48), os.urandom(48)]
    for number, content in enumerate(contents):
        file_of_an_earlier_version(tmp_path / str(number), content)
        opened(tmp_path / str(number))
    for content in contents:
        assert opened().verify(token_of_an_earlier_version(content))
    rotate(retire_at=clock())
    for number, content in enumerate(contents):
        with pytest.raises(UnauthorizedError):
            opened(tmp_path / str(number)).verify(token_of_an_earlier_version(content))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_file_that_others_can_read_is_refused(opened: Open, tmp_path: Path, mode: int) -> None:
    file_of_an_earlier_version(tmp_path, os.urandom(48)).chmod(mode)
    with pytest.raises(SettingsError, match="chmod 600"):
        opened(tmp_path)


def test_a_short_file_is_refused(opened: Open, tmp_path: Path) -> None:
    file_of_an_earlier_version(tmp_path, b"short")
    with pytest.raises(SettingsError, match="shorter than 32 bytes"):
        opened(tmp_path)


def test_a_wrapped_key_needs_its_secret_and_is_not_in_the_database(
    opened: Open, database: Database
) -> None:
    plain = opened().keys[0].secret
    token = opened(secret=SECRET).issue(PROJECT, TOKEN)  # a key of before is wrapped
    (row,) = database.read_now(store.listing)
    assert row.wrapping
    assert plain not in row.material
    assert opened(secret=SECRET).verify(token) == Claims(PROJECT, TOKEN)
    with pytest.raises(SettingsError, match="signing_key_secret is not the secret"):
        opened(secret=OTHER)
    with pytest.raises(SettingsError, match="set signing_key_secret"):
        opened()


def test_the_wrapping_of_one_key_does_not_fit_another(
    opened: Open, rotate: Callable[..., str], database: Database
) -> None:
    opened(secret=SECRET)
    rotate(secret=SECRET)
    new, old = database.read_now(store.listing)
    with pytest.raises(SettingsError, match=new.id):
        signing_keys.unwrap(new._replace(material=old.material), SECRET)


@pytest.mark.parametrize(("old", "new"), [("", SECRET), (SECRET, OTHER), (SECRET, "")])
def test_keys_are_wrapped_again_with_another_secret(
    opened: Open, database: Database, clock: FakeClock, old: str, new: str
) -> None:
    token = opened(secret=old).issue(PROJECT, TOKEN)
    for changed in (1, 0):
        done = database.write_now(lambda conn: signing_keys.rewrap(conn, old, new, clock()))
        assert done == changed
    assert opened(secret=new).verify(token) == Claims(PROJECT, TOKEN)


def test_after_a_rotation_the_new_key_signs_and_the_old_one_is_accepted_for_the_overlap(
    opened: Open, rotate: Callable[..., str], clock: FakeClock
) -> None:
    before = opened().issue(PROJECT, TOKEN)
    new = rotate(retire_at=clock() + 3600)
    signer = opened()
    after = signer.issue(PROJECT, TOKEN)
    assert kid(after) == new != kid(before)
    assert signer.verify(before) == signer.verify(after) == Claims(PROJECT, TOKEN)
    clock.advance(3599)
    assert signer.verify(before)
    clock.advance(1)
    with pytest.raises(UnauthorizedError, match="retired"):
        signer.verify(before)
    assert signer.verify(after)
    with pytest.raises(UnauthorizedError):
        opened().verify(before)


def test_a_rotation_signs_also_when_the_clock_was_set_back(
    opened: Open, rotate: Callable[..., str], clock: FakeClock
) -> None:
    opened()
    clock.advance(-1000)
    new = rotate()
    assert kid(opened().issue(PROJECT, TOKEN)) == new


def test_the_key_that_signs_is_not_retired_and_others_are_at_once(
    opened: Open, rotate: Callable[..., str], database: Database, clock: FakeClock
) -> None:
    before = opened().issue(PROJECT, TOKEN)

    def retire(key_id: str) -> None:
        database.write_now(lambda conn: signing_keys.retire(conn, key_id, clock()))

    with pytest.raises(ConflictError, match="rotate"):
        retire(kid(before))
    with pytest.raises(NotFoundError):
        retire("0" * 32)
    rotate()
    retire(kid(before))
    with pytest.raises(UnauthorizedError):
        opened().verify(before)


async def test_a_running_process_learns_of_new_keys_and_retired_ones(
    stage: Stage, rotate: Callable[..., str], clock: FakeClock
) -> None:
    database, signer = stage.parts.database, stage.parts.tokens
    refresher = SigningKeyRefresher(signer, database, "", clock)
    new = rotate(retire_at=clock() + 100)
    assert not signer.has_key(new)
    assert await refresher.find(new), "a token that names it makes the process look at once"
    assert kid(signer.issue(PROJECT, TOKEN)) == new
    later = rotate()
    assert not await refresher.find(later), "but not for each token that names an unknown one"
    await refresher.refresh()
    assert signer.has_key(later)
    assert signer.verify(stage.token)
    database.write_now(lambda conn: signing_keys.retire(conn, kid(stage.token), clock()))
    await refresher.refresh()
    with pytest.raises(UnauthorizedError):
        signer.verify(stage.token)


async def test_a_key_that_this_process_can_not_read_leaves_it_the_others(
    stage: Stage, rotate: Callable[..., str], clock: FakeClock, logs: list[Any]
) -> None:
    signer = stage.parts.tokens
    refresher = SigningKeyRefresher(signer, stage.parts.database, "", clock)
    new = rotate(secret=SECRET)
    for _ in range(2):
        await refresher.refresh()
    assert signer.verify(stage.token)
    assert not signer.has_key(new)
    assert [each["key"] for each in logs if each["event"] == "signing_key_unreadable"] == [new]


async def test_requests_with_the_token_of_a_new_key_are_answered(
    stage: Stage, rotate: Callable[..., str], clock: FakeClock
) -> None:
    from dataclasses import replace

    from bitel.api.app import build_app

    refresher = SigningKeyRefresher(stage.parts.tokens, stage.parts.database, "", clock)
    app = build_app(replace(stage.parts, find_key=refresher.find))
    key = rotate()
    other = signing_keys.open_signer(stage.parts.database, stage.parts.settings.data_dir, "", clock)
    token = other.issue(stage.project_id, stage.token_id)
    assert kid(token) == key
    for path, status in (("/api/v2/account", 200), (f"/api/v2/voice/status/{'0' * 32}", 404)):
        stage.app = app
        async with stage.client(token) as client:
            assert (await client.get(path)).status_code == status
        stage.parts.tokens.keys = [each for each in stage.parts.tokens.keys if each.id != key]
        clock.advance(10)


@pytest.fixture
def signer(clock: FakeClock) -> TokenSigner:
    return TokenSigner([SigningKey("c" * 32, os.urandom(48))], clock)


def test_a_token_says_who_it_is_for(signer: TokenSigner) -> None:
    unlimited = jwt.decode(signer.issue(PROJECT, TOKEN), options={"verify_signature": False})
    assert unlimited == {"sub": PROJECT, "iss": "Bitel", "aud": "Bitel", "jti": TOKEN}
    limited = signer.issue(PROJECT, TOKEN, expires_at=4_000_000_000.5)
    assert jwt.decode(limited, options={"verify_signature": False})["exp"] == 4_000_000_000
    assert jwt.get_unverified_header(limited) == {"alg": "HS256", "typ": "JWT", "kid": "c" * 32}


def test_an_expired_token_is_refused_also_when_it_was_good_before(signer: TokenSigner) -> None:
    token = signer.issue(PROJECT, TOKEN, expires_at=1.0)
    for _ in range(2):
        with pytest.raises(UnauthorizedError, match="expired"):
            signer.verify(token)


def test_what_is_remembered_is_bounded(
    signer: TokenSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitel.api.auth._REMEMBERED", 8)
    for number in range(100):
        token = signer.issue(PROJECT, f"{number:032x}")
        assert signer.verify(token) == signer.verify(token)
    assert len(signer._verified) <= 8


def test_the_secret_of_a_key_is_in_no_text(signer: TokenSigner) -> None:
    assert repr(signer.keys[0].secret) not in repr(signer.keys)
