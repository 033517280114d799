"""The sections of the settings: keys with type, default and bounds."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from bitel.domain.pricing import Rate, Tariff
from bitel.settings import values
from bitel.settings.values import FileName

MOST_RATE = Decimal(10) ** 9
"""Largest price of a minute, a connection and a call, so that a balance can hold it."""


def _check_distinct(found: Sequence[str], fault: str) -> None:
    """Raise ValueError with `fault` and the first duplicate in `found`, if any."""
    if twice := {each for each in found if found.count(each) > 1}:
        raise ValueError(fault.format(min(twice)))


class Section(BaseModel):
    """Base of all sections; unknown keys are errors."""

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
    connections_per_source: int = Field(default=256, ge=1, le=100_000)
    """Connections that one source may have at a time, with IPv6 one network of 2^64 addresses."""
    trusted_proxies: list[values.Network] = Field(
        default=["127.0.0.0/8", "::1/128"], max_length=1000
    )
    """Networks of reverse proxies, whose connections are not counted by source: they carry those of
    all clients."""


class S3Settings(Section):
    """Access to the S3 server of `storage_url`.

    Empty settings are taken from the `AWS_` variables, but not from the files of the AWS tools.
    """

    endpoint: values.Endpoint = ""
    """The URL of the server, as in `https://s3.example:9000`; empty: Amazon's of the region."""
    region: str = Field(default="", max_length=64)
    """The region of the bucket; servers other than Amazon's take any, such as `us-east-1`."""
    access_key_id: str = Field(default="", max_length=255)
    """The credentials' name."""
    secret_access_key: SecretStr = SecretStr("")
    """The credentials' secret; shown nowhere. `secret_access_key_file` names a file instead."""
    allow_http: bool = False
    """Whether the endpoint may be spoken to without TLS: recordings and their names then cross the
    network in clear text."""
    virtual_hosted: bool = False
    """Whether the bucket is part of the host's name, `bucket.s3.example`, instead of the path."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> S3Settings:
        if bool(self.access_key_id) != bool(self.secret_access_key.get_secret_value()):
            raise ValueError("access_key_id and secret_access_key go together; set both or neither")
        if self.endpoint.startswith("http://") and not self.allow_http:
            raise ValueError(
                f"the endpoint {self.endpoint} is plain HTTP; write allow_http = true if the "
                "network in between is yours, or an https:// endpoint"
            )
        return self


class VoiceSettings(Section):
    """Limits of uploaded recordings."""

    max_upload: int = Field(default=32 * 1024 * 1024, ge=1024)
    """Bytes that an upload may have."""
    max_seconds: float = Field(default=600.0, gt=0, le=7200)
    """Seconds that it may last."""


class SpeechSettings(Section):
    """Speech synthesis: see `bitel.speech.engines.SpeechOptions`."""

    languages: dict[str, str] = Field(
        default_factory=lambda: {"fa": "fa", "en": "en"}, max_length=200
    )
    """espeak-ng's voice for each language that a client may name."""
    default_language: str = "fa"
    """The language of a text whose client names none."""
    piper: dict[str, Annotated[Path, FileName()]] = Field(default_factory=dict, max_length=200)
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
    """Limits of projects that have none of their own. None: unlimited."""

    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)
    """HTTP requests of one project a minute; processes that answer HTTP share them equally."""
    calls_per_minute: int | None = Field(default=None, ge=1, le=10_000_000)
    """Calls that one project may place a minute; processes that answer HTTP share them equally."""
    new_project_requests_per_minute: int | None = Field(default=3000, ge=1, le=1_000_000)
    """The `requests_per_minute` that `bitel project create` gives a project of its own."""
    new_project_calls_per_minute: int | None = Field(default=10_000, ge=1, le=10_000_000)
    """Its `calls_per_minute`. One batch of any size is taken at a time, and paid off by waiting."""
    recordings: int = Field(default=10_000, ge=1, le=10_000_000)
    """Recordings that one project may keep, spoken texts included."""
    storage_megabytes: int = Field(default=2000, ge=1, le=100_000_000)
    """MiB that its recordings may take in the storage: a minute takes 0.92."""


class OtpSettings(Section):
    """One-time passwords: calls with the highest priority, at any time of the day."""

    max_intro: float = Field(default=30.0, gt=0, le=600)
    """Seconds that the recording before the digits may last."""
    per_number: int = Field(default=5, ge=1, le=1000)
    """One-time passwords that a project may have read to one number in 10 minutes."""


