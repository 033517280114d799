"""Every setting: where it comes from, its default, and one clear sentence when it is wrong.

Settings come from a TOML file and from the environment, which wins: `BITEL_DATABASE_URL`, or
`BITEL_HTTP__PORT` for a key of a section. Secrets are `SecretStr`: they print as asterisks.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import phonenumbers
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from bitel.calls.tariff import Rate, Tariff
from bitel.errors import SettingsError

DEFAULT_FILE = Path("bitel.toml")
CONFIG_VARIABLE = "BITEL_CONFIG"


MOST_RATE = Decimal(10) ** 9
"""The highest price of a minute, of a connection and of a call: so no call costs more than a
balance can hold."""


def split_address(text: str) -> tuple[str, int]:
    """`HOST:PORT` (IPv6 hosts in brackets) as host and port. Raises ValueError in one sentence."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not of the form HOST:PORT, as in 0.0.0.0:5070")
    return host, int(port)


def _address(text: str) -> str:
    split_address(text)
    return text


def _optional_address(text: str) -> str:
    return _address(text) if text else text


def _metrics_token(token: SecretStr) -> SecretStr:
    text = token.get_secret_value()
    if text and not text.strip():
        raise ValueError("a token of white space can't be sent; leave it empty or name one")
    if any(ord(c) < 32 or ord(c) == 127 for c in text.strip()):
        raise ValueError("a token with a control character can't be sent in a header")
    return token


def _command(text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError:
        raise ValueError("a quotation mark is not closed") from None
    if text and not words:
        raise ValueError("it names no program; leave it empty or name one")
    return text


def _port_range(text: str) -> str:
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", text)
    if not match or not 1024 <= int(match[1]) < int(match[2]) <= 65535:
        raise ValueError(f"{text!r} is not a range of ports within 1024-65535, as in 10000-19999")
    return text


def _trunk(text: str) -> str:
    return _host_uri(text, "trunk")


def _outbound_proxy(text: str) -> str:
    return _host_uri(text, "proxy", frozenset({"lr"})) if text else text


def _host_uri(text: str, what: str, flags: frozenset[str] = frozenset()) -> str:
    """A SIP URI of a host alone; `flags` are the parameters that it may have besides `transport`.

    What would have no effect is refused, so that a misspelt parameter is noticed at the start.
    """
    if "@" in text:
        # Not repeated in the sentence: it may hold a password.
        raise ValueError(f"a {what} is a host, without a user or password before it")
    if "?" in text:
        raise ValueError(f"{text!r} can't be a {what}: headers after ? would have no effect")
    place, *parameters = text.split(";")
    _trunk_host(text, what)
    transport = None
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        name, value = name.lower(), value.lower()
        if name == "transport":
            if transport is not None:
                raise ValueError(f"{text!r} can't be a {what}: it names transport twice")
            if value not in {"udp", "tcp", "tls"}:
                raise ValueError(f"{text!r} can't be a {what}: use transport=udp, tcp or tls")
            transport = value
        elif name not in flags:
            raise ValueError(
                f"{text!r} can't be a {what}: its parameter {name!r} would have no effect; "
                "remove it, only transport is used"
            )
    if place.lower().startswith("sips:") and transport == "udp":
        raise ValueError(f"{text!r} can't be a {what}: sips: is never spoken over UDP")
    return text


def _trunk_host(text: str, what: str = "trunk") -> str:
    """The host of a trunk, without brackets. Raises ValueError where there is none, or no port."""
    scheme, _, rest = text.partition(":")
    match = re.fullmatch(
        r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.\-]+)(?::([0-9]{1,5}))?", rest.partition(";")[0]
    )
    usable = match is not None and 0 < int(match[2] or 5060) < 65536
    if match is None or not usable or scheme.lower() not in {"sip", "sips"}:
        raise ValueError(f"{text!r} is not a {what}'s address, as in sip:203.0.113.10:5060")
    host = match[1].strip("[]")
    if match[1].startswith("[") and not _is_ip(host, 6):
        raise ValueError(f"{text!r} is not a {what}'s address: {host!r} is no IPv6 address")
    return host


