"""An HTTP client of the API that repeats each request until it is answered."""

from __future__ import annotations

import io
import itertools
import math
import random
import struct
import threading
import time
import wave
from collections.abc import Sequence
from typing import Any, Final

import httpx

RATE: Final = 8000
UNREACHABLE: Final = (502, 503, 504, 429)
CLIENT_TIMEOUT: Final = 10.0


class NoAnswerError(Exception):
    """The service gave no usable answer for as long as it was asked."""


class Api:
    """The API of the service at `url`. `problems` are answers that it must never give."""

    def __init__(self, url: str, name: str = "chaos", others: Sequence[str] = ()) -> None:
        """The keys of its requests begin with `name`.

        A request that gets no answer is repeated at `others` in turn, as behind a balancer.
        """
        self._name = name
        self._urls = (url, *others)
        self.problems: list[str] = []
        self._numbers = itertools.count()
        self._client = httpx.Client(base_url=url, timeout=CLIENT_TIMEOUT)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def authorise(self, token: str) -> None:
        """Ask with this token from now on."""
        self._client.headers["Authorization"] = f"Bearer {token}"

    def place(self, path: str, body: dict[str, Any], patience: float) -> Any:
        """POST with an Idempotency-Key until it is answered with 200; the result."""
        headers = {"Idempotency-Key": f"{self._name}-{next(self._numbers)}"}
        return self._until_answered("POST", path, patience, json=body, headers=headers)

    def status(self, call_id: str, patience: float = 30.0) -> Any | None:
        """The call as it stands; None if it is not known."""
        return self._until_answered("GET", f"/api/v2/voice/status/{call_id}", patience)

    def balance(self) -> float:
        """What the project may still spend."""
        return float(self._until_answered("GET", "/api/v2/account", 30.0)["balance"])

    def recording(self, seconds: float) -> str:
        """Upload a recording of so many seconds; its id."""
        file = {"file": ("chaos.wav", tone(seconds))}
        answer = self._until_answered("POST", "/api/v2/files/voice", 60.0, files=file)
        return str(answer["id"])

    def upload(self) -> None:
        """Upload a long recording once, whatever comes of it."""
        self._once("/api/v2/files/voice", files={"file": ("long.wav", tone(60.0))})

    def speak(self) -> None:
        """Have a text spoken once, whatever comes of it."""
        words = " ".join(str(random.randrange(10_000)) for _ in range(80))
        self._once("/api/v2/files/tts", json={"text": words, "language": "en"})

    def _once(self, path: str, **arguments: Any) -> None:
        try:
            answer = self._client.post(path, **arguments, timeout=60.0)
        except httpx.HTTPError:
            return
        self._judge(path, answer)

    def _until_answered(self, method: str, path: str, patience: float, **arguments: Any) -> Any:
        until = time.monotonic() + patience
        said = "nothing"
        for url in itertools.cycle(self._urls):
            if time.monotonic() >= until:
                break
            try:
                answer = self._client.request(method, url + path, **arguments)
            except httpx.HTTPError as error:
                said = str(error)
            else:
                self._judge(path, answer)
                if answer.status_code == 200:
                    return answer.json()["result"]
                if answer.status_code == 404 and method == "GET":
                    return None
                said = f"{answer.status_code} {answer.text[:200]}"
                # 409: the first request with this key is still at work.
                if answer.status_code not in (*UNREACHABLE, 409, 500):
                    break
            time.sleep(0.2)
        raise NoAnswerError(f"{method} {path}: {said}")

    def _judge(self, path: str, answer: httpx.Response) -> None:
        if answer.status_code >= 500 and answer.status_code not in UNREACHABLE:
            with self._lock:
                self.problems.append(f"{path}: {answer.status_code} {answer.text[:200]}")


def tone(seconds: float) -> bytes:
    """A WAV of so many seconds."""
    samples = (
        int(9000 * math.sin(2 * math.pi * 440 * n / RATE)) for n in range(round(seconds * RATE))
    )
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(b"".join(struct.pack("<h", each) for each in samples))
    return data.getvalue()
