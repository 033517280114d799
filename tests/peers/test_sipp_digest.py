"""Digest against SIPp, which demands it in each of the ways that carriers do.

SIPp itself can check MD5 alone, so it logs what it was answered, and the sums are done again here,
from RFC 7616 §3.4 and not from the code under test.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from bitel.domain.attempts import Outcome
from bitel.sip import Credentials
from bitel.store.database import Database
from tests.peers.sipp import sipp
from tests.peers.test_sipp_calls import Case, dial

USERNAME = "acme"
PASSWORD = "s3cret"
WITH_CREDENTIALS = {"credentials": Credentials(USERNAME, PASSWORD)}


def response_to(method: str, fields: dict[str, str]) -> str:
    """What `response` must be, given the other fields of a Digest answer (RFC 7616 §3.4.1)."""
    algorithm = fields.get("algorithm", "MD5").upper()
    named = "sha256" if algorithm.startswith("SHA-256") else "md5"

    def h(text: str) -> str:
        return hashlib.new(named, text.encode()).hexdigest()

    nonce = fields["nonce"]
    a1 = h(f"{USERNAME}:carrier.test:{PASSWORD}")
    if algorithm.endswith("-SESS"):
        a1 = h(f"{a1}:{nonce}:{fields['cnonce']}")
    a2 = h(f"{method}:{fields['uri']}")
    if "qop" in fields:
        return h(f"{a1}:{nonce}:{fields['nc']}:{fields['cnonce']}:{fields['qop']}:{a2}")
    return h(f"{a1}:{nonce}:{a2}")


@pytest.mark.parametrize(
    "scenario",
    [
        "rfc3261_22.4_md5_sess",
        "rfc3261_22.4_without_qop",
        "rfc7616_3.3_stale_nonce",
        "rfc8760_2.4_unknown_algorithm",
        "rfc8760_2.4_sha256",
    ],
)
async def test_a_challenge_is_answered(
    scenario: str, tmp_path: Path, sqlite_database: Database
) -> None:
    async with sipp(scenario, 1, tmp_path) as callee:
        await dial(Case(scenario, config=WITH_CREDENTIALS), callee, tmp_path, sqlite_database)
    # The BYE brings its answer unasked.
    for method, line in zip(("INVITE", "BYE"), callee.log, strict=True):
        fields: dict[str, str] = dict(re.findall(r'(\w+)="?([^",]*)"?', line))
        assert line.startswith(method)
        assert fields["username"] == USERNAME
        assert fields["realm"] == "carrier.test"
        assert fields["response"] == response_to(method, fields), line
        assert PASSWORD not in line


@pytest.mark.parametrize("config", [WITH_CREDENTIALS, {}], ids=["credentials", "none"])
async def test_what_cannot_be_answered_is_a_refusal(
    config: dict[str, Credentials], tmp_path: Path, sqlite_database: Database
) -> None:
    """And is not tried again: one INVITE, one ACK is all that SIPp expects."""
    scenario = "rfc8760_2.4_no_known_algorithm"
    async with sipp(scenario, 1, tmp_path) as callee:
        case = Case(scenario, Outcome.REFUSED, 401, ended_by="far", config=config)
        await dial(case, callee, tmp_path, sqlite_database)


async def test_a_callee_is_given_nothing(tmp_path: Path, sqlite_database: Database) -> None:
    scenario = "rfc3261_22.1_callee_asks_too"
    async with sipp(scenario, 1, tmp_path) as callee:
        case = Case(scenario, Outcome.REFUSED, 401, ended_by="far", config=WITH_CREDENTIALS)
        await dial(case, callee, tmp_path, sqlite_database)
