"""Session descriptions (RFC 8866) and offer/answer (RFC 3264) for one audio stream.

The first audio line over RTP/AVP that is enabled and has a supported codec is used. Other media
lines of an offer are kept, because the answer must list each of them with port 0.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Literal, NamedTuple

from bitel.sip.grammar import HostPort, ip_literal

Direction = Literal["sendrecv", "sendonly", "recvonly", "inactive"]

MAX_BYTES = 65536
MAX_MEDIA_LINES = 100
MAX_CODECS = 128
MAX_NAME = 64
MAX_REMEMBERED = 2048
"""Longest sections, in characters, whose parsed form is cached."""
MAX_EVENT_TYPES = 8
"""Payload types of telephone events of one call, over all its descriptions."""
MAX_HOST_NAME = 253
"""Characters of a domain name (RFC 1035 §2.3.4)."""
SESSION_ID_BITS = 61
"""Session id and version fit in 63 bits; a first version is below 2^62 - 1 (RFC 3264 §5)."""
DEFAULT_PTIME = 20
PACKET_LENGTHS = (10, 20, 30, 40, 60)
"""Supported packet lengths in ms."""
G711 = ("PCMA", "PCMU")
TELEPHONE_EVENT = "telephone-event"

_STATIC_NAMES = {0: "PCMU", 8: "PCMA"}
"""The supported static payload types (RFC 3551 §6)."""
_PAYLOAD_TYPES = {"PCMU": 0, "PCMA": 8, TELEPHONE_EVENT: 101}
_MIRRORED: dict[Direction, Direction] = {
    "sendrecv": "sendrecv",
    "sendonly": "recvonly",
    "recvonly": "sendonly",
    "inactive": "inactive",
}
_DIRECTIONS: dict[str, Direction] = {direction: direction for direction in _MIRRORED}
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9\-]{0,61}[A-Za-z0-9])?\Z", re.ASCII)


class SdpError(ValueError):
    """A session description that is invalid or has no usable audio."""


class NoCommonCodec(SdpError):
    """The remote refused the audio, or offers no supported codec."""


class Codec(NamedTuple):
    """A payload type of the audio line; `fmtp` are its format parameters, "" without any."""

    payload_type: int
    name: str
    rate: int = 8000
    fmtp: str = ""


class SessionDescription(NamedTuple):
    """One audio stream of a session description.

    `address` is an IP address or a host name (RFC 8866 §5.7). `port` 0 refuses the audio. `ptime`
    is the preferred packet length in ms, `maxptime` the longest allowed, 0 without a limit (§6.3,
    §6.4). `media_before` and `media_after` are the other media lines (the text after `m=`), which
    are written with port 0.
    """

    address: str
    port: int
    codecs: tuple[Codec, ...]
    ptime: int = DEFAULT_PTIME
    direction: Direction = "sendrecv"
    session_id: int = 0
    version: int = 0
    media_before: tuple[str, ...] = ()
    media_after: tuple[str, ...] = ()
    maxptime: int = 0

    @classmethod
    def parse(cls, data: bytes, names: Sequence[str] = G711) -> SessionDescription:
        """Parse a description; raises `SdpError`.

        Of several audio lines over RTP/AVP, the first with a port other than 0 and a codec in
        `names` is used; without one, the first that is valid.
        """
        if len(data) > MAX_BYTES:
            raise SdpError(f"the SDP is longer than {MAX_BYTES} bytes")
        text = data.decode("utf-8", "replace")
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        session_text, *media = f"\n{text}".split("\nm=")
        if len(media) > MAX_MEDIA_LINES:
            raise SdpError(f"the SDP has more than {MAX_MEDIA_LINES} media lines")
        if "\nv=" not in session_text:
            raise SdpError("the SDP has no v= line")
        before, _, rest = session_text.partition("\no=")
        origin, _, after = rest.partition("\n")
        # Apart from origin and port, the descriptions of a peer repeat: they are cached.
        index, port, audio = _choose(f"{before}\n{after}", media, names)
        session_id = version = 0
        fields = origin.split(None, 3)
        if len(fields) >= 3:
            session_id, version = _number(fields[1], 2**64) or 0, _number(fields[2], 2**64) or 0
        return cls(
            audio.address,
            port,
            audio.codecs,
            audio.ptime,
            audio.direction,
            session_id,
            version,
            _media_lines(media[:index]),
            _media_lines(media[index + 1 :]),
            audio.maxptime,
        )

    def __str__(self) -> str:
        address, port, codecs, ptime, direction, session_id, version, before, after, longest = self
        kind = "IP6" if ":" in address else "IP4"
        formats, codec_lines = _rendered(codecs)
        limit = f"a=maxptime:{longest}\r\n" if longest else ""
        return (
            "v=0\r\n"
            f"o=- {session_id} {version} IN {kind} {address}\r\n"
            "s=-\r\n"
            f"c=IN {kind} {address}\r\n"
            "t=0 0\r\n"
            f"{_refused(before) if before else ''}"
            f"m=audio {port} RTP/AVP{formats}\r\n"
            f"{codec_lines}"
            f"a=ptime:{ptime}\r\n{limit}a={direction}\r\n"
            f"{_refused(after) if after else ''}"
        )

    def to_bytes(self) -> bytes:
        """Return the description as the body of a message."""
        return str(self).encode()


@lru_cache(maxsize=64)
def _rendered(codecs: tuple[Codec, ...]) -> tuple[str, str]:
    """The payload types of an audio line, and its rtpmap and fmtp lines."""
    lines = []
    for codec in codecs:
        lines.append(f"a=rtpmap:{codec.payload_type} {codec.name}/{codec.rate}\r\n")
        if codec.fmtp:
            lines.append(f"a=fmtp:{codec.payload_type} {codec.fmtp}\r\n")
    return "".join([f" {codec.payload_type}" for codec in codecs]), "".join(lines)


def _refused(media_lines: tuple[str, ...]) -> str:
    """Media lines with port 0."""
    fields = [line.split(" ", 2) for line in media_lines]
    return "".join([f"m={kind} 0 {rest}\r\n" for kind, _, rest in fields])


class NegotiatedMedia(NamedTuple):
    """The result of offer and answer, from our side.

    Send `codec_name` as `payload_type` to `remote`, a packet every `ptime` ms (one of
    `PACKET_LENGTHS`), if `direction` (ours) allows it. The host of `remote` may be a name that must
    be resolved (`is_host_name`). `event_types` are all payload types under which the remote may
    send telephone events, the most recent last; `has_events` is whether it has agreed to them.
    """

    codec_name: str
    payload_type: int
    event_types: tuple[int, ...]
    remote: HostPort
    ptime: int
    direction: Direction
    has_events: bool = True


def make_offer(
    address: HostPort, codecs: Sequence[str] = G711, session_id: int | None = None
) -> SessionDescription:
    """Offer G.711, preferred codec first, and telephone events; we receive RTP at `address`.

    `session_id` is that of the `o=` line, and its first version (RFC 8866 §5.2); random by default.
    Raises ValueError for a codec other than G.711.
    """
    if not codecs:
        raise ValueError("an offer needs a codec: PCMA, PCMU or both")
    if session_id is None:
        session_id = secrets.randbits(SESSION_ID_BITS)
    ours = _our_codecs(tuple(codecs))
    return SessionDescription(*address, ours, session_id=session_id, version=session_id)


@lru_cache(maxsize=16)
def _our_codecs(names: tuple[str, ...]) -> tuple[Codec, ...]:
    for name in names:
        if name not in _PAYLOAD_TYPES:
            raise ValueError(f"codec {name!r} is not known: use PCMA or PCMU")
    audio = [Codec(_PAYLOAD_TYPES[name], name) for name in names]
    return (*audio, Codec(_PAYLOAD_TYPES[TELEPHONE_EVENT], TELEPHONE_EVENT, fmtp="0-16"))


def check_answer(offer: SessionDescription, answer: SessionDescription) -> NegotiatedMedia:
    """What the answer selects from our offer; raises `NoCommonCodec`."""
    if answer.port == 0:
        raise NoCommonCodec("the answer refuses the audio: its port is 0")
    chosen = _first_audio(answer.codecs, [codec.name for codec in offer.codecs])
    if chosen is None:
        names = ", ".join(codec.name for codec in answer.codecs[:8]) or "nothing"
        raise NoCommonCodec(f"the answer has none of the codecs offered: it names {names}")
    return NegotiatedMedia(
        chosen.name,
        chosen.payload_type,
        _event_types(offer.codecs, answer.codecs),
        (answer.address, answer.port),
        packet_length(answer.ptime, answer.maxptime),
        _MIRRORED[answer.direction],
        any(codec.name == TELEPHONE_EVENT for codec in answer.codecs),
    )


def packet_length(ptime: int, maxptime: int = 0) -> int:
    """The longest supported packet, in ms, within `ptime` and `maxptime` (0: no limit).

    The shortest supported one if all are longer (RFC 8866 §6.3).
    """
    limit = min(ptime, maxptime) if maxptime else ptime
    return max((each for each in PACKET_LENGTHS if each <= limit), default=PACKET_LENGTHS[0])


def make_answer(
    offer: SessionDescription,
    address: HostPort,
    codecs: Sequence[str] = G711,
    session_id: int | None = None,
) -> SessionDescription:
    """Answer with the first offered codec in `codecs`, with the offer's payload types.

    `session_id` is as in `make_offer`. Raises `NoCommonCodec` without such a codec, or if the offer
    disables its audio.
    """
    chosen = _first_audio(offer.codecs, codecs)
    if chosen is None or offer.port == 0:
        raise NoCommonCodec(f"the offer has no audio in {' or '.join(codecs)}")
    if session_id is None:
        session_id = secrets.randbits(SESSION_ID_BITS)
    events = [codec for codec in offer.codecs if codec.name == TELEPHONE_EVENT][:1]
    return SessionDescription(
        *address,
        (chosen, *(codec._replace(fmtp="0-16") for codec in events)),
        ptime=packet_length(offer.ptime, offer.maxptime),
        direction=_MIRRORED[offer.direction],
        session_id=session_id,
        version=session_id,
        media_before=offer.media_before,
        media_after=offer.media_after,
    )


class Negotiation:
    """The offer/answer state of a dialog: both descriptions, and their result.

    A call keeps its first codec, whatever is offered later. The version of our description
    increases by one with each change (RFC 3264 §8).
    """

    def __init__(self, local: SessionDescription, remote: SessionDescription | None = None) -> None:
        self.local = local
        self.remote = remote
        self.agreed: NegotiatedMedia | None = None
        """None where there is no usable remote description yet."""
        if remote is not None:
            with suppress(SdpError):
                self.agreed = check_answer(local, remote)

    def answer(self, data: bytes) -> SessionDescription:
        """Answer a later offer. Raises `SdpError`, and changes nothing, if that is impossible."""
        local = self.local
        names = audio_names(self._settled().codecs)
        offer = SessionDescription.parse(data, names)
        answer = make_answer(offer, (local.address, local.port), names, local.session_id)
        answer = answer._replace(version=local.version)
        if answer != local:
            answer = answer._replace(version=local.version + 1)
        self._agree(check_answer(answer, offer))
        self.local, self.remote = answer, offer
        return answer

    def offer_again(self) -> SessionDescription:
        """Our offer within a call: sendrecv, even after a hold (RFC 3261 §14.2)."""
        offer = self._settled()
        if offer.direction != "sendrecv":
            offer = offer._replace(direction="sendrecv", version=self.local.version + 1)
        self.local = offer
        return offer

    def take_answer(self, data: bytes) -> None:
        """Apply the answer to a later offer of ours; an unusable one is ignored."""
        try:
            answer = SessionDescription.parse(data, audio_names(self.local.codecs))
            self._agree(check_answer(self.local, answer))
        except SdpError:
            return
        self.remote = answer

    def _settled(self) -> SessionDescription:
        """Our description with the negotiated codec only."""
        if self.agreed is None:
            return self.local
        names = (self.agreed.codec_name, TELEPHONE_EVENT)
        codecs = tuple(codec for codec in self.local.codecs if codec.name in names)
        if codecs == self.local.codecs:
            return self.local
        return self.local._replace(codecs=codecs, version=self.local.version + 1)

    def _agree(self, agreed: NegotiatedMedia) -> None:
        """Set a later result, with the payload types of earlier telephone events.

        A remote that renumbers them may use the old number for a while (RFC 3264 §8.3.2). A number
        that now means audio is dropped.
        """
        earlier, now = self.agreed, agreed.event_types
        if earlier is not None and earlier.event_types != now:
            kept = [each for each in earlier.event_types if each not in (*now, agreed.payload_type)]
            agreed = agreed._replace(event_types=(*kept, *now)[-MAX_EVENT_TYPES:])
        self.agreed = agreed


def audio_names(codecs: Sequence[Codec]) -> list[str]:
    """The names of the codecs that carry audio."""
    return [codec.name for codec in codecs if codec.name != TELEPHONE_EVENT]


def _first_audio(codecs: tuple[Codec, ...], names: Sequence[str]) -> Codec | None:
    for codec in codecs:
        _, name, rate, _ = codec
        if name in names and name != TELEPHONE_EVENT and rate == 8000:
            return codec
    return None


def _event_types(*sides: tuple[Codec, ...]) -> tuple[int, ...]:
    """The payload types of telephone events of both sides.

    The remote should use our number (RFC 3264 §5.1); many use their own.
    """
    found = [
        payload_type
        for codecs in sides
        for payload_type, name, rate, _ in codecs
        if name == TELEPHONE_EVENT and rate == 8000
    ]
    return tuple(dict.fromkeys(found))[:MAX_EVENT_TYPES]


class _Audio(NamedTuple):
    """The audio of a description, without origin and port."""

    address: str
    codecs: tuple[Codec, ...]
    ptime: int
    maxptime: int
    direction: Direction


def _choose(session_text: str, media: list[str], names: Sequence[str]) -> tuple[int, int, _Audio]:
    """The index of the media section to use, its port and its audio. Raises `SdpError`."""
    unusable: tuple[int, int, _Audio] | None = None
    fault: SdpError | None = None
    for index, fields in enumerate([_media_fields(section) for section in media]):
        if fields[0] != "audio" or fields[2] != "RTP/AVP":
            continue
        try:
            port, audio = _read_audio(session_text, media[index], fields)
        except SdpError as error:
            fault = fault or error
            continue
        if port and _first_audio(audio.codecs, names) is not None:
            return index, port, audio
        unusable = unusable or (index, port, audio)
    if unusable is None:
        raise fault or SdpError("the SDP has no audio over RTP/AVP")
    return unusable


def _media_fields(section: str) -> list[str]:
    """Kind, port, protocol and formats of a media line."""
    fields = section.partition("\n")[0].split(None, 3)
    if len(fields) < 3:
        raise SdpError("a media line needs a kind, a port and a protocol")
    return fields


def _read_audio(session_text: str, section: str, fields: list[str]) -> tuple[int, _Audio]:
    """The port and the audio of a media section."""
    port = _number(fields[1].partition("/")[0], 65536)
    if port is None:
        raise SdpError("the audio line's port is not a number from 0 to 65535")
    is_usual = len(session_text) + len(section) <= MAX_REMEMBERED
    read = _usual_sections if is_usual else _read_sections
    return port, read(session_text, fields[3] if fields[3:] else "", section.partition("\n")[2])


def _media_lines(media: list[str]) -> tuple[str, ...]:
    return tuple([" ".join(section.partition("\n")[0].split()) for section in media])


def _read_sections(session_text: str, formats: str, audio_text: str) -> _Audio:
    """Parse the session section, and that of the audio, which overrides it."""
    section = _Section()
    section.read(session_text)
    section.rtpmap, section.fmtp = {}, {}
    section.read(audio_text)
    if section.connection is None:
        raise SdpError("the SDP says no address for its audio")
    address = _connection_address(section.connection)
    # RFC 2543 hold.
    direction = "inactive" if address in ("0.0.0.0", "::") else section.direction
    codecs = []
    numbers = [_number(text, 128) for text in formats.split()[:MAX_CODECS]]
    for number in dict.fromkeys(numbers):
        if number is not None:
            name, rate = section.rtpmap.get(number, (_STATIC_NAMES.get(number, ""), 8000))
            codecs.append(Codec(number, name, rate, section.fmtp.get(number, "")))
    return _Audio(address, tuple(codecs), section.ptime, section.maxptime, direction)


_usual_sections = lru_cache(maxsize=256)(_read_sections)


class _Section:
    """The relevant lines of a section; the last of repeated ones counts."""

    def __init__(self) -> None:
        self.connection: str | None = None
        self.direction: Direction = "sendrecv"
        self.ptime = DEFAULT_PTIME
        self.maxptime = 0
        self.rtpmap: dict[int, tuple[str, int]] = {}
        self.fmtp: dict[int, str] = {}

    def read(self, text: str) -> None:
        for line in text.split("\n"):
            if line.startswith("c="):
                self.connection = line[2:]
            elif line.startswith("a="):
                name, _, value = line[2:].strip().partition(":")
                self._read_attribute(name, value.strip())

    def _read_attribute(self, name: str, value: str) -> None:
        if name in _DIRECTIONS:
            self.direction = _DIRECTIONS[name]
        elif name == "ptime":
            self.ptime = _number(value, 201) or self.ptime
        elif name == "maxptime":
            self.maxptime = _number(value, 1001) or self.maxptime
        elif name in ("rtpmap", "fmtp"):
            number, _, meaning = value.partition(" ")
            payload_type = _number(number, 128)
            if payload_type is not None and name == "fmtp":
                self.fmtp[payload_type] = meaning.strip()
            elif payload_type is not None:
                self.rtpmap[payload_type] = _encoding(meaning[:MAX_NAME])


def _encoding(text: str) -> tuple[str, int]:
    """Name and clock rate of an rtpmap; names compare without regard to case (RFC 8866 §6.6)."""
    name, _, rate = text.strip().partition("/")
    name = name.strip().upper()
    if name == TELEPHONE_EVENT.upper():
        name = TELEPHONE_EVENT
    return name, _number(rate.partition("/")[0], 1_000_000) or 0


def _connection_address(value: str) -> str:
    """The IP address or host name of a c= line."""
    fields = value.split()
    if len(fields) < 3 or fields[0] != "IN":
        raise SdpError("a c= line needs a network type IN, an address type and an address")
    address = fields[2].partition("/")[0]
    try:
        return ip_literal(address)
    except ValueError:
        if is_host_name(address):
            return address.lower().removesuffix(".")
    raise SdpError("a c= line needs a unicast IP address or a host name")


def is_host_name(address: str) -> bool:
    """Whether an address of a c= line is a domain name (RFC 8866 §5.7).

    The last label must not be a number, so that a malformed IPv4 address does not count as a name
    (RFC 1123 §2.1, RFC 3696 §2).
    """
    name = address.removesuffix(".")
    labels = name.split(".")
    return (
        len(name) <= MAX_HOST_NAME
        and not labels[-1].isdigit()
        and all(_LABEL.match(label) for label in labels)
    )


def _number(text: str, limit: int) -> int | None:
    """A plain decimal below `limit`, else None."""
    if text.isdigit() and len(text) <= 20 and text.isascii() and (number := int(text)) < limit:
        return number
    return None
