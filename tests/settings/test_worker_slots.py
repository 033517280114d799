"""The settings of each of several workers of a machine."""

from __future__ import annotations

import pytest

from bitel.errors import SettingsError
from bitel.settings import (
    DialerSettings,
    MetricsSettings,
    Settings,
    WorkerSlot,
    settings_of,
    split_address,
)


def settings(**dialer: str) -> Settings:
    main = DialerSettings(id="main", trunks=["sip:127.0.0.1:9"], **dialer)  # type: ignore[arg-type]
    return Settings(dialers=[main], metrics=MetricsSettings(bind="127.0.0.1:9100"))


def test_one_worker_has_the_settings_as_they_are() -> None:
    given = settings()
    assert settings_of(WorkerSlot(), given) is given


@pytest.mark.parametrize("count", [2, 3, 7, 64])
def test_workers_share_no_port(count: int) -> None:
    given = settings(public_address="198.51.100.7:5070")
    each = [settings_of(WorkerSlot(n, count), given) for n in range(1, count + 1)]
    sip = [split_address(one.dialers[0].bind)[1] for one in each]
    assert sip == list(range(5070, 5070 + 2 * count, 2)), "the port after it may be that of TLS"
    public = [one.dialers[0].public_address for one in each]
    assert public == [f"198.51.100.7:{port}" for port in sip]
    assert [split_address(one.metrics.bind)[1] for one in each] == [
        9100 + n for n in range(count)
    ]  # fmt: skip
    rtp = [port for one in each for port in one.dialers[0].rtp_range]
    assert len(rtp) == len(set(rtp))
    assert set(rtp) <= set(given.dialers[0].rtp_range)
    assert all(one.dialers[0].rtp_range.start % 2 == 0 for one in each)
    assert len({len(one.dialers[0].rtp_range) for one in each}) == 1


@pytest.mark.parametrize(
    ("dialer", "said"),
    [
        ({"rtp_ports": "10000-10009"}, r"dialers\[0\].rtp_ports 10000-10009 is too narrow for 4"),
        ({"bind": "0.0.0.0:65534"}, r"dialers\[0\].bind 0.0.0.0:65534 leaves no ports above it"),
    ],
)
def test_too_few_ports_are_named(dialer: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        settings_of(WorkerSlot(4, 4), settings(**dialer))


def test_the_port_that_the_kernel_chooses_is_left_to_it() -> None:
    assert (
        settings_of(WorkerSlot(2, 2), settings(bind="127.0.0.1:0")).dialers[0].bind.endswith(":0")
    )


@pytest.mark.parametrize("text", ["", "2", "3/2", "0/2", "1/x", "-1/2"])
def test_what_is_no_slot_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="NUMBER/OF"):
        WorkerSlot.parse(text)
