"""Asterisk as an independent callee: what it does with a call depends on the number dialled.

`BEHAVIOURS` is its dialplan by name, `ENDPOINTS` are the ways in which it takes calls: it chooses
the endpoint by the user of From, which is the dialer's `caller_id`. One process serves all tests
of a run, since each call has a number of its own, which its recordings and events are named after.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bitel.demo.play import read_wav
from bitel.g711 import Pcm
from bitel.recordings import wav
from tests.peers.asterisk import HOST, Asterisk, asterisk
from tests.support.certificates import Authority
from tests.support.switchboard import sample
from tests.support.waiting import until

USERNAME = "acme"
PASSWORD = "s3cret"
SERVICE = "02191000000"
"""The endpoint of a whole service: the caller id of its dialer."""

_RECORD = "Record({inside}/${{EXTEN}}.wav,0,0,aqkx)"
"""Writes what is received until the caller hangs up; after what was recorded before, if anything.
In a configuration file braces are doubled."""

BEHAVIOURS: dict[str, tuple[str, ...]] = {
    "answer": ("Answer()", _RECORD),
    "ring, answer": ("Ringing()", "Wait(0.3)", "Answer()", _RECORD),
    "early media, answer": (
        "Progress()",
        "Playback({inside}/greeting,noanswer)",
        "Answer()",
        _RECORD,
    ),
    "early media, busy": (
        "Progress()",
        "Playback({inside}/greeting,noanswer)",
        "Hangup(17)",
    ),
    "busy": ("Busy(5)",),
    "congestion": ("Congestion(5)",),
    "ring": ("Ringing()", "Wait(60)"),
    "hang up": ("Answer()", "Wait(0.5)", "Hangup(16)"),
    "greet, hang up": ("Answer()", "Playback({inside}/greeting)", "Hangup(16)"),
    "unallocated number": ("Hangup(1)",),
    "call rejected": ("Hangup(21)",),
    "no circuit": ("Hangup(34)",),
    "ring, no answer": ("Ringing()", "Wait(0.3)", "Hangup(19)"),
    "ring, network out of order": ("Ringing()", "Wait(0.3)", "Hangup(38)"),
    "key digits": ("Answer()", "SendDTMF(159#,150,100)", _RECORD),
    "hold": (
        "Answer()",
        "Record({inside}/${{EXTEN}}.wav,0,1,aqkx)",
        "BridgeWait(${{EXTEN}},participant,e(h)S(1))",
        "UserEvent(resumed,Exten: ${{EXTEN}})",
        _RECORD,
    ),
    "redirect": (
        'GotoIf($["${{GLOBAL(REDIRECTED)}}" = "${{EXTEN}}"]?5)',
        "Set(GLOBAL(REDIRECTED)=${{EXTEN}})",
        "Transfer(PJSIP/sip:${{EXTEN}}@127.0.0.1:{sip}\\;transport=udp)",
        "Hangup()",
        "Answer()",
        _RECORD,
    ),
    "redirect to another number": ("Transfer(PJSIP/sip:{redirected}@127.0.0.1:{sip})",),
    "redirect elsewhere": ("Transfer(PJSIP/sip:0912@127.0.0.1:9)",),
    "refer": (
        "Answer()",
        "Transfer(PJSIP/sip:0912@127.0.0.1:{sip})",
        "UserEvent(transfer,Exten: ${{EXTEN}},Status: ${{TRANSFERSTATUS}})",
        _RECORD,
    ),
    "fax": ("Answer()", "ReceiveFAX({inside}/${{EXTEN}}.tiff,fz)"),
    "connected line": (
        "Answer()",
        "Set(CONNECTEDLINE(num,i)=1000)",
        "Set(CONNECTEDLINE(pres)=allowed)",
        _RECORD,
    ),
    "switchboard": ("Dial(PJSIP/phone/sip:${{EXTEN}}@127.0.0.1:${{GLOBAL(PHONE)}},30)",),
}
"""What is done with a call, in Asterisk's applications. `Hangup(n)` is the Q.850 cause n."""

ENDPOINTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "reliable": ("100rel=required",),
    "timers": ("timers=required", "timers_min_se=90", "timers_sess_expires=90"),
    "info": ("dtmf_mode=info",),
    "inband": ("dtmf_mode=inband",),
    "nat": ("force_rport=yes", "rewrite_contact=yes"),
    "ulaw": ("allow=!all,ulaw",),
    "gsm": ("allow=!all,gsm",),
    "holding": ("moh_passthrough=yes",),
    "fax": ("t38_udptl=yes", "t38_udptl_ec=redundancy", "fax_detect=no"),
    "update": ("send_pai=yes", "trust_id_outbound=yes", "connected_line_method=update"),
    "direct": ("direct_media=yes", "rtp_symmetric=no", "disable_direct_media_on_nat=no"),
    "md5": ("auth=md5",),
    "sha256": ("auth=sha256",),
    USERNAME: ("auth=acme", "aors=acme"),
    SERVICE: ("auth=sha256",),
}
"""Endpoints by the user of From, each with its options."""

_MODULES = (
    *("res_timing_timerfd", "res_sorcery_config", "res_sorcery_memory", "res_sorcery_astdb"),
    *("res_geolocation", "res_statsd", "res_pjproject", "res_pjsip", "res_pjsip_pubsub"),
    *("res_pjsip_session", "res_pjsip_sdp_rtp", "res_pjsip_caller_id", "res_pjsip_dtmf_info"),
    *("res_pjsip_rfc3326", "res_pjsip_registrar", "res_pjsip_authenticator_digest"),
    *("res_pjsip_endpoint_identifier_user", "res_pjsip_logger", "res_pjsip_nat", "res_pjsip_refer"),
    *("res_pjsip_t38", "res_fax", "res_fax_spandsp", "res_rtp_asterisk", "chan_pjsip"),
    *("codec_alaw", "codec_ulaw", "codec_a_mu", "format_wav", "format_pcm", "pbx_config"),
    *("app_playback", "app_record", "app_senddtmf", "app_transfer", "app_userevent", "app_dial"),
    *("app_bridgewait", "bridge_holding", "bridge_simple", "bridge_native_rtp"),
    *("func_callerid", "func_channel", "func_global", "func_pjsip_aor"),
)

_PJSIP = """\
[global]
type = global
user_agent = Asterisk
endpoint_identifier_order = username
debug = yes
[udp]
type = transport
protocol = udp
bind = 127.0.0.1:{sip}
[tcp]
type = transport
protocol = tcp
bind = 127.0.0.1:{sip}
[tls]
type = transport
protocol = tls
bind = 127.0.0.1:{tls}
cert_file = {inside}/certificate.pem
priv_key_file = {inside}/certificate.key
method = tlsv1_2
[acme]
type = aor
max_contacts = 1
remove_existing = yes
minimum_expiration = 1
default_expiration = 3600
[md5]
type = auth
auth_type = digest
username = acme
password = s3cret
realm = carrier.test
supported_algorithms_uas = MD5
[sha256]
type = auth
auth_type = digest
username = acme
password = s3cret
realm = carrier.test
supported_algorithms_uas = SHA-256
[acme]
type = auth
auth_type = digest
username = acme
password = s3cret
realm = carrier.test
[phone]
type = endpoint
disallow = all
allow = alaw
context = default
media_address = 127.0.0.1
direct_media = yes
disable_direct_media_on_nat = no
moh_passthrough = yes
"""

_ENDPOINT = """\
[{name}]
type = endpoint
context = default
allow = !all,alaw,ulaw
direct_media = no
rtp_symmetric = yes
dtmf_mode = rfc4733
media_address = 127.0.0.1
bind_rtp_to_media_address = yes
{options}
"""

_REDIRECTED = "+989120099999"
"""A number that is answered."""


