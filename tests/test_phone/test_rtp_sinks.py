"""Where the phone listens for the audio of its calls."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bitel.test_phone.rtp_sinks import CountingEar, Ear, RecordingEar


def unheard() -> None:
    raise AssertionError("nobody speaks here")


@pytest.mark.parametrize(
    "open_ear", [CountingEar, lambda host, first: RecordingEar(host, first, minutes=1.0)]
)
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_no_ear_is_where_the_rtcp_of_another_goes(
    host: str, open_ear: Callable[[str, Callable[[], None]], Ear]
) -> None:
    ears = [open_ear(host, unheard) for _ in range(50)]
    try:
        ports = {ear.port for ear in ears}
        assert len(ports) == 50
        assert not ports & {port + 1 for port in ports}
        assert all(port % 2 == 0 for port in ports)
    finally:
        for ear in ears:
            ear.close()
