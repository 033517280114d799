"""The files for TLS in front of the service, with a real nginx and a real Caddy."""

from __future__ import annotations

import contextlib
import os
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from bitel.client import Client
from bitel.demo.stage import Stage, free_port
from bitel.recordings.sample import write_sample
from tests.support.certificates import Authority, Certificate
from tests.support.prerequisites import need
from tests.support.waiting import wait_until

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
NAME = "calls.example.com"
LARGEST_UPLOAD = 32 * 1024 * 1024


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    need(found is not None, f"{name} is not installed")
    assert found is not None
    return found


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    """`text` with what an operator has to replace; each must be there."""
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


def nginx(folder: Path, service: int, port: int, shown: Certificate) -> list[str]:
    live = f"/etc/letsencrypt/live/{NAME}"
    server = replaced(
        (DEPLOY / "nginx.conf").read_text(),
        (f"{live}/fullchain.pem", str(shown.certificate)),
        (f"{live}/privkey.pem", str(shown.key)),
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("    listen [::]:443 ssl;\n", ""),
        ("127.0.0.1:8080", f"127.0.0.1:{service}"),
    )
    temporary = "\n".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.getuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(
        f"{user} daemon off; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off; {temporary}\n{server}\n}}\n"
    )
    command = [program("nginx"), "-p", str(folder), "-e", f"{folder}/error.log", "-c", str(config)]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    return command


def caddy(folder: Path, service: int, port: int, shown: Certificate) -> list[str]:
    site = replaced(
        (DEPLOY / "Caddyfile").read_text(),
        (f"{NAME} {{", f"https://{NAME}:{port} {{\n\tbind 127.0.0.1"),
        ("127.0.0.1:8080", f"127.0.0.1:{service}"),
    )
    site = site.replace(
        "\tbind 127.0.0.1", f"\tbind 127.0.0.1\n\ttls {shown.certificate} {shown.key}"
    )
    config = folder / "Caddyfile"
    config.write_text(
        f"{{\n\tadmin off\n\tauto_https off\n\tstorage file_system {folder}/caddy\n}}\n{site}"
    )
    command = [program("caddy"), "run", "--adapter", "caddyfile", "--config", str(config)]
    checked = subprocess.run(
        [program("caddy"), "validate", "--adapter", "caddyfile", "--config", str(config)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    return command


Proxy = Callable[[Path, int, int, Certificate], list[str]]


@contextlib.contextmanager
def proxied(folder: Path, proxy: Proxy, service: int) -> Iterator[tuple[httpx.Client, str]]:
    """A client that resolves the proxy's name to loopback and trusts its certificate."""
    folder.mkdir()
    authority = Authority.make(folder)
    port = free_port()
    command = proxy(folder, service, port, authority.sign(f"DNS:{NAME}"))
    log = folder / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, "HOME": str(folder)}
        )
    try:
        # Not the default context: Python 3.13's wants extensions that this authority leaves out.
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trust.load_verify_locations(authority.files.certificate)
        url = f"https://127.0.0.1:{port}"
        with httpx.Client(base_url=url, verify=trust, timeout=60.0) as client:
            client.headers["Host"] = NAME

            def listens() -> bool:
                assert process.poll() is None, log.read_text()
                with contextlib.suppress(httpx.TransportError):
                    client.get("/healthz", extensions={"sni_hostname": NAME})
                    return True
                return False

            wait_until(listens, explain=log.read_text)
            yield client, str(authority.files.certificate)
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("proxy", [nginx, caddy])
def test_what_clients_do_goes_through(tmp_path: Path, proxy: Proxy) -> None:
    sample = tmp_path / "sample.wav"
    write_sample(sample, 0.3)
    with (
        Stage(tmp_path / "stage", ["*=answer:after=0.1"], record=False) as stage,
        contextlib.ExitStack() as stack,
    ):
        stage.start_phone()
        stage.start_service()
        http, _ = stack.enter_context(proxied(tmp_path / "proxy", proxy, stage.ports.http))
        sni = {"sni_hostname": NAME}
        http.headers["Authorization"] = f"Bearer {stage.token()}"
        assert http.get("/readyz", extensions=sni).json()["status"] == "ready"
        with sample.open("rb") as file:
            answer = http.post("/api/v2/files/voice", files={"file": file}, extensions=sni)
        voice = answer.json()["result"]["id"]
        body = {"phoneNumber": "09121234567", "voiceId": voice}
        call = http.post("/api/v2/voice/single", json=body, extensions=sni).json()["result"]
        with Client(http.headers["Authorization"].removeprefix("Bearer "), stage.url) as client:
            assert client.wait(call["id"], 30)["status"] == "NORMAL"
        heard = http.get(f"/api/v2/files/voice/{voice}", extensions=sni)
        assert heard.headers["content-type"] == "audio/wav"

        # The service itself judges how large an upload may be.
        largest = {"file": ("zeros.wav", bytes(LARGEST_UPLOAD))}
        refused = http.post("/api/v2/files/voice", files=largest, extensions=sni)
        assert (refused.status_code, refused.json()["error"]) == (415, "UnsupportedMedia")
        larger = {"file": ("zeros.wav", bytes(LARGEST_UPLOAD + 1))}
        refused = http.post("/api/v2/files/voice", files=larger, extensions=sni)
        assert (refused.status_code, refused.json()["error"]) == (413, "PayloadTooLarge")

        assert httpx.get(f"{stage.url}/metrics").status_code == 200
        assert http.get("/metrics", extensions=sni).status_code == 404
        # Where the proxy lets it through, the service knows that the reader is elsewhere.
        elsewhere = {"X-Forwarded-For": "203.0.113.9"}
        assert httpx.get(f"{stage.url}/metrics", headers=elsewhere).status_code == 403
        assert "bitel" in http.get("/docs", extensions=sni).text
        assert stage.stop_service() == 0