class MetricsSettings(Section):
    """Access to `/metrics`, which names dialers and trunks, never projects or people."""

    enabled: bool = True
    """Whether `/metrics` is answered, beside the API and outside of `/api`."""
    token: values.MetricsToken = SecretStr("")
    """What a reader must send as a bearer token. Empty: only readers on this machine are answered,
    unless a proxy says that they come from elsewhere."""
    bind: values.OptionalAddress = ""
    """Where a process without the API (`serve --only dialer`) answers `/metrics`, as HOST:PORT;
    empty: nowhere."""


class NotificationSettings(Section):
    """Notifications of the operator: see `bitel.notifications`."""

    url: str = ""
    """Where notifications are posted as JSON; empty: nowhere. Private addresses are allowed."""
    secret: SecretStr = SecretStr("")
    """`whsec_` and base64: signs these POSTs as webhooks are signed. Empty: no signature."""
    command: values.Command = ""
    """A program and its arguments that is run for each notification, with the JSON on stdin and its
    type in `BITEL_NOTIFICATION`; no shell reads it. Empty: none."""
    low_balance: Decimal | None = None
    """A project's balance below which `balance.low` is sent; unset: never."""
    disk_megabytes: int = Field(default=1024, ge=0)
    """MiB free on the disk of `data_dir` below which `disk.low` is sent; 0: never."""


class TraceSettings(Section):
    """SIP traces of calls in `data_dir/traces`, for `bitel trace`."""

    calls: int = Field(default=1000, ge=0, le=100_000)
    """How many of the last attempts, whatever became of them."""
    errors: int = Field(default=10_000, ge=0, le=1_000_000)
    """How many attempts of calls that ended in ERROR, beyond those."""
    megabytes: int = Field(default=256, ge=1, le=100_000)
    """The size of all of them together, a half for each kind; the oldest go first."""
    days: int = Field(default=30, ge=1, le=3650)
    """Days until a trace is removed: it names who was called."""