def _domain(text: str) -> str:
    """A host as a SIP URI may name it: a domain name or an IP address, without a port."""
    host = text.removeprefix("[").removesuffix("]")
    label = r"[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
    is_name = len(text) <= 253 and re.fullmatch(rf"{label}(?:\.{label})*", text) is not None
    # The last label of a name is never all digits: that would be read as an IPv4 address.
    is_name = is_name and not text.rpartition(".")[2].isdigit()
    if text and not is_name and not _is_ip(text, 4) and not _is_ip(host, 6):
        raise ValueError(f"{text!r} is neither a domain name nor an IP address, as in pbx.example")
    return host


WRITTEN_HEADERS = frozenset(
    (
        *("via", "from", "to", "call-id", "cseq", "contact", "route", "record-route"),
        *("max-forwards", "allow", "supported", "require", "proxy-require", "user-agent"),
        *("authorization", "proxy-authorization", "session-expires", "min-se", "expires"),
        # The compact forms of these, and of Content-Encoding, Content-Length and Content-Type.
        *("v", "f", "t", "i", "m", "k", "x", "e", "l", "c"),
    )
)
"""Names, in lower case, of the headers that every INVITE gets from the user agent itself."""
IDENTITY_HEADERS = {
    "pai": "p-asserted-identity",
    "ppi": "p-preferred-identity",
    "rpid": "remote-party-id",
}
"""The header that each value of `identity` writes, in lower case."""


