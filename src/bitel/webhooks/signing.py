"""Signatures on webhooks, as https://www.standardwebhooks.com specifies them.

A secret is `whsec_` and the base64 of 24 to 64 random bytes. A message has an id, the time at which
it was sent, and a body; what is signed is `{id}.{timestamp}.{body}`, by HMAC-SHA256. The receiver
gets the three headers below. This module stands alone, so that receivers can use `verify` too.
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
NEW_KEY_BYTES: Final = 32
SHORTEST_KEY: Final = 24
LONGEST_KEY: Final = 64
"""Bytes, prefix and base64 taken off."""

TOLERANCE: Final = 300.0
"""Seconds by which the sender's clock and the receiver's may differ."""

_VERSION: Final = "v1,"
_MOST_SIGNATURES: Final = 32


class WebhookSignatureError(UnauthorizedError):
    """A message that its secret has not signed, or not lately: it must not be believed."""


def new_secret() -> str:
    """A secret that nobody can guess."""
    return PREFIX + base64.b64encode(secrets.token_bytes(NEW_KEY_BYTES)).decode()


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The signature `v1,<base64>` of a message sent at `timestamp` (Unix seconds).

    Raises InvalidRequestError for what can't be a secret.
    """
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    digest = hmac.digest(_key(secret), signed, "sha256")
    return _VERSION + base64.b64encode(digest).decode()


def headers(secret: str, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers that say who sent a message, and when."""
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
    """The id of a message, once it is sure that a holder of `secret` sent it, and lately.

    `headers` are the request's, their names in any case; `body` is the body as it came, not
    decoded and written anew. One signature that fits is enough, whatever stands beside it; and
    while secrets are changed over, any of several may be the one. Answer a message with an id seen
    before as the first time and do nothing more: it is the same one, sent again.

    Raises WebhookSignatureError for a message that must not be believed, InvalidRequestError for
    what can't be a secret.
    """
    given = {name.lower(): value for name, value in headers.items()}
    message_id = _header(given, ID_HEADER)
    timestamp = _timestamp(_header(given, TIMESTAMP_HEADER))
    offered = _header(given, SIGNATURE_HEADER).split()[:_MOST_SIGNATURES]
    fits = False
    for one in [secret] if isinstance(secret, str) else secret:
        expected = sign(one, message_id, timestamp, body).encode()
        for signature in offered:
            # No early end: how long this takes must not tell how much of a signature was right.
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
    # Receivers of other makes leave the prefix out.
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not SHORTEST_KEY <= len(key) <= LONGEST_KEY:
        raise InvalidRequestError(
            f"a webhook secret is {PREFIX} and the base64 of {SHORTEST_KEY} to {LONGEST_KEY} bytes"
        )
    return key
