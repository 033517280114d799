"""Schemas of request bodies; `reading` parses them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from bitel.domain.calling_hours import LONGEST_TEXT
from bitel.domain.calls import Lane
from bitel.domain.menus import DEFAULT_ATTEMPTS, DEFAULT_WAIT, MOST_DIGITS
from bitel.domain.retry import MOST_WAITS

DEFAULT_RETRY_COUNT: Final = 1
DEFAULT_RETRY_INTERVAL: Final = 60
DEFAULT_TIME_TO_LIVE: Final = 14_400
LONGEST_TIME_TO_LIVE: Final = 7 * 86_400
OTP_TIME_TO_LIVE: Final = 300
DEFAULT_REPEAT_COUNT: Final = 2
LONGEST_CODE: Final = 10
"""Maximum digits of a code."""
MOST_REFERENCE: Final = 100
"""Characters of a name or a reference."""
LAST_DATE: Final = 4_102_444_800
"""Unix seconds of the year 2100: later dates are probably milliseconds."""
HIGHEST_RATE: Final = 10_000
MOST_CHANNELS: Final = 100_000
MOST_EVENTS: Final = 5
LONGEST_URL: Final = 2048

LONGEST_WAIT: Final = 60
MOST_ATTEMPTS: Final = 5
MenuKey = Annotated[str, Field(pattern=r"^[0-9*#]$")]

PhoneNumber = Annotated[
    str,
    Field(
        description="As written in the service's region (09121234567), or international "
        "(+98…, 0098…); spaces, dashes, Persian and Arabic digits are understood."
    ),
]
PhoneNumbers = Annotated[
    list[str] | str,
    Field(
        description="The numbers, each as `phoneNumber` elsewhere; or one string of them, "
        "separated by commas. A number that is named twice is called twice."
    ),
]
VoiceId = Annotated[
    str, Field(description="The id of a recording that POST /api/v2/files/voice answered.")
]
Text = Annotated[str, Field(description="What is to be spoken, in plain words.")]
Language = Annotated[
    str | None,
    Field(description="The language of the text, as in `fa` or `en`; the service's if left out."),
]

_NUMBER: Final = "09121234567"
_NUMBERS: Final = ["09121234567", "+989351234567"]
_VOICE_ID: Final = "0197b2a4c1d07e63a5f81c0d9be24f17"
_TEXT: Final = "سلام، نوبت شما فردا ساعت ۹ است."


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


class Body(BaseModel):
    """A JSON body: types are strict, unknown fields are ignored.

    An optional field may also be `null`.
    """

    model_config = ConfigDict(
        strict=True, extra="ignore", frozen=True, alias_generator=to_camel, validate_by_alias=True
    )


class CallTerms(Body):
    """Fields of every request that places calls."""

    lane: ClassVar[Lane] = Lane.SINGLE

    retry_count: Annotated[
        Annotated[int, Field(ge=0, le=10)] | None,
        Field(
            description="How often to call again after busy or no answer; "
            f"{DEFAULT_RETRY_COUNT} if left out."
        ),
    ] = None
    retry_interval: Annotated[
        Annotated[int, Field(ge=5, le=86_400)] | None,
        Field(description=f"Seconds between attempts; {DEFAULT_RETRY_INTERVAL} if left out."),
    ] = None
    time_to_live: Annotated[
        Annotated[int, Field(ge=1, le=LONGEST_TIME_TO_LIVE)] | None,
        Field(
            description="Seconds after which no attempt starts any more; "
            f"{DEFAULT_TIME_TO_LIVE} if left out, {OTP_TIME_TO_LIVE} for one-time passwords."
        ),
    ] = None
    server_id: Annotated[
        str | None,
        Field(description="One of GET /api/v2/servers; the project's default dialer if left out."),
    ] = None

    @property
    def retries(self) -> int:
        """`retryCount`, or its default."""
        return DEFAULT_RETRY_COUNT if self.retry_count is None else self.retry_count

    @property
    def seconds_between(self) -> int:
        """`retryInterval`, or its default."""
        return DEFAULT_RETRY_INTERVAL if self.retry_interval is None else self.retry_interval

    @property
    def seconds_to_live(self) -> int:
        """`timeToLive`, or its default."""
        return DEFAULT_TIME_TO_LIVE if self.time_to_live is None else self.time_to_live


Label = Annotated[str, Field(max_length=MOST_REFERENCE)]
Date = Annotated[float, Field(ge=0, le=LAST_DATE, allow_inf_nan=False)]
Wait = Annotated[int, Field(ge=5, le=86_400)]
Rate = Annotated[float, Field(gt=0, le=HIGHEST_RATE, allow_inf_nan=False)]
Channels = Annotated[int, Field(ge=1, le=MOST_CHANNELS)]


class RetryBody(Body):
    """Waits after each outcome; where no wait is left, the outcome is final."""

    busy: Annotated[
        list[Wait], Field(description="Seconds to wait after the 1st, 2nd … busy.")
    ] = []
    no_answer: Annotated[
        list[Wait], Field(description="Seconds to wait after the 1st, 2nd … attempt that rang.")
    ] = []

    @model_validator(mode="after")
    def _check(self) -> RetryBody:
        if len(self.busy) + len(self.no_answer) > MOST_WAITS:
            raise ValueError(f"retry must hold at most {MOST_WAITS} waits in all")
        return self


class WebhookBody(Body):
    """Where the events of the calls go, in place of the project's webhook."""

    url: Annotated[str, Field(min_length=1, max_length=LONGEST_URL)]
    events: Annotated[
        list[str] | None,
        Field(
            max_length=MOST_EVENTS,
            description="Types of events besides the one at the end of each call.",
        ),
    ] = None


