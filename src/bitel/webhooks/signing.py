"""Signatures of webhooks, as https://www.standardwebhooks.com specifies them.

A secret is `whsec_` and the base64 of 24 to 64 random bytes. The signature is the HMAC-SHA256 of
`{id}.{timestamp}.{body}`. Receivers can use `verify`: this module imports nothing of the service.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Final

from bitel.errors import InvalidRequestError, UnauthorizedError

ID_HEADER: Final = "webhook-id"
TIMESTAMP_HEADER: Final = "webhook-timestamp"
SIGNATURE_HEADER: Final = "webhook-signature"

PREFIX: Final = "whsec_"
SHORTEST_KEY: Final = 24
LONGEST_KEY: Final = 64
"""Bytes of a secret, after base64."""

TOLERANCE: Final = 300.0
"""Seconds by which the sender's clock and the receiver's may differ."""

_VERSION: Final = "v1,"
_MOST_SIGNATURES: Final = 32


class WebhookSignatureError(UnauthorizedError):
    """A message that was not signed with the secret, or is too old."""


def new_secret() -> str:
    """A random secret."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The signature `v1,<base64>` of a message sent at `timestamp` (Unix seconds).

    Raises InvalidRequestError for a malformed secret.
    """
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    digest = hmac.digest(_key(secret), signed, "sha256")
    return _VERSION + base64.b64encode(digest).decode()


def headers(secret: str, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of a signed message."""
    return {
        ID_HEADER: message_id,
        TIMESTAMP_HEADER: str(timestamp),
        SIGNATURE_HEADER: sign(secret, message_id, timestamp, body),
    }


def verify(
    secret: str | Iterable[str],
    headers: Mapping[str, str],
    body: bytes,
    now: float,
    tolerance: float = TOLERANCE,
) -> str:
    """Check the signature and time of a message, and return its id.

    A message with an id that was seen before is a repetition; ignore it.

    Args:
        secret: the secret, or several during a rotation.
        headers: the request's headers, names in any case; one valid signature is enough.
        body: the body exactly as received.
        now: Unix seconds.

    Raises WebhookSignatureError for a message that can't be trusted, InvalidRequestError for a
    malformed secret.
    """
    given = {name.lower(): value for name, value in headers.items()}
    message_id = _header(given, ID_HEADER)
    timestamp = _timestamp(_header(given, TIMESTAMP_HEADER))
    offered = _header(given, SIGNATURE_HEADER).split()[:_MOST_SIGNATURES]
    fits = False
    for one in [secret] if isinstance(secret, str) else secret:
        expected = sign(one, message_id, timestamp, body).encode()
        for signature in offered:
            # No early exit: the duration must not depend on the signature.
            fits |= hmac.compare_digest(expected, signature.encode("utf-8", "surrogateescape"))
    if not fits:
        raise WebhookSignatureError(f"{SIGNATURE_HEADER} holds no signature by this secret")
    if abs(now - timestamp) > tolerance:
        raise WebhookSignatureError(
            f"{TIMESTAMP_HEADER} is more than {tolerance:g} s away from now; "
            "an old message sent once more, or a clock that is wrong"
        )
    return message_id


def _header(given: Mapping[str, str], name: str) -> str:
    value = given.get(name, "")
    if not value:
        raise WebhookSignatureError(f"the header {name} is missing")
    return value


def _timestamp(text: str) -> int:
    if not re.fullmatch("[0-9]{1,12}", text, re.ASCII):
        raise WebhookSignatureError(f"{TIMESTAMP_HEADER} must be whole Unix seconds")
    return int(text)


def _key(secret: str) -> bytes:
    # Some libraries omit the prefix.
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not SHORTEST_KEY <= len(key) <= LONGEST_KEY:
        raise InvalidRequestError(
            f"a webhook secret is {PREFIX} and the base64 of {SHORTEST_KEY} to {LONGEST_KEY} bytes"
        )
    return key