@dataclass
class AsteriskPhone:
    """A running Asterisk that takes calls on `port` by UDP and TCP, and on `tls_port` by TLS."""

    asterisk: Asterisk
    tls_port: int
    authority: Authority
    _serials: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def port(self) -> int:
        """For UDP and TCP."""
        return self.asterisk.sip_port

    def trunk(self, transport: str = "udp") -> str:
        """Its URI as a trunk of a dialer."""
        port = self.tls_port if transport == "tls" else self.port
        return f"sip:{HOST}:{port};transport={transport}"

    def number(self, behaviour: str) -> str:
        """A new number whose calls get this behaviour."""
        return f"0912{list(BEHAVIOURS).index(behaviour):02}{next(self._serials):05}"

    def events(self, event: str, number: str, **fields: str) -> list[dict[str, str]]:
        """The events of that kind so far, of the call to `number`."""
        return self.asterisk.matching(event, Exten=_dialled(number), **fields)

    async def ended(self, number: str) -> dict[str, str]:
        """Wait until Asterisk has ended the call to `number`; returns its Hangup event."""
        await until(lambda: self.events("Hangup", number))
        return self.events("Hangup", number)[0]

    async def received(self, number: str) -> Pcm:
        """What was recorded of the call to `number`, once it is over."""
        await self.ended(number)
        return read_wav(self.asterisk.folder / f"{_dialled(number)}.wav")

    def log(self) -> list[str]:
        """All SIP messages so far."""
        log = (self.asterisk.folder / "log").read_text(errors="replace")
        return [part.partition("--->\n")[2] for part in log.split("<--- ")[1:]]

    def messages(self, number: str) -> list[str]:
        """The SIP messages of the call to `number` so far, in order, both ways."""
        messages = self.log()
        (call_id, *_) = (
            _call_id(message)
            for message in messages
            if message.startswith(f"INVITE sip:{_dialled(number)}@")
        )
        return [message for message in messages if _call_id(message) == call_id]

    def contact(self) -> str:
        """The Contact that the user has registered; empty if there is none."""
        return self.asterisk.ask("Getvar", Variable=f"PJSIP_AOR({USERNAME},contact)")["Value"]


def _call_id(message: str) -> str:
    found = re.search(r"^Call-ID: *(\S+)", message, re.MULTILINE)
    return found[1] if found else ""


def _dialled(number: str) -> str:
    return f"+98{number.removeprefix('0')}"


@contextmanager
def asterisk_phone(folder: Path, tls_port: int) -> Iterator[AsteriskPhone]:
    """Run Asterisk until the block ends, with its certificates in `folder`."""
    authority = Authority.make(folder)
    certificate = authority.sign(f"IP:{HOST}")
    files = {
        "logger.conf": "[general]\n[logfiles]\n{inside}/log => verbose,notice,warning,error\n",
        "pjsip.conf": _PJSIP + "".join(map(_endpoint, ENDPOINTS)),
        "extensions.conf": "[default]\n" + "".join(map(_extension, BEHAVIOURS)),
        "certificate.pem": certificate.certificate.read_text(),
        "certificate.key": certificate.key.read_text(),
    }
    values = {"tls": tls_port, "redirected": _REDIRECTED}
    with asterisk(_MODULES, files, values) as running:
        wav.write(running.folder / "greeting.wav", sample(0.5))
        running.ask("Events", EventMask="call,user")
        yield AsteriskPhone(running, tls_port, authority)


def _endpoint(name: str) -> str:
    return _ENDPOINT.format(name=name, options="\n".join(ENDPOINTS[name]))


def _extension(behaviour: str) -> str:
    """The dialplan of all numbers with that behaviour."""
    index = list(BEHAVIOURS).index(behaviour)
    first, *rest = BEHAVIOURS[behaviour]
    lines = [f"exten => _+98912{index:02}XXXXX,1,{first}"]
    return "\n".join([*lines, *(f" same => n,{step}" for step in rest), " same => n,Hangup()\n"])