class CollectBody(Body):
    """Digits that are collected, in place of keys with actions."""

    digits: Annotated[
        int, Field(ge=1, le=MOST_DIGITS, description="How many; the last one ends the call.")
    ]
    end: Annotated[
        Annotated[str, Field(pattern=r"^[*#]$")] | None,
        Field(description="The key that ends them earlier, as in `#`."),
    ] = None


class KeyBody(Body):
    """What a key does. Without `repeat` or `menu` the call ends after it."""

    play: Annotated[str | None, Field(description="The id of a recording that is played then.")] = (
        None
    )
    say: Annotated[
        str | None, Field(max_length=2000, description="A text that is spoken, in its place.")
    ] = None
    report: Annotated[
        Annotated[str, Field(pattern=r"^[\w.\-]{1,32}$")] | None,
        Field(description="A word that results and counts show: letters, digits, `_`, `.`, `-`."),
    ] = None
    transfer: Annotated[
        str | None, Field(description="Not possible in this version: it is refused.")
    ] = None
    opt_out: Annotated[
        bool | None,
        Field(description="Add the number to the project's do-not-call list, and confirm it."),
    ] = None
    repeat: Annotated[
        bool | None,
        Field(description="Play the audio before this key again, `attempts` times at most."),
    ] = None
    hangup: Annotated[bool | None, Field(description="End the call, as without it.")] = None
    menu: Annotated[
        SubmenuBody | None, Field(description="The keys that follow; `play` or `say` asks.")
    ] = None

    @model_validator(mode="after")
    def _check(self) -> KeyBody:
        if self.play is not None and self.say is not None:
            raise ValueError("a key of menu has play or say, not both")
        if self.transfer is not None:
            raise ValueError("transfer in menu is not possible in this version; leave it out")
        follows = {"repeat": self.repeat, "hangup": self.hangup, "menu": self.menu}
        if sum(map(bool, follows.values())) > 1:
            raise ValueError("a key of menu has one of repeat, hangup and menu, not several")
        if self.repeat and (self.play is not None or self.say is not None):
            raise ValueError("a key of menu with repeat plays the audio before it, and no other")
        return self


class _Keys(Body):
    """Fields that a menu and one below it share."""

    collect: CollectBody | None = None
    wait: Annotated[
        Annotated[int, Field(ge=1, le=LONGEST_WAIT)] | None,
        Field(description=f"Seconds to wait for a key; {DEFAULT_WAIT} if left out."),
    ] = None
    attempts: Annotated[
        Annotated[int, Field(ge=1, le=MOST_ATTEMPTS)] | None,
        Field(
            description="How often the audio is played while no key is pressed; "
            f"{DEFAULT_ATTEMPTS} if left out."
        ),
    ] = None


