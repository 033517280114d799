"""Prices: which numbers have one, and how exactly amounts are shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel import exact_json
from bitel.errors import SettingsError
from bitel.settings import Settings, load

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.stage import Stage

SINGLE = "/api/v2/voice/single"


@pytest.mark.parametrize("path", [SINGLE, "/api/v1/voice/single"])
async def test_a_number_without_a_price_is_not_called_once_there_is_a_tariff(
    make_stage: Callable[..., Stage], path: str
) -> None:
    stage = make_stage(tariff=[{"prefix": "+9821", "per_minute": 1}])
    async with stage.client() as client:
        assert (await client.post(path, json=stage.body(phoneNumber="02112345678"))).is_success
        refused = await client.post(path, json=stage.body())
        assert (refused.status_code, refused.json()["error"]) == (403, "Forbidden")
        message = refused.json()["message"]
        for words in ("phoneNumber '0912 123 4567'", "+98", 'prefix = "+"'):
            assert words in message
    assert stage.queued() == 1


@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=4, min_value=-(10**12), max_value=10**12
    )
)
def test_amounts_are_written_with_exactly_their_digits(amount: Decimal) -> None:
    text = exact_json.dumps({"price": amount, "text": '"decimal-1"'})
    assert json.loads(text, parse_float=Decimal) == {"price": amount, "text": '"decimal-1"'}
    written = exact_json.number(amount)
    assert "e" not in written.lower()
    assert "." in written
    assert not written.startswith("-0.0") or amount


async def test_a_line_for_all_numbers_prices_the_rest(make_stage: Callable[..., Stage]) -> None:
    free = {"prefix": "+", "per_minute": 0}
    stage = make_stage(tariff=[{"prefix": "+9821", "per_minute": 1}, free])
    async with stage.client() as client:
        assert (await client.post(SINGLE, json=stage.body())).is_success


def test_common_amounts_look_as_ever() -> None:
    shown = [exact_json.number(Decimal(text)) for text in ("-34.2000", "0", "-0", "1E+3", "0.0001")]
    assert shown == ["-34.2", "0.0", "0.0", "1000.0", "0.0001"]
    with pytest.raises(TypeError):
        exact_json.dumps(Decimal("NaN"))


async def test_a_large_balance_is_shown_exactly(sqlite_stage: Stage) -> None:
    sqlite_stage.set_balance("999999999999.9999")
    async with sqlite_stage.client() as client:
        answer = await client.get("/api/v2/account")
    assert '"balance":999999999999.9999,' in answer.text


@pytest.mark.parametrize(
    ("tariff", "names"),
    [
        (2 * '[[tariff]]\nprefix = "+98"\nper_minute = 1\n', "+98"),
        ('[[tariff]]\nprefix = "+98"\nper_minute = -1', "per_minute"),
        ('[[tariff]]\nprefix = "+98"\nper_minute = "1e20"', "per_minute"),
        ('[[tariff]]\nprefix = "+98"\nper_minute = nan', "per_minute"),
        ('[[tariff]]\nprefix = "+98"\nper_minute = inf', "per_minute"),
        ('[[tariff]]\nprefix = "+98"\nper_minute = 1\nminimum = 1e12', "minimum"),
        ('[[tariff]]\nprefix = "+98"\nper_minute = 1\nconnection_fee = "NaN"', "connection_fee"),
        ('[[tariff]]\nprefix = "98"\nper_minute = 1', "prefix"),
    ],
)
def test_a_tariff_that_can_not_be_stops_the_start(tmp_path: Path, tariff: str, names: str) -> None:
    config = tmp_path / "bitel.toml"
    config.write_text(tariff)
    with pytest.raises(SettingsError, match="tariff") as refused:
        load(config)
    assert names in str(refused.value)


def test_the_longest_call_at_the_highest_rate_fits_a_balance() -> None:
    rate = Settings.model_validate(
        {"tariff": [{"prefix": "+", "per_minute": 10**9, "increment": 3600}]}
    ).price_list()
    assert rate.price("+989121234567", 7200 + 3600 + 5) < Decimal(10) ** 12
