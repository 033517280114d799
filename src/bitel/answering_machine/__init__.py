"""Detection of answering machines from the audio of the first seconds after the answer.

`measures` turns 20 ms of G.711 into a level and a tone, for many calls in one step. `detector`
decides for one call between human and machine from those, by the timing of words and pauses, and
`beep` finds the record tone after which a message may begin. Both are plain state without I/O.

`process` is the dialer's side of a process of its own, `worker`, that does this for all calls of a
dialer; `messages` are what the two send to each other. It starts with the first call that wants a
decision. If it dies, calls go on and their verdict is open.
"""

from bitel.answering_machine.beep import BeepDetector, BeepSettings, Tone, ToneEnd
from bitel.answering_machine.detector import (
    Decision,
    Detector,
    DetectorSettings,
    Reason,
    Verdict,
)
from bitel.answering_machine.measures import FrameMeasures, FrameWindow, measure
from bitel.answering_machine.process import CallWatch, DetectionProcess

__all__ = [
    "BeepDetector",
    "BeepSettings",
    "CallWatch",
    "Decision",
    "DetectionProcess",
    "Detector",
    "DetectorSettings",
    "FrameMeasures",
    "FrameWindow",
    "Reason",
    "Tone",
    "ToneEnd",
    "Verdict",
    "measure",
]