class LastKeyBody(KeyBody):
    """What a key of the second level does."""

    menu: None = None


class SubmenuBody(_Keys):
    """A menu below another; it has no further one."""

    keys: dict[MenuKey, LastKeyBody] = {}

    @model_validator(mode="after")
    def _check(self) -> SubmenuBody:
        return _check_menu(self)


class MenuBody(_Keys):
    """What the keys do that the callee presses while the call's audio is played, or after it."""

    keys: Annotated[dict[MenuKey, KeyBody], Field(description="By key: 0 to 9, `*` and `#`.")] = {}

    @model_validator(mode="after")
    def _check(self) -> MenuBody:
        return _check_menu(self)


_M = TypeVar("_M", SubmenuBody, MenuBody)


def _check_menu(body: _M) -> _M:
    if bool(body.keys) == (body.collect is not None):
        raise ValueError("menu must have either keys or collect, in each of its levels")
    return body


class RequestTerms(CallTerms):
    """Fields of every request for calls with recordings or texts."""

    name: Annotated[Label | None, Field(description="A name for people.")] = None
    reference: Annotated[
        Label | None, Field(description="Your own name for it, given back everywhere.")
    ] = None
    start_at: Annotated[
        Date | None, Field(description="Unix seconds before which no attempt starts.")
    ] = None
    end_at: Annotated[
        Date | None,
        Field(description="Unix seconds from which no attempt starts, whatever timeToLive says."),
    ] = None
    retry: Annotated[
        RetryBody | None, Field(description="In place of retryCount and retryInterval.")
    ] = None
    caller_id: Annotated[
        str | None, Field(max_length=32, description="One of the dialer's caller ids.")
    ] = None
    webhook: WebhookBody | None = None
    menu: MenuBody | None = None
    machine_detection: Annotated[
        Literal["off", "flag", "hangup", "message"] | None,
        Field(
            description="What is done if an answering machine answers: `off` nothing, `flag` it is "
            "noted, `hangup` the call ends, `message` the record tone is waited for."
        ),
    ] = None
    machine_voice_id: Annotated[
        str | None,
        Field(description="With `message`: the recording that a machine gets, if not the same."),
    ] = None

    @model_validator(mode="after")
    def _check_terms(self) -> Self:
        given = self.retry_count is not None or self.retry_interval is not None
        if self.retry is not None and given:
            raise ValueError("retry takes the place of retryCount and retryInterval; give either")
        if self.start_at is not None and self.end_at is not None and self.end_at <= self.start_at:
            raise ValueError("endAt must be later than startAt")
        if self.machine_voice_id is not None and self.machine_detection != "message":
            raise ValueError("machineVoiceId needs machineDetection to be message")
        return self


class RecipientBody(Body):
    """A person to call."""

    phone_number: PhoneNumber
    reference: Annotated[
        Label | None, Field(description="Your own name for this call; the request's if left out.")
    ] = None
    variables: Annotated[
        dict[str, str | int | float] | None,
        Field(description="Values for the `{names}` that a text holds."),
    ] = None
    time_zone: Annotated[
        str | None,
        Field(
            max_length=64,
            description="An IANA name, for calling windows; as the number says if left out.",
        ),
    ] = None


