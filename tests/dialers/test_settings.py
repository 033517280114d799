"""A dialer's settings: what becomes of them, and what is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitel.dialer_config import sip_trunk_config
from bitel.dialers.numbering import NumberRule
from bitel.dialers.trunk import Trunk
from bitel.errors import SettingsError
from bitel.settings import load
from bitel.transports.tls import TlsFiles


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
        media_timeout = 12.5
        receive = true
        trunk_timeout = 4
        tls_ca = "ca.pem"
        tls_certificate = "our.pem"
        tls_key = "our.key"
        realm = "carrier"
    """
    config = sip_trunk_config(load(write(tmp_path, lines)).dialers[0])
    assert config.trunks == (Trunk("c.test"),)
    assert (config.register, config.privacy, config.identity) == (True, True, "ppi")
    assert list(config.caller_pool) == ["021", "022"]
    assert config.caller_ids == {"+49": "030"}
    assert config.number_rules == [NumberRule("+98", 3, "0")]
    assert config.ping_interval == 0
    assert config.trunk_timeout == 4
    assert (config.media_timeout, config.receive) == (12.5, True)
    assert config.tls == TlsFiles(Path("ca.pem"), Path("our.pem"), Path("our.key"))
    assert config.credentials is not None
    assert config.credentials.realm == "carrier"
    assert "s3cret" not in repr(config)


def test_by_default(tmp_path: Path) -> None:
    config = sip_trunk_config(load(write(tmp_path, 'caller_id = "021"')).dialers[0])
    assert list(config.caller_pool) == ["021"]
    assert (config.register, config.identity, config.ping_interval) == (False, "from", 30)
    assert (config.trunk_timeout, config.tls) == (32, TlsFiles())
    assert (config.media_timeout, config.receive) == (0, True)


@pytest.mark.parametrize(
    ("lines", "trunk", "says"),
    [
        ("", "sip:c.test;transport=sctp", "use transport=udp, tcp or tls"),
        ("", "sips:c.test;transport=udp", "sips: is never spoken over UDP"),
        ("", "sip:c.test:99999", "is not a trunk's address"),
        ("", "sip:::1", "is not a trunk's address"),
        ("", "sip:[::1]", "bind is IPv4, the trunk sip:[::1] is not; bind [::]:5070, say"),
        ('bind = "[::]:5070"', "sip:192.0.2.1", "bind is IPv6, the trunk sip:192.0.2.1 is not"),
        ('tls_key = "key.pem"', "sip:c.test", "tls_certificate and tls_key go together"),
        ("trunk_timeout = 0", "sip:c.test", "trunk_timeout"),
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
        ("media_timeout = 3", "sip:c.test", "media_timeout 3 is too short"),
        ("media_timeout = 601", "sip:c.test", "media_timeout"),
        ("media_timeout = 30\nreceive = false", "sip:c.test", "media_timeout needs receive"),
    ],
)
def test_refused(tmp_path: Path, lines: str, trunk: str, says: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(write(tmp_path, lines, trunk))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("sip:c.test", "0.0.0.0:5070"),
        ("sip:c.test:5080;transport=tcp", "0.0.0.0:5070"),
        ("sip:192.0.2.1;Transport=TLS", "0.0.0.0:5070"),
        ("sips:c.test:5061;lr", "[::]:5070"),
        ("sip:[2001:db8::1]:5060", "[::]:5070"),
        ("sips:[2001:db8::1]", "[::1]:0"),
    ],
)
def test_what_the_settings_take_is_a_trunk(tmp_path: Path, text: str, bind: str) -> None:
    config = sip_trunk_config(load(write(tmp_path, f'bind = "{bind}"', text)).dialers[0])
    assert config.trunks == (Trunk.parse(text),)