class RetentionSettings(Section):
    """Days until finished data is deleted; 0: never.

    A call takes 650 B to 1.5 kB of the database. Traces have their own section.
    """

    calls: float = Field(default=0, ge=0, le=36_500)
    """Calls that are over, with their attempts and webhook events. The ledger keeps a sum for each
    day."""
    webhook_events: float = Field(default=0, ge=0, le=36_500)
    """Webhook events that were delivered or given up, with their tries."""
    numbers: float = Field(default=0, ge=0, le=36_500)
    """Numbers, one-time passwords and keyed digits of calls that are over: then they are blank."""
    recordings: float = Field(default=0, ge=0, le=36_500)
    """Recordings and spoken texts that no call was placed with since."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> RetentionSettings:
        for name in ("webhook_events", "numbers"):
            days = getattr(self, name)
            if self.calls and days > self.calls:
                raise ValueError(
                    f"{name} = {days:g} has no effect, since calls = {self.calls:g} deletes them "
                    "before; make it smaller or 0"
                )
        return self


class RateSettings(Section):
    """A line of the tariff: see `bitel.domain.pricing.Rate`."""

    prefix: values.NumberPrefix
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
    """How numbers with a prefix are dialled: see `bitel.dialer.caller_identity.NumberRule`."""

    prefix: values.NumberPrefix
    """What the number begins with, in E.164: `+98`."""
    strip: int = Field(default=0, ge=0, le=16)
    """How many characters it loses in front, the plus sign included."""
    add: values.DialledPrefix = ""
    """What is then put in front."""

    @model_validator(mode="after")
    def _leaves_a_number(self) -> NumberRuleSettings:
        if self.strip > len(self.prefix):
            raise ValueError(f"strip {self.strip} takes away more than the prefix {self.prefix!r}")
        return self


SHORTEST_MEDIA_TIMEOUT = 10.0  # seconds; with many calls, a packet is read every five seconds


class DialerSettings(Section):
    """A dialer: a SIP user agent, its trunks and its limits."""

    id: values.DialerId
    """What clients name as `serverId`; the first dialer is the default."""
    trunks: list[values.TrunkUri] = Field(min_length=1, max_length=16)
    """The carrier's addresses, in order of preference: `sip:HOST[:PORT][;transport=udp|tcp|tls]`,
    or `sips:HOST`, which means TLS. Without a port and a transport DNS may name them (NAPTR, SRV).
    IPv6 addresses stand in brackets."""
    outbound_proxy: values.ProxyUri = ""
    """The host that INVITE, REGISTER and OPTIONS are sent to in place of the trunks, written as
    these are: `sip:HOST[:PORT][;transport=udp|tcp|tls]`. The trunk stays in the Request-URI, and a
    Route header names the proxy. Empty: none."""
    trunk_timeout: float = Field(default=32.0, ge=1, le=32)
    """Seconds until a trunk that answers nothing at all to an INVITE is left for the next address,
    if there is another. One that was merely slow may by then have begun to call: it is sent
    CANCEL as soon as it says so, but for a moment a person may be rung by both. So rather not
    less than 4, the time of four lost INVITEs."""
    tls_ca: values.FileText = ""
    """The file of CA certificates (PEM) that a TLS trunk's certificate must come from; empty: the
    system's. The certificate must bear the name in `trunks`."""
    tls_certificate: values.FileText = ""
    """The file of our own certificate chain (PEM), shown to TLS trunks that ask for one; with it
    TLS is listened for too, at the port after that of `bind`."""
    tls_key: values.FileText = ""
    """The file of that certificate's key (PEM), without a passphrase."""
    username: str = ""
    """Digest credentials, where the carrier wants them."""
    password: SecretStr = SecretStr("")
    """Their password; shown nowhere. `password_file` names a file that it is read from instead."""
    realm: str = Field(default="", max_length=255)
    """The realm that they are for, as the carrier names it when it asks. Empty: in each call that
    of the first challenge; name it where your carrier passes on what callees ask for."""
    register_: bool = Field(default=False, alias="register")
    """REGISTER with the trunk and stay registered."""
    caller_id: (
        values.CallerId | Annotated[list[values.CallerId], Field(min_length=1, max_length=1000)]
    ) = ""
    """The number that callees see; or several, over which calls are spread: all attempts of a call
    show the same one."""
    caller_ids: dict[values.NumberPrefix, values.CallerId] = Field(
        default_factory=dict, max_length=1000
    )
    """The caller id by prefix of the number called, before `caller_id`; the longest decides."""
    identity: Literal["from", "pai", "ppi", "rpid"] = "from"
    """What names the caller: From alone, or with P-Asserted-Identity (`pai`), P-Preferred-Identity
    (`ppi`) or Remote-Party-ID (`rpid`)."""
    privacy: bool = False
    """Whether the person called is not to learn who calls (RFC 3323)."""
    from_domain: values.DomainName = ""
    """The host, a domain name or an IP address, in From and in the header of `identity`, where the
    carrier wants its own there. Empty: our IP address. An anonymous From does not change."""
    user_phone: bool = False
    """Whether the URIs of From, To and the request have `;user=phone` where their user part is a
    telephone number."""
    extra_headers: values.ExtraHeaders = Field(default_factory=dict, max_length=20)
    """Headers that every INVITE gets, and no other request: `{ "X-Account" = "42" }`, each one line
    of at most 512 characters. Headers that bitel writes itself are refused. The values are in no
    log; the traces of calls show them."""
    send_to_source: bool = False
    """Whether requests in a call are sent to the source address of the carrier's messages instead
    of the one in its Contact or Record-Route: for carriers that write a private address there."""
    accept_from: (
        Literal["trunks", "any"] | Annotated[list[values.Network], Field(max_length=1000)]
    ) = "trunks"
    """Where SIP messages are accepted from beside the trunks' addresses and the hosts that they
    name in a call: `trunks` nowhere, a list of networks (`["198.51.100.0/24"]`) those too, `any`
    anywhere. Other messages are dropped; with `any`, requests outside of calls get one answer."""
    follow_private: bool = False
    """Whether a trunk on the public network may name private, link-local and loopback addresses
    in Contact, Record-Route, SDP and redirections, and one on a private network the two latter.
    Otherwise requests go to the source of its messages, and audio to where its audio comes from,
    within `latch`."""
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
    bind: values.AddressText = "0.0.0.0:5070"
    """Where SIP is spoken from."""
    public_address: values.PublicAddress = ""
    """What Via, Contact and SDP say instead of `bind`: an IP address, and a port if it differs."""
    rtp_ports: values.PortRange = "10000-19999"
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
    limit_group: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]{0,32}$")
    """Dialers with the same name here share one trunk: `max_channels`, `otp_channels` and
    `calls_per_second`, which must be the same for all of them, hold for them together. Empty: the
    dialer has its limits for itself."""
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
    def caller_pool(self) -> tuple[str, ...]:
        """The caller ids over which calls are spread; the empty string means that none is shown."""
        return (self.caller_id,) if isinstance(self.caller_id, str) else tuple(self.caller_id)

    @property
    def all_caller_ids(self) -> frozenset[str]:
        """The caller ids that calls may show."""
        return frozenset((*self.caller_pool, *self.caller_ids.values()))

    @property
    def rtp_range(self) -> range:
        """The range of `rtp_ports`, including both ends."""
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
        ipv6 = ":" in values.split_address(self.bind)[0]
        what = "outbound_proxy" if self.outbound_proxy else "trunk"
        for hop in [self.outbound_proxy] if self.outbound_proxy else self.trunks:
            if values.is_ip(values.trunk_host(hop), 4 if ipv6 else 6):
                ours, wants = ("IPv6", "0.0.0.0:5070") if ipv6 else ("IPv4", "[::]:5070")
                raise ValueError(f"bind is {ours}, the {what} {hop} is not; bind {wants}, say")
        written = {values.IDENTITY_HEADERS.get(self.identity): "identity"}
        if self.privacy:
            written["privacy"] = "privacy"
        for name in self.extra_headers:
            if setting := written.get(name.lower()):
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
        _check_distinct(prefixes, "number_rules: two have the same prefix {!r}")
        if self.otp_channels >= self.max_channels:
            raise ValueError("otp_channels leaves no channel for other calls; make it smaller")
        return self


