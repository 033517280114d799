"""The search itself finds what it is for."""

from __future__ import annotations

import pytest

from tests.support.log_secrets import leaks


@pytest.mark.parametrize(
    "line",
    [
        "token=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIwMWEyMDA3NDdj.x",
        "secret whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "password=s3cret",
        'Authorization: Digest username="a"',
        "dialled +989121234567",
        "dialled 09121234567",
    ],
)
def test_a_secret_in_a_log_is_found(line: str) -> None:
    assert leaks(line)


def test_a_masked_number_is_none() -> None:
    assert leaks("dialled +989*******67, attempt=01a2007a4398734e8c1ce2f551554cb5") == []
