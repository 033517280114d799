"""The blocking and the asynchronous client, used alike in tests on an event loop."""

from __future__ import annotations

import asyncio
from typing import Any

from bitel.client import AsyncClient, Client


class Awaited:
    """An AsyncClient with every answer awaited: then both are used alike."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        async def ask(*arguments: Any, **options: Any) -> Any:
            answer = method(*arguments, **options)
            if hasattr(answer, "__aiter__"):
                return [item async for item in answer]
            return await answer

        return ask


class Threaded:
    """A Client on a thread, since the service runs in the loop of the test."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def ask(*arguments: Any, **options: Any) -> Any:
            answer = method(*arguments, **options)
            return list(answer) if hasattr(answer, "__next__") else answer

        async def asked(*arguments: Any, **options: Any) -> Any:
            return await asyncio.to_thread(ask, *arguments, **options)

        return asked
