"""Where the phone listens for the audio of its calls."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bitel.test_phone.rtp_sinks import CountingSink, RecordingSink, RtpSink


def unheard() -> None:
    raise AssertionError("nobody speaks here")


@pytest.mark.parametrize(
    "open_sink", [CountingSink, lambda host, first: RecordingSink(host, first, minutes=1.0)]
)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_no_sink_is_where_the_rtcp_of_another_goes(
    host: str, open_sink: Callable[[str, Callable[[], None]], RtpSink]
) -> None:
    sinks = [open_sink(host, unheard) for _ in range(50)]
    try:
        ports = {sink.port for sink in sinks}
        assert len(ports) == 50
        assert not ports & {port + 1 for port in ports}
        assert all(port % 2 == 0 for port in ports)
    finally:
        for sink in sinks:
            sink.close()
