"""Answering machines: who has answered a call, and what is played to a machine.

The call's audio begins at once, so that a human waits for nothing. Once a machine is recognised the
call is ended, or its message waits for the record tone and is played there, as the request says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from bitel.answering_machine import CallWatch, Decision, DetectionProcess, ToneEnd, Verdict
from bitel.domain.machines import MachineDetection
from bitel.rtp.shared_clip import SharedClip
from bitel.rtp.streamer import Law

ENDED: Final = "an answering machine has answered"
"""Why a call was ended."""

_LAWS: Final[dict[Law, str]] = {"alaw": "A", "ulaw": "U"}


class Playing(Protocol):
    """The audio of the call, as `MediaSession` plays it."""

    def replace(self, playlist: Sequence[SharedClip]) -> None:
        """Play another playlist in place of what is left."""

    def stop(self, why: str = "") -> None:
        """End the call."""

    def stop_audio(self) -> None:
        """Listen no further."""


class MachineWatch:
    """Watches one call. `pause` is silence of `LONGEST_GREETING` seconds, `message` what a machine
    is to record; both are for the mode `message`."""

    def __init__(
        self,
        mode: MachineDetection,
        process: DetectionProcess,
        law: Law,
        media: Playing,
        pause: Sequence[SharedClip],
        message: Sequence[SharedClip],
        on_message: Callable[[], None] = lambda: None,
    ) -> None:
        self._mode = mode
        self._media = media
        self._pause = pause
        self._message = message
        self._on_message = on_message
        self._is_playing_message = False
        self.verdict: Verdict | None = None
        """Who has answered; None: it is not known."""
        on_beep = self._beep_ended if mode is MachineDetection.MESSAGE else None
        self._watch: CallWatch = process.watch(_LAWS[law], self._decided, on_beep)

    def listen(self, payloads: Sequence[bytes | None]) -> None:
        """Examine audio of the callee."""
        for each in payloads:
            self._watch.push(each)

    def close(self) -> None:
        """End with the call."""
        self._watch.close()

    def _decided(self, decision: Decision) -> None:
        if self.verdict is None:
            self.verdict = decision.verdict
        if self._mode is not MachineDetection.MESSAGE:
            self._media.stop_audio()
        if decision.verdict is not Verdict.MACHINE or self._is_playing_message:
            return
        if self._mode is MachineDetection.HANGUP:
            self._media.stop(ENDED)
        elif self._mode is MachineDetection.MESSAGE:
            # Without a record tone it is played when a greeting must be over.
            self._on_message()
            self._media.replace([*self._pause, *self._message])

    def _beep_ended(self, beep: ToneEnd) -> None:
        # A record tone is a machine's, whatever the first words were like.
        self.verdict = Verdict.MACHINE
        if not self._is_playing_message:
            self._is_playing_message = True
            self._on_message()
            self._media.replace(self._message)
            self._media.stop_audio()