def _extra_headers(headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
    seen: set[str] = set()
    for name, secret in headers.items():
        value, lower = secret.get_secret_value(), name.lower()
        if not re.fullmatch(r"[A-Za-z0-9\-.!%*_+`'~]{1,64}", name):
            raise ValueError(f"{name[:64]!r} is not the name of a header, as in X-Account")
        if lower in WRITTEN_HEADERS or lower.startswith("content-"):
            raise ValueError(f"{name} is a header that bitel writes itself; remove it")
        if lower in seen:
            raise ValueError(f"it names the header {name} twice")
        seen.add(lower)
        if not 1 <= len(value) <= 512 or not value.isprintable() or value != value.strip():
            # The value is not repeated in the sentence: it may be secret.
            raise ValueError(
                f"the value of {name} is not one line of 1 to 512 printable characters"
            )
    return headers


def _region(text: str) -> str:
    if text not in phonenumbers.SUPPORTED_REGIONS:
        raise ValueError(f"{text!r} is not an ISO 3166 country code, as in IR")
    return text


def _public_address(text: str) -> str:
    if text:
        split_public_address(text)
    return text


def split_public_address(text: str) -> tuple[str, int | None]:
    """`IP` or `IP:PORT` (IPv6 with a port in brackets) as IP and port; ValueError otherwise."""
    host, port = text, None
    if text.startswith("[") or text.count(":") == 1:
        host, port = split_address(text)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address; leave it empty without NAT") from None
    return host, port


def _is_ip(host: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(host).version == version
    except ValueError:
        return False


AddressText = Annotated[str, AfterValidator(_address)]
CallerId = Annotated[str, Field(pattern=r"^\+?[0-9A-Za-z_.\-]{0,32}$")]
NumberPrefix = Annotated[str, Field(pattern=r"^\+[0-9]{0,15}$")]
DialerId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$")]


class Section(BaseModel):
    """A part of the settings; a key it does not know is refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_by_name=True, use_attribute_docstrings=True
    )


class HttpSettings(Section):
    """Where the HTTP API listens."""

    host: str = "127.0.0.1"
    """The address that HTTP is answered at; the default is not reachable from other machines."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Its port; 0 takes a free one."""
    max_body: int = Field(default=2 * 1024 * 1024, ge=1024)
    """Bytes a JSON body may have."""
    max_batch_body: int = Field(default=4 * 1024 * 1024, ge=1024)
    """Bytes of a JSON body that names many numbers."""


class VoiceSettings(Section):
    """What an uploaded recording may be."""

    max_upload: int = Field(default=32 * 1024 * 1024, ge=1024)
    """Bytes that an upload may have."""
    max_seconds: float = Field(default=600.0, gt=0, le=7200)
    """Seconds that it may last."""


class SpeechSettings(Section):
    """Who speaks texts and digits: see `bitel.voices.speech.SpeechOptions`."""

    languages: dict[str, str] = Field(
        default_factory=lambda: {"fa": "fa", "en": "en"}, max_length=200
    )
    """espeak-ng's voice for each language that a client may name."""
    default_language: str = "fa"
    """The language of a text whose client names none."""
    piper: dict[str, Path] = Field(default_factory=dict, max_length=200)
    """The Piper voice model (.onnx) for a language; it goes before espeak-ng."""
    max_chars: int = Field(default=1000, ge=1, le=100_000)
    """Characters a text may have."""

    @model_validator(mode="after")
    def _default_is_known(self) -> SpeechSettings:
        if self.default_language not in {*self.languages, *self.piper}:
            raise ValueError(
                f"default_language {self.default_language!r} has no voice; give it one"
            )
        return self


class LimitSettings(Section):
    """What a project may ask for, where it has no limit of its own. None: as much as it likes."""

    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)
    """HTTP requests of one project a minute, at each process that answers HTTP."""
    calls_per_minute: int | None = Field(default=None, ge=1, le=10_000_000)
    """Calls that one project may place a minute, at each process that answers HTTP."""


class OtpSettings(Section):
    """One-time passwords: calls that go before all others, and at any time of the day."""

    max_intro: float = Field(default=30.0, gt=0, le=600)
    """Seconds that the recording before the digits may last."""
    per_number: int = Field(default=5, ge=1, le=1000)
    """One-time passwords that a project may have read to one number in 10 minutes."""


class MetricsSettings(Section):
    """Who may read `/metrics`, and where; it names dialers and trunks, never projects or people."""

    enabled: bool = True
    """Whether `/metrics` is answered, beside the API and outside of `/api`."""
    token: Annotated[SecretStr, AfterValidator(_metrics_token)] = SecretStr("")
    """What a reader must send as a bearer token. Empty: only readers on this machine are answered,
    unless a proxy says that they come from elsewhere."""
    bind: Annotated[str, AfterValidator(_optional_address)] = ""
    """Where a process without the API (`serve --only dialer`) answers `/metrics`, as HOST:PORT;
    empty: nowhere."""


class NotificationSettings(Section):
    """Of what an operator is notified, and how: see `bitel.notifications`."""

    url: str = ""
    """Where notifications are posted as JSON; empty: nowhere. Private addresses are allowed."""
    secret: SecretStr = SecretStr("")
    """`whsec_` and base64: signs these POSTs as webhooks are signed. Empty: no signature."""
    command: Annotated[str, AfterValidator(_command)] = ""
    """A program and its arguments that is run for each notification, with the JSON on stdin and its
    type in `BITEL_NOTIFICATION`; no shell reads it. Empty: none."""
    low_balance: Decimal | None = None
    """A project's balance below which `balance.low` is sent; unset: never."""
    disk_megabytes: int = Field(default=1024, ge=0)
    """MiB free on the disk of `data_dir` below which `disk.low` is sent; 0: never."""


class TraceSettings(Section):
    """Of which calls `bitel trace` finds the SIP messages; they are in `data_dir/traces`."""

    calls: int = Field(default=1000, ge=0, le=100_000)
    """How many of the last attempts, whatever became of them."""
    errors: int = Field(default=10_000, ge=0, le=1_000_000)
    """How many attempts of calls that ended in ERROR, beyond those."""
    megabytes: int = Field(default=256, ge=1, le=100_000)
    """The size of all of them together, a half for each kind; the oldest go first."""
    days: int = Field(default=30, ge=1, le=3650)
    """Days until a trace is removed: it names who was called."""


class RateSettings(Section):
    """One line of the tariff: see `bitel.calls.tariff.Rate`."""

    prefix: str = Field(pattern=r"^\+[0-9]{0,15}$")
    """What the E.164 form of a number starts with; the longest prefix that fits prices it."""
    per_minute: Decimal = Field(ge=0, le=MOST_RATE)
    """The price of a minute."""
    increment: int = Field(default=60, ge=1, le=3600)
    """Seconds of a step; each step that has begun is charged in full."""
    connection_fee: Decimal = Field(default=Decimal(0), ge=0, le=MOST_RATE)
    """Charged once for each answered call."""
    minimum: Decimal = Field(default=Decimal(0), ge=0, le=MOST_RATE)
    """The least that an answered call costs."""


class NumberRuleSettings(Section):
    """How numbers with a prefix are dialled: see `bitel.dialers.numbering.NumberRule`."""

    prefix: NumberPrefix
    """What the number begins with, in E.164: `+98`."""
    strip: int = Field(default=0, ge=0, le=16)
    """How many characters it loses in front, the plus sign included."""
    add: str = Field(default="", pattern=r"^[0-9+*#]{0,32}$")
    """What is then put in front."""

    @model_validator(mode="after")
    def _leaves_a_number(self) -> NumberRuleSettings:
        if self.strip > len(self.prefix):
            raise ValueError(f"strip {self.strip} takes away more than the prefix {self.prefix!r}")
        return self


SHORTEST_MEDIA_TIMEOUT = 10.0  # seconds; of many callees only a packet in five seconds is seen


class DialerSettings(Section):
    """A dialer: a SIP user agent, the trunks that it calls over, and how fast it may."""

    id: DialerId
    """What clients name as `serverId`; the first dialer is the default."""
    trunks: list[Annotated[str, AfterValidator(_trunk)]] = Field(min_length=1, max_length=16)
    """The carrier's addresses, in order of preference: `sip:HOST[:PORT][;transport=udp|tcp|tls]`,
    or `sips:HOST`, which means TLS. Without a port and a transport DNS may name them (NAPTR, SRV).
    IPv6 addresses stand in brackets."""
    outbound_proxy: Annotated[str, AfterValidator(_outbound_proxy)] = ""
    """The host that INVITE, REGISTER and OPTIONS are sent to in place of the trunks, written as
    these are: `sip:HOST[:PORT][;transport=udp|tcp|tls]`. The trunk stays in the Request-URI, and a
    Route header names the proxy. Empty: none."""
    trunk_timeout: float = Field(default=32.0, ge=1, le=32)
    """Seconds until a trunk that answers nothing at all to an INVITE is left for the next address,
    if there is another. One that was merely slow may by then have begun to call: it is sent
    CANCEL as soon as it says so, but for a moment a person may be rung by both. So rather not
    less than 4, the time of four lost INVITEs."""
    tls_ca: str = ""
    """The file of CA certificates (PEM) that a TLS trunk's certificate must come from; empty: the
    system's. The certificate must bear the name in `trunks`."""
    tls_certificate: str = ""
    """The file of our own certificate chain (PEM), shown to TLS trunks that ask for one; with it
    TLS is listened for too, at the port after that of `bind`."""
    tls_key: str = ""
    """The file of that certificate's key (PEM), without a passphrase."""
    username: str = ""
    """Digest credentials, where the carrier wants them."""
    password: SecretStr = SecretStr("")
    """Their password; shown nowhere."""
    realm: str = Field(default="", max_length=255)
    """The realm that they are for, as the carrier names it when it asks. Empty: in each call that
    of the first challenge; name it where your carrier passes on what callees ask for."""
    register_: bool = Field(default=False, alias="register")
    """REGISTER with the trunk and stay registered."""
    caller_id: CallerId | Annotated[list[CallerId], Field(min_length=1, max_length=1000)] = ""
    """The number that callees see; or several, over which calls are spread: all attempts of a call
    show the same one."""
    caller_ids: dict[NumberPrefix, CallerId] = Field(default_factory=dict, max_length=1000)
    """The caller id by prefix of the number called, before `caller_id`; the longest decides."""
    identity: Literal["from", "pai", "ppi", "rpid"] = "from"
    """What names the caller: From alone, or with P-Asserted-Identity (`pai`), P-Preferred-Identity
    (`ppi`) or Remote-Party-ID (`rpid`)."""
    privacy: bool = False
    """Whether the person called is not to learn who calls (RFC 3323)."""
    from_domain: Annotated[str, AfterValidator(_domain)] = ""
    """The host, a domain name or an IP address, in From and in the header of `identity`, where the
    carrier wants its own there. Empty: our IP address. An anonymous From does not change."""
    user_phone: bool = False
    """Whether the URIs of From, To and the request have `;user=phone` where their user part is a
    telephone number."""
    extra_headers: Annotated[dict[str, SecretStr], AfterValidator(_extra_headers)] = Field(
        default_factory=dict, max_length=20
    )
    """Headers that every INVITE gets, and no other request: `{ "X-Account" = "42" }`, each one line
    of at most 512 characters. Headers that bitel writes itself are refused. The values are in no
    log; the traces of calls show them."""
    send_to_source: bool = False
    """Whether requests in a call are sent to the source address of the carrier's messages instead
    of the one in its Contact or Record-Route: for carriers that write a private address there."""
    latch: Literal["off", "port", "host"] = "port"
    """Which source of RTP audio follows, where a callee sends from another address than its SDP
    names (symmetric RTP): `off` none, `port` another port of that host, `host` any host."""
    tcp_fallback: bool = True
    """Whether requests of more than 1,300 bytes to UDP trunks are sent by TCP (RFC 3261 §18.1.1),
    and by UDP where there is no TCP or it gives no response. Without it they are sent by UDP."""
    number_format: Literal["e164", "digits", "national"] = "e164"
    """How the carrier wants numbers: `+98912…`, `98912…` or `0912…`."""
    number_rules: list[NumberRuleSettings] = Field(default_factory=list, max_length=1000)
    """Rules by prefix, before `number_format`; the longest prefix decides."""
    ping_interval: float = Field(default=30.0, ge=0, le=3600)
    """Seconds between two OPTIONS to each of the carriers' addresses; 0 sends none."""
    codecs: list[Literal["PCMA", "PCMU"]] = Field(
        default=["PCMA", "PCMU"], min_length=1, max_length=2
    )
    """What is offered, best first."""
    bind: AddressText = "0.0.0.0:5070"
    """Where SIP is spoken from."""
    public_address: Annotated[str, AfterValidator(_public_address)] = ""
    """What Via, Contact and SDP say instead of `bind`: an IP address, and a port if it differs."""
    rtp_ports: Annotated[str, AfterValidator(_port_range)] = "10000-19999"
    """Local ports of RTP, the even ones of them, with RTCP on the odd ones above; a narrow range is
    shared by many calls."""
    receive: bool = True
    """Whether callees are listened to: where they send from (symmetric RTP), what they key, how
    they hear us (RTCP). Without it audio goes where the SDP says, and only that."""
    media_timeout: float = Field(default=0.0, ge=0, le=600)
    """Seconds after which a callee that was sending, and sends nothing more, is hung up on; 0
    never, else 10 or more. Off by default, because many carriers send nothing during
    silence, and a call that is really dead ends with its recording anyway."""
    max_channels: int = Field(default=100, ge=1, le=100_000)
    """Calls at once, ringing ones included."""
    otp_channels: int = Field(default=0, ge=0, le=100_000)
    """Channels out of `max_channels` that only one-time passwords may use."""
    calls_per_second: float = Field(default=10.0, gt=0, le=100_000)
    """New calls a second."""
    ring_timeout: float = Field(default=45.0, ge=1, le=600)
    """Seconds from the INVITE until it is given up unanswered."""
    uncertain_redials: int = Field(default=1, ge=0, le=10)
    """How many times, beyond its retries, a call is dialled again whose attempt failed in the
    network when the phone may have rung: the carrier had begun with the call, and failed it more
    than 4 s later."""
    refusals_before_pause: int = Field(default=10, ge=0, le=1_000_000)
    """Refusals in a row (401, 402, 403, 407 or 488) after which a trunk that worked before gets no
    more calls: they wait, and one is tried every 5 minutes; 0 never."""

    @property
    def rtp_range(self) -> range:
        """The ports of `rtp_ports`, both ends included."""
        first, last = map(int, self.rtp_ports.split("-"))
        return range(first, last + 1)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> DialerSettings:
        if self.register_ and not self.username:
            raise ValueError("register = true needs a username to register as")
        if self.password.get_secret_value() and not self.username:
            raise ValueError("password is set but username is empty; set both or neither")
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key go together; set both or neither")
        ipv6 = ":" in split_address(self.bind)[0]
        what = "outbound_proxy" if self.outbound_proxy else "trunk"
        for hop in [self.outbound_proxy] if self.outbound_proxy else self.trunks:
            if _is_ip(_trunk_host(hop), 4 if ipv6 else 6):
                ours, wants = ("IPv6", "0.0.0.0:5070") if ipv6 else ("IPv4", "[::]:5070")
                raise ValueError(f"bind is {ours}, the {what} {hop} is not; bind {wants}, say")
        written = {IDENTITY_HEADERS.get(self.identity, ""), "privacy" if self.privacy else ""}
        for name in self.extra_headers:
            if name.lower() in written:
                setting = "privacy" if name.lower() == "privacy" else "identity"
                raise ValueError(f"extra_headers: {name} is what {setting} writes; remove one")
        if 0 < self.media_timeout < SHORTEST_MEDIA_TIMEOUT:
            raise ValueError(
                f"media_timeout {self.media_timeout:g} is too short to tell silence from thin "
                f"listening: use {SHORTEST_MEDIA_TIMEOUT:g} or more, or 0 for none"
            )
        if self.media_timeout and not self.receive:
            raise ValueError("media_timeout needs receive = true to notice who is silent")
        if self.latch == "host" and not self.receive:
            raise ValueError("latch = 'host' needs receive = true to find where audio comes from")
        prefixes = [rule.prefix for rule in self.number_rules]
        twice = {prefix for prefix in prefixes if prefixes.count(prefix) > 1}
        if twice:
            raise ValueError(f"number_rules: two have the same prefix {min(twice)!r}")
        if self.otp_channels >= self.max_channels:
            raise ValueError("otp_channels leaves no channel for other calls; make it smaller")
        return self


class Settings(BaseSettings):
    """All settings. Build one with `load`, which turns every fault into a SettingsError."""

    model_config = SettingsConfigDict(
        env_prefix="BITEL_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
        use_attribute_docstrings=True,
    )

    data_dir: Path = Path("bitel-data")
    """The folder of recordings, the SQLite file and the signing key; made with mode 0700."""
    database_url: SecretStr = SecretStr("")
    """Empty: SQLite in `data_dir`; `postgresql://…` where one machine is outgrown."""
    storage_url: SecretStr = SecretStr("")
    """Empty: recordings in `data_dir/voices`; `s3://bucket/prefix` keeps them there."""
    region: Annotated[str, AfterValidator(_region)] = "IR"
    """The country whose local numbers are understood, and whose numbers alone may be called unless
    a project is allowed others."""
    extra_prefixes: tuple[NumberPrefix, ...] = Field(default=(), max_length=1000)
    """Beginnings of numbers that are in use and not yet in the numbering plans known here, as in
    `["+989981"]`; numbers of a possible length that begin so are taken as valid."""
    currency: str = Field(default="IRR", pattern=r"^[A-Z]{3}$")
    """The currency of balances and prices (ISO 4217)."""
    batch_limit: int = Field(default=10_000, ge=1, le=1_000_000)
    """Numbers that one batch may hold."""
    drain_timeout: float = Field(default=30.0, ge=0, le=3600)
    """Seconds that running calls may still take after SIGTERM."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe log lines that are written."""
    log_json: bool = False
    """JSON lines instead of plain ones."""
    http: HttpSettings = HttpSettings()
    voices: VoiceSettings = VoiceSettings()
    speech: SpeechSettings = SpeechSettings()
    limits: LimitSettings = LimitSettings()
    otp: OtpSettings = OtpSettings()
    metrics: MetricsSettings = MetricsSettings()
    traces: TraceSettings = TraceSettings()
    notifications: NotificationSettings = NotificationSettings()
    webhook_allow_private: bool = False
    """Whether webhooks may be sent to private and loopback addresses."""
    tariff: list[RateSettings] = Field(default_factory=list, max_length=10_000)
    dialers: list[DialerSettings] = Field(default_factory=list, max_length=64)

    @model_validator(mode="after")
    def _dialers_agree(self) -> Settings:
        ids = [dialer.id for dialer in self.dialers]
        binds = [dialer.bind for dialer in self.dialers if not dialer.bind.endswith(":0")]
        for what, values in (("id", ids), ("bind", binds)):
            twice = {value for value in values if values.count(value) > 1}
            if twice:
                raise ValueError(f"dialers: two have the same {what} {min(twice)!r}")
        return self

    @model_validator(mode="after")
    def _tariff_is_unambiguous(self) -> Settings:
        prefixes = [rate.prefix for rate in self.tariff]
        twice = {prefix for prefix in prefixes if prefixes.count(prefix) > 1}
        if twice:
            raise ValueError(f"tariff: two lines have the same prefix {min(twice)!r}; keep one")
        return self

    @property
    def effective_database_url(self) -> str:
        """The database's URL: the one that is set, else SQLite in `data_dir`."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.data_dir / 'bitel.db'}"

    def dialer(self, dialer_id: str) -> DialerSettings | None:
        """The dialer of that id, if there is one."""
        return next((dialer for dialer in self.dialers if dialer.id == dialer_id), None)

    def price_list(self) -> Tariff:
        """The tariff as the domain knows it."""
        return Tariff(tuple(Rate(**rate.model_dump()) for rate in self.tariff))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment before the file; no other source."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load(config: Path | None = None) -> Settings:
    """The settings from `config`, else the file `BITEL_CONFIG` names, else `./bitel.toml` if any.

    Raises SettingsError with one sentence for a file that is missing, is no TOML, or holds a
    setting that is unknown, of the wrong type or contradicts another.
    """
    path = settings_file(config)
    unknown_variables()

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=path)

    try:
        return FromFile()
    except ValidationError as fault:
        raise SettingsError(_sentence(fault)) from None
    except ValueError as fault:
        where = f"{path}: " if path else ""
        raise SettingsError(f"{where}{fault}") from None


def settings_file(config: Path | None) -> Path | None:
    """The file that settings are read from; None: there is none. Raises SettingsError."""
    named = config or (Path(os.environ[CONFIG_VARIABLE]) if CONFIG_VARIABLE in os.environ else None)
    if named is None:
        return DEFAULT_FILE if DEFAULT_FILE.exists() else None
    if not named.is_file():
        raise SettingsError(f"the settings file {named} does not exist; name one that does")
    return named


_CLOSE = 0.85
"""How alike two names are at least (0 to 1, see `difflib`) to be taken for one that is misspelt."""
_CLIENT_VARIABLES = frozenset({CONFIG_VARIABLE, "BITEL_URL", "BITEL_TOKEN"})


def unknown_variables() -> list[str]:
    """The variables of the environment that begin with `BITEL_` and mean nothing to us.

    Others may set them: for a Service named `bitel`, Kubernetes sets `BITEL_SERVICE_HOST` and
    `BITEL_PORT_8080_TCP_ADDR`. Raises SettingsError for one that is probably a setting misspelt:
    with `__` in its name, or close to that of a setting.
    """
    names = _variable_names(Settings, "BITEL_")
    # Without its underscores doubled, a name is what people write first.
    spelled = {name.replace("__", "_"): name for name in names}
    unknown = []
    for name, value in os.environ.items():
        if not name.startswith("BITEL_") or name in _CLIENT_VARIABLES:
            continue
        field = name.removeprefix("BITEL_").split("__")[0].lower()
        if name.startswith("BITEL_TEST_") or field in Settings.model_fields:
            continue
        by_kubernetes = value.startswith(("tcp://", "udp://", "sctp://"))
        near = get_close_matches(name, spelled, n=1, cutoff=_CLOSE)
        if "__" in name or (near and not by_kubernetes):
            hint = f"is {spelled[near[0]]} meant? " if near else ""
            raise SettingsError(
                f"{name} in the environment names no setting; {hint}remove or correct it"
            )
        unknown.append(name)
    return sorted(unknown)


def _variable_names(model: type[BaseModel], prefix: str) -> list[str]:
    """The variables of a model's fields, those of its sections included."""
    names = []
    for name, field in model.model_fields.items():
        variable = prefix + name.upper()
        names.append(variable)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += _variable_names(field.annotation, f"{variable}__")
    return names


def _sentence(fault: ValidationError) -> str:
    error: Any = fault.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"the setting {where} is unknown; remove or correct it"
    message = error["msg"].removeprefix("Value error, ")
    return f"the setting {where} is wrong: {message}" if where else message
