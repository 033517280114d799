"""A service whose HTTP server ends does not go on without it."""

from __future__ import annotations

import asyncio

import pytest
import uvicorn
from fastapi import FastAPI

from bitel.service import http_server
from bitel.service.shutdown import Shutdown
from bitel.settings import HttpSettings


async def test_a_server_that_ends_later_ends_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = asyncio.Event()
    main_loop = uvicorn.Server.main_loop

    async def breaking(server: uvicorn.Server) -> None:
        running = asyncio.create_task(main_loop(server))
        await broken.wait()
        server.should_exit = True
        await running
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(uvicorn.Server, "main_loop", breaking)
    stop = asyncio.Event()
    with pytest.raises(RuntimeError, match="unforeseen"):
        async with http_server.serving(
            FastAPI(), HttpSettings(), ("127.0.0.1", 0), "http.port", Shutdown(1.0), stop
        ) as address:
            assert address[1] > 0
            assert not stop.is_set()
            broken.set()
            await asyncio.wait_for(stop.wait(), 5)


async def test_one_that_ends_at_once_is_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(server: uvicorn.Server, sockets: object = None) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(uvicorn.Server, "startup", broken)
    with pytest.raises(RuntimeError, match="unforeseen"):
        async with asyncio.timeout(5):
            async with http_server.serving(
                FastAPI(),
                HttpSettings(),
                ("127.0.0.1", 0),
                "http.port",
                Shutdown(1.0),
                asyncio.Event(),
            ):
                pytest.fail("it did not start")
