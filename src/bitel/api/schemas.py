"""Schemas of request bodies; `reading` parses them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from bitel.domain.calls import Lane

DEFAULT_RETRY_COUNT: Final = 1
DEFAULT_RETRY_INTERVAL: Final = 60
DEFAULT_TIME_TO_LIVE: Final = 14_400
LONGEST_TIME_TO_LIVE: Final = 7 * 86_400
OTP_TIME_TO_LIVE: Final = 300
DEFAULT_REPEAT_COUNT: Final = 2
LONGEST_CODE: Final = 10
"""Maximum digits of a code."""

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


class SingleBody(CallTerms):
    """A recording, to one number."""

    model_config = _example(phoneNumber=_NUMBER, voiceId=_VOICE_ID, retryCount=2)

    phone_number: PhoneNumber
    voice_id: VoiceId


class BatchBody(CallTerms):
    """A recording, to many numbers."""

    lane = Lane.BATCH
    model_config = _example(phoneNumbers=_NUMBERS, voiceId=_VOICE_ID, retryCount=2)

    phone_numbers: PhoneNumbers
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


class SingleTtsBody(CallTerms):
    """A text, spoken to one number."""

    model_config = _example(phoneNumber=_NUMBER, text=_TEXT, language="fa")

    phone_number: PhoneNumber
    text: Text
    language: Language = None


class BatchTtsBody(CallTerms):
    """A text, spoken to many numbers."""

    lane = Lane.BATCH
    model_config = _example(phoneNumbers=_NUMBERS, text=_TEXT, language="fa")

    phone_numbers: PhoneNumbers
    text: Text
    language: Language = None


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