class BatchTerms(RequestTerms):
    """Fields of every request for many calls, which are one campaign."""

    lane = Lane.BATCH

    phone_numbers: PhoneNumbers | None = None
    recipients: Annotated[
        list[RecipientBody] | None, Field(description="In place of phoneNumbers.")
    ] = None
    list_id: Annotated[
        str | None,
        Field(
            description="The id that POST /api/v2/files/list answered, in place of phoneNumbers."
        ),
    ] = None
    skip_invalid: Annotated[
        bool | None,
        Field(description="Leave bad recipients out, and list them as `skipped` beside `result`."),
    ] = None
    calls_per_second: Annotated[
        Rate | None, Field(description="Attempts that start a second, at most.")
    ] = None
    max_channels: Annotated[Channels | None, Field(description="Attempts at once, at most.")] = None
    window: Annotated[
        str | None,
        Field(
            max_length=LONGEST_TEXT,
            description="Hours at which calls may ring, such as `sat-wed 09:00-21:00 Asia/Tehran`; "
            "with `local` for a zone, by the clock of each recipient. The project's own window "
            "applies too.",
        ),
    ] = None

    @model_validator(mode="after")
    def _check_recipients(self) -> Self:
        given = [self.phone_numbers, self.recipients, self.list_id]
        if sum(each is not None for each in given) != 1:
            if all(each is None for each in given):
                raise ValueError("phoneNumbers is missing; recipients or listId may take its place")
            raise ValueError("give one of phoneNumbers, recipients and listId, not several")
        return self


class SingleBody(RequestTerms):
    """A recording, to one number."""

    model_config = _example(phoneNumber=_NUMBER, voiceId=_VOICE_ID, retryCount=2)

    phone_number: PhoneNumber
    voice_id: VoiceId


class BatchBody(BatchTerms):
    """A recording, to many numbers."""

    model_config = _example(phoneNumbers=_NUMBERS, voiceId=_VOICE_ID, retryCount=2)

    voice_id: VoiceId


class OtpBody(CallTerms):
    """A code, read out digit by digit to one number."""

    lane = Lane.OTP
    model_config = _example(phoneNumber=_NUMBER, text="4071", repeatCount=2)

    phone_number: PhoneNumber
    text: Annotated[
        str,
        Field(description=f"1 to {LONGEST_CODE} digits; Persian and Arabic ones are understood."),
    ]
    voice_id: Annotated[
        str | None, Field(description="A recording that is played before the digits.")
    ] = None
    repeat_count: Annotated[
        Annotated[int, Field(ge=1, le=10)] | None,
        Field(
            description=f"How often the digits are read; {DEFAULT_REPEAT_COUNT} times if left out."
        ),
    ] = None
    language: Language = None

    @property
    def seconds_to_live(self) -> int:
        """`timeToLive`, or its default for one-time passwords."""
        return OTP_TIME_TO_LIVE if self.time_to_live is None else self.time_to_live

    @property
    def repeats(self) -> int:
        """`repeatCount`, or its default."""
        return DEFAULT_REPEAT_COUNT if self.repeat_count is None else self.repeat_count


class SingleTtsBody(RequestTerms):
    """A text, spoken to one number."""

    model_config = _example(phoneNumber=_NUMBER, text=_TEXT, language="fa")

    phone_number: PhoneNumber
    text: Text
    language: Language = None


class BatchTtsBody(BatchTerms):
    """A text, spoken to many numbers."""

    model_config = _example(phoneNumbers=_NUMBERS, text=_TEXT, language="fa")

    text: Annotated[
        str,
        Field(
            description="What is to be spoken, in plain words; with `recipients` or a list it may "
            "hold `{names}` of their variables."
        ),
    ]
    language: Language = None


class CampaignPatch(Body):
    """Changes of a campaign; null removes a limit or the name."""

    model_config = _example(callsPerSecond=5, maxChannels=20)

    name: Label | None = None
    end_at: Annotated[
        Date | None, Field(description="Unix seconds from which no attempt starts.")
    ] = None
    calls_per_second: Annotated[
        Rate | None, Field(description="Attempts that start a second, at most.")
    ] = None
    max_channels: Annotated[Channels | None, Field(description="Attempts at once, at most.")] = None


PlacingBody = SingleBody | BatchBody | OtpBody | SingleTtsBody | BatchTtsBody
"""The body of a request that places calls."""


class SpeechBody(Body):
    """A text that becomes a recording."""

    model_config = _example(text=_TEXT, language="fa")

    text: Text
    language: Language = None


class DoNotCallBody(Body):
    """Numbers that are not to be called: one, or many."""

    model_config = _example(phoneNumbers=_NUMBERS)

    phone_number: PhoneNumber | None = None
    phone_numbers: Annotated[
        list[str] | str | None,
        Field(description="In place of `phoneNumber`: a list, or one string separated by commas."),
    ] = None
