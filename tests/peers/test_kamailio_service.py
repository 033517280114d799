"""The whole service behind Kamailio over TLS: registered, asked for digest, gone at the end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bitel.demo.stage import Stage
from tests.peers.kamailio_carrier import PASSWORD, USERNAME, kamailio
from tests.peers.sipp import sipp
from tests.support.certificates import Authority
from tests.support.service_calls import call_all, folder, numbers, reports

CALLS = 10


@pytest.mark.interop("registers the whole service over TLS, and demands SHA-256", rfc="RFC 8760 §2")
async def test_registered_over_tls(tmp_path: Path) -> None:
    authority = Authority.make(folder(tmp_path, "certificates"))
    async with (
        sipp("rfc3261_12.1.1_record_routed", CALLS, folder(tmp_path, "sipp")) as callee,
        kamailio(
            folder(tmp_path, "kamailio"),
            callee.port,
            ["WITH_STREAMS", "WITH_TLS", "WITH_REGISTRATION", "WITH_SHA256"],
            certificate=authority.sign("IP:127.0.0.1"),
        ) as proxy,
    ):
        dialer = {
            "calls_per_second": 100,
            "register": True,
            "username": USERNAME,
            "password": PASSWORD,
            "tls_ca": str(authority.files.certificate),
        }
        trunk = f"sips:127.0.0.1:{proxy.tls_port}"
        with Stage(tmp_path / "stage", dialer=dialer, trunk=trunk) as stage:
            calls = await asyncio.to_thread(call_all, stage, numbers(CALLS), 0.2)
            log = (stage.folder / "serve.log").read_text()
        report = await callee.report()
        assert (report.exit_code, report.successful) == (0, CALLS), report
        assert reports(calls) == [("NORMAL", 1)] * CALLS
        for method in ("INVITE", "ACK", "BYE"):
            assert proxy.said.count(f"relayed {method} over tls") >= CALLS, proxy.said
        assert proxy.said[0] == "register 1 over tls"
        assert proxy.said[-1] == "register 3 over tls"
        assert PASSWORD not in log
