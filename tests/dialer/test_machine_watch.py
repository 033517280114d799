"""What is played to a machine, and to a human, in each mode."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from bitel.answering_machine import DetectionProcess
from bitel.dialer.machine_watch import ENDED, MachineWatch
from bitel.domain.machines import MachineDetection
from bitel.rtp.shared_clip import SharedClip, clip_of
from tests.support.greeting_audio import Payload, sentence, silence, tone, word
from tests.support.waiting import until

PAUSE, MESSAGE = clip_of(b"\xd5" * 160), clip_of(b"\xd5" * 320)
HUMAN = silence(0.4) + word(0.4) + silence(3.0)
MACHINE = silence(0.4) + sentence(11)
BEEP = silence(0.3) + tone(0.5, 1400.0, level=-14.0) + silence(0.6)


class Media:
    def __init__(self) -> None:
        self.did: list[object] = []

    def replace(self, playlist: Sequence[SharedClip]) -> None:
        self.did.append(list(playlist))

    def stop(self, why: str = "") -> None:
        self.did.append(why)

    def stop_audio(self) -> None:
        self.did.append("deaf")


@pytest.fixture
async def process() -> AsyncIterator[DetectionProcess]:
    made = DetectionProcess()
    yield made
    await made.close()


def watch(process: DetectionProcess, mode: MachineDetection) -> tuple[MachineWatch, Media]:
    media = Media()
    return MachineWatch(mode, process, "alaw", media, [PAUSE], [MESSAGE]), media


@pytest.mark.parametrize("mode", MachineDetection)
@pytest.mark.parametrize("audio", [HUMAN, MACHINE], ids=["human", "machine"])
async def test_who_has_answered_is_known(
    process: DetectionProcess, mode: MachineDetection, audio: list[Payload]
) -> None:
    one, media = watch(process, mode)
    one.listen(audio)
    await until(lambda: one.verdict)
    assert one.verdict is not None
    assert one.verdict.value == ("human" if audio is HUMAN else "machine")
    if audio is HUMAN:
        assert media.did == ([] if mode is MachineDetection.MESSAGE else ["deaf"])
    elif mode is MachineDetection.FLAG:
        assert media.did == ["deaf"]
    elif mode is MachineDetection.HANGUP:
        assert media.did == ["deaf", ENDED]
    else:
        assert media.did == [[PAUSE, MESSAGE]], "until the record tone"
    one.close()


@pytest.mark.parametrize("before", [MACHINE, HUMAN], ids=["machine", "taken for a human"])
async def test_the_message_begins_after_the_record_tone(
    process: DetectionProcess, before: list[Payload]
) -> None:
    one, media = watch(process, MachineDetection.MESSAGE)
    one.listen(before)
    await until(lambda: one.verdict)
    one.listen(sentence(4) + BEEP)
    await until(lambda: [MESSAGE] in media.did)
    assert one.verdict is not None
    assert one.verdict.value == "machine"
    assert media.did[-2:] == [[MESSAGE], "deaf"]
    one.listen(BEEP)
    one.close()
    assert media.did.count([MESSAGE]) == 1


async def test_without_the_process_the_call_goes_on(
    process: DetectionProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    one, media = watch(process, MachineDetection.HANGUP)
    await until(lambda: media.did)
    assert one.verdict is None
    assert media.did == ["deaf"]
