"""Signatures: the specification's own vectors, and what must never pass."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.errors import InvalidRequestError
from bitel.webhooks.signing import (
    LONGEST_KEY,
    PREFIX,
    SHORTEST_KEY,
    WebhookSignatureError,
    headers,
    new_secret,
    sign,
    verify,
)

# From the Standard Webhooks project: its simulator's message, and the one of its reference tests.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE = "msg_p5jXN8AQM9LWM0D4loKWxJek"
AT = 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

keys = st.binary(min_size=SHORTEST_KEY, max_size=LONGEST_KEY)
ids = st.text("0123456789abcdef_", min_size=1, max_size=40)
times = st.integers(0, 10**11)


def secret_of(key: bytes) -> str:
    return PREFIX + base64.b64encode(key).decode()


def vector(**changes: str) -> dict[str, str]:
    given = {
        "webhook-id": MESSAGE,
        "webhook-timestamp": str(AT),
        "webhook-signature": SIGNATURE,
    }
    return given | {name.replace("_", "-"): value for name, value in changes.items()}


def test_a_known_message_has_its_known_signature() -> None:
    assert sign(SECRET, MESSAGE, AT, BODY) == SIGNATURE
    assert sign(SECRET.removeprefix(PREFIX), MESSAGE, AT, BODY) == SIGNATURE
    assert headers(SECRET, MESSAGE, AT, BODY) == vector()
    assert verify(SECRET, vector(), BODY, AT) == MESSAGE


def test_header_names_are_read_in_any_case() -> None:
    shouted = {name.upper(): value for name, value in vector().items()}
    assert verify(SECRET, shouted, BODY, AT) == MESSAGE


@pytest.mark.parametrize(
    "beside",
    [
        f"v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc= {SIGNATURE}",
        f"{SIGNATURE} v2,AAAA",
        f"v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg== {SIGNATURE}",  # noqa: E501
    ],
)
def test_one_signature_that_fits_is_enough(beside: str) -> None:
    assert verify(SECRET, vector(webhook_signature=beside), BODY, AT) == MESSAGE


@pytest.mark.parametrize(
    "signature",
    [
        SIGNATURE.replace("v1,", "v2,"),
        SIGNATURE.removeprefix("v1,"),
        SIGNATURE[:-1],
        SIGNATURE + "x",
        "v1,",
        "v1,é\udc80",
        ",",
        "x " * 1000,
        # As many others as fill the header push the right one out of what is looked at.
        "v1,AAAA " * 32 + SIGNATURE,
    ],
)
def test_any_other_signature_is_refused(signature: str) -> None:
    with pytest.raises(WebhookSignatureError, match="webhook-signature"):
        verify(SECRET, vector(webhook_signature=signature), BODY, AT)


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_named(missing: str) -> None:
    given = vector()
    del given[missing]
    with pytest.raises(WebhookSignatureError, match=missing):
        verify(SECRET, given, BODY, AT)
    with pytest.raises(WebhookSignatureError, match=missing):
        verify(SECRET, vector() | {missing: ""}, BODY, AT)


@pytest.mark.parametrize(
    "timestamp", ["soon", "-1", "1614265330.5", "9" * 5000, "١٦١٤٢٦٥٣٣٠", " 1"]
)
def test_a_time_that_is_none_is_refused(timestamp: str) -> None:
    with pytest.raises(WebhookSignatureError, match="webhook-timestamp"):
        verify(SECRET, vector(webhook_timestamp=timestamp), BODY, AT)


@pytest.mark.parametrize("away", [-300.0, 0.0, 300.0])
def test_a_message_within_the_tolerance_is_believed(away: float) -> None:
    assert verify(SECRET, vector(), BODY, AT + away) == MESSAGE


@pytest.mark.parametrize("away", [-300.5, 300.5])
def test_an_old_or_early_message_is_refused(away: float) -> None:
    with pytest.raises(WebhookSignatureError, match="webhook-timestamp"):
        verify(SECRET, vector(), BODY, AT + away)
    assert verify(SECRET, vector(), BODY, AT + away, tolerance=301) == MESSAGE


def test_while_secrets_change_over_either_is_good() -> None:
    other = new_secret()
    assert verify([other, SECRET], vector(), BODY, AT) == MESSAGE
    with pytest.raises(WebhookSignatureError):
        verify([other, new_secret()], vector(), BODY, AT)
    with pytest.raises(WebhookSignatureError):
        verify([], vector(), BODY, AT)


@given(keys, ids, times, st.binary(max_size=200))
def test_what_is_signed_verifies(key: bytes, message_id: str, at: int, body: bytes) -> None:
    secret = secret_of(key)
    assert verify(secret, headers(secret, message_id, at, body), body, at) == message_id


@given(keys, ids, times, st.binary(max_size=50), st.data())
def test_nothing_that_was_changed_verifies(
    key: bytes, message_id: str, at: int, body: bytes, data: st.DataObject
) -> None:
    secret = secret_of(key)
    signed = headers(secret, message_id, at, body)
    other_key = data.draw(keys.filter(lambda other: other != key))
    other_id = data.draw(ids.filter(lambda other: other != message_id))
    other_body = data.draw(st.binary(max_size=50).filter(lambda other: other != body))
    changed = [
        (secret_of(other_key), signed, body),
        (secret, signed | {"webhook-id": other_id}, body),
        (secret, signed | {"webhook-timestamp": str(at + 1)}, body),
        (secret, signed, other_body),
    ]
    for by, given_headers, given_body in changed:
        with pytest.raises(WebhookSignatureError):
            verify(by, given_headers, given_body, at)


@given(st.dictionaries(st.sampled_from(sorted(vector())), st.text()), st.binary(max_size=20))
def test_whatever_a_stranger_sends_meets_the_one_error(given: dict[str, str], body: bytes) -> None:
    with pytest.raises(WebhookSignatureError):
        verify(SECRET, given, body, AT)


def test_new_secrets_are_long_and_differ() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    for secret in made:
        assert secret.startswith("whsec_")
        assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32


@pytest.mark.parametrize(
    "secret",
    ["", "whsec_", "whsec_!!!!", secret_of(b"x" * 23), secret_of(b"x" * 65), "whsec_é", "whsec_A"],
)
def test_what_can_be_no_secret_is_said_without_saying_it(secret: str) -> None:
    with pytest.raises(InvalidRequestError, match="24 to 64 bytes") as caught:
        sign(secret, MESSAGE, AT, BODY)
    key = secret.removeprefix("whsec_")
    assert not key or key not in str(caught.value)
