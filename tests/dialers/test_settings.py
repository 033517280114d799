"""A dialer's settings: what becomes of them, and what is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitel.dialer_config import sip_trunk_config
from bitel.dialers.numbering import NumberRule
from bitel.dialers.trunk import Trunk
from bitel.errors import SettingsError
from bitel.settings import load


def write(folder: Path, lines: str, trunk: str = "sip:c.test") -> Path:
    path = folder / "bitel.toml"
    path.write_text(f'[[dialers]]\nid = "main"\ntrunks = ["{trunk}"]\n{lines}\n')
    return path


def test_everything_reaches_the_dialer(tmp_path: Path) -> None:
    lines = """
        username = "acme"
        password = "s3cret"
        register = true
        caller_id = ["021", "022"]
        caller_ids = { "+49" = "030" }
        identity = "ppi"
        privacy = true
        number_rules = [{ prefix = "+98", strip = 3, add = "0" }]
        ping_interval = 0
    """
    config = sip_trunk_config(load(write(tmp_path, lines)).dialers[0])
    assert config.trunks == (Trunk("c.test"),)
    assert (config.register, config.privacy, config.identity) == (True, True, "ppi")
    assert list(config.caller_pool) == ["021", "022"]
    assert config.caller_ids == {"+49": "030"}
    assert config.number_rules == [NumberRule("+98", 3, "0")]
    assert config.ping_interval == 0
    assert config.credentials is not None
    assert "s3cret" not in repr(config)


def test_by_default(tmp_path: Path) -> None:
    config = sip_trunk_config(load(write(tmp_path, 'caller_id = "021"')).dialers[0])
    assert list(config.caller_pool) == ["021"]
    assert (config.register, config.identity, config.ping_interval) == (False, "from", 30)


@pytest.mark.parametrize(
    ("lines", "trunk", "says"),
    [
        ("", "sip:c.test;transport=tcp", "only UDP is spoken so far"),
        ("", "sip:c.test;lr;transport=TLS", "only UDP is spoken so far"),
        ("", "sips:c.test", "only UDP is spoken so far"),
        ('caller_id = "a b"', "sip:c.test", "caller_id"),
        ("caller_id = []", "sip:c.test", "caller_id"),
        ('caller_ids = { "98" = "1" }', "sip:c.test", "caller_ids"),
        ('identity = "none"', "sip:c.test", "identity"),
        ('number_rules = [{ prefix = "+98", strip = 4 }]', "sip:c.test", "strip 4 takes away more"),
        ('number_rules = [{ prefix = "+98", add = "0\\r\\nX: y" }]', "sip:c.test", "add"),
        (
            'number_rules = [{ prefix = "+98" }, { prefix = "+98" }]',
            "sip:c.test",
            "two have the same prefix '+98'",
        ),
        ("ping_interval = -1", "sip:c.test", "ping_interval"),
    ],
)
def test_refused(tmp_path: Path, lines: str, trunk: str, says: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(write(tmp_path, lines, trunk))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