class DialerGroupSettings(Section):
    """Dialers that share the calls of projects: see `bitel.domain.dialer_groups`."""

    id: values.DialerId
    """What clients name as `serverId`, as they do a dialer."""
    dialers: list[values.DialerId] = Field(min_length=2, max_length=64)
    """The ids of its dialers. Without `weights` each call is for the first of them that is up and
    has a free channel."""
    weights: list[Annotated[float, Field(gt=0, le=1000)]] = Field(
        default_factory=list, max_length=64
    )
    """The part of the calls that each dialer takes while several are free, in the order of
    `dialers`. Empty: the order decides."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> DialerGroupSettings:
        _check_distinct(self.dialers, f"dialer_groups: {self.id} has the dialer {{!r}} twice")
        if self.weights and len(self.weights) != len(self.dialers):
            raise ValueError(
                f"dialer_groups: {self.id} has {len(self.dialers)} dialers and "
                f"{len(self.weights)} weights; give each dialer one, or none"
            )
        return self


class Settings(BaseSettings):
    """All settings; `bitel.settings.load` makes them."""

    model_config = SettingsConfigDict(
        env_prefix="BITEL_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    data_dir: Annotated[Path, FileName(), AfterValidator(Path.absolute)] = Path("bitel-data")
    """The folder of recordings and the SQLite file; made with mode 0700. As every file that the
    settings name, it is relative to the folder of the settings file; without one, or from the
    environment, to the working directory."""
    database_url: SecretStr = SecretStr("")
    """Empty: SQLite in `data_dir`; `postgresql://…` where one machine is outgrown."""
    signing_key_secret: values.KeySecret = SecretStr("")
    """Encrypts the keys that sign tokens, which are in the database: with it, a copy of the
    database is not enough to make a token. At least 16 characters; the same for every process of
    the database. `signing_key_secret_file` names a file instead. Empty: they are not encrypted."""
    storage_url: SecretStr = SecretStr("")
    """Empty: recordings in `data_dir/voices`; `s3://bucket/prefix` keeps them there, see `[s3]`."""
    region: values.Region = "IR"
    """The country whose local numbers are understood, and whose numbers alone may be called unless
    a project is allowed others."""
    extra_prefixes: tuple[values.NumberPrefix, ...] = Field(default=(), max_length=1000)
    """Beginnings of numbers that are in use and not yet in the numbering plans known here, as in
    `["+989981"]`; numbers of a possible length that begin so are taken as valid."""
    currency: values.Currency = "IRR"
    """The currency of balances and prices (ISO 4217)."""
    batch_limit: int = Field(default=10_000, ge=1, le=1_000_000)
    """Numbers that one batch may hold."""
    list_limit: int = Field(default=1_000_000, ge=1, le=1_000_000)
    """Rows that an uploaded list of recipients may have; it may be as large as a recording."""
    drain_timeout: float = Field(default=30.0, ge=0, le=3600)
    """Seconds that running calls may still take after SIGTERM."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe log lines that are written."""
    log_json: bool = False
    """JSON lines instead of plain ones."""
    http: HttpSettings = HttpSettings()
    s3: S3Settings = S3Settings()
    voices: VoiceSettings = VoiceSettings()
    speech: SpeechSettings = SpeechSettings()
    limits: LimitSettings = LimitSettings()
    otp: OtpSettings = OtpSettings()
    metrics: MetricsSettings = MetricsSettings()
    traces: TraceSettings = TraceSettings()
    retention: RetentionSettings = RetentionSettings()
    notifications: NotificationSettings = NotificationSettings()
    webhook_allow_private: bool = False
    """Whether webhooks may be sent to private and loopback addresses."""
    tariff: list[RateSettings] = Field(default_factory=list, max_length=10_000)
    dialers: list[DialerSettings] = Field(default_factory=list, max_length=64)
    dialer_groups: list[DialerGroupSettings] = Field(default_factory=list, max_length=64)

    def _check_limit_groups(self) -> None:
        first: dict[str, DialerSettings] = {}
        for each in self.dialers:
            if not each.limit_group:
                continue
            other = first.setdefault(each.limit_group, each)
            for name in ("max_channels", "otp_channels", "calls_per_second"):
                mine, theirs = getattr(each, name), getattr(other, name)
                if mine != theirs:
                    raise ValueError(
                        f"dialers: {other.id!r} and {each.id!r} share the limit_group "
                        f"{each.limit_group!r}, so {name} must be the same, not {theirs:g} and "
                        f"{mine:g}"
                    )

    def _check_dialer_groups(self) -> None:
        known = [each.id for each in self.dialers]
        names = [*known, *(each.id for each in self.dialer_groups)]
        _check_distinct(names, "dialer_groups: a dialer or another group has the id {!r}, too")
        for group in self.dialer_groups:
            for each in group.dialers:
                if each not in known:
                    raise ValueError(
                        f"dialer_groups: {group.id} names the dialer {each!r}, which is not "
                        f"among dialers: {', '.join(known) or 'none'}"
                    )

    @cached_property
    def server_ids(self) -> tuple[str, ...]:
        """What clients may name as `serverId`: the dialers, then the groups of dialers."""
        groups = (each.id for each in self.dialer_groups)
        return (*(each.id for each in self.dialers), *groups)

    def dialers_behind(self, server_id: str) -> tuple[DialerSettings, ...]:
        """The dialers of a group, or the dialer of this id itself; none for an unknown id."""
        group = next((each for each in self.dialer_groups if each.id == server_id), None)
        ids = [server_id] if group is None else group.dialers
        return tuple(each for id_ in ids if (each := self.dialer(id_)) is not None)

    def limit_group_of(self, dialer: DialerSettings) -> tuple[str, ...]:
        """The ids of the dialers that share its limits, its own included."""
        if not dialer.limit_group:
            return (dialer.id,)
        return tuple(e.id for e in self.dialers if e.limit_group == dialer.limit_group)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Settings:
        binds = [each.bind for each in self.dialers if not each.bind.endswith(":0")]
        _check_distinct([each.id for each in self.dialers], "dialers: two have the same id {!r}")
        _check_distinct(binds, "dialers: two have the same bind {!r}")
        self._check_limit_groups()
        self._check_dialer_groups()
        _check_distinct(
            [rate.prefix for rate in self.tariff],
            "tariff: two lines have the same prefix {!r}; keep one",
        )
        if self.s3 != S3Settings() and not self.storage_url.get_secret_value():
            raise ValueError(
                "[s3] has no effect without a storage_url; write storage_url = "
                '"s3://bucket/prefix" or remove the section'
            )
        return self

    @property
    def effective_database_url(self) -> str:
        """`database_url`, or if empty that of SQLite in `data_dir`."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.data_dir / 'bitel.db'}"

    def dialer(self, dialer_id: str) -> DialerSettings | None:
        """Return the dialer with this id, or None."""
        return next((dialer for dialer in self.dialers if dialer.id == dialer_id), None)

    def price_list(self) -> Tariff:
        """Return the tariff as a domain object."""
        return Tariff(tuple(Rate(**rate.model_dump()) for rate in self.tariff))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use arguments only, because `loading` merges the file and the environment."""
        return (init_settings,)
