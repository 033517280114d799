"""A real PgBouncer in front of a PostgreSQL server."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from sqlalchemy import make_url

from bitel.demo.stage import free_port
from tests.support.prerequisites import need
from tests.support.waiting import wait_for_port

Mode = Literal["session", "transaction"]


@contextlib.contextmanager
def pgbouncer(url: str, mode: Mode, *, pool_size: int = 8, ignores: str = "") -> Iterator[str]:
    """The URL of the database at `url` by way of a PgBouncer of its own, which ends with the block.

    `ignores` is its setting `ignore_startup_parameters`.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    need(program is not None, "pgbouncer is not installed")
    assert program is not None
    server = make_url(url)
    host = server.host or server.query.get("host")
    port = free_port()
    # Not in pytest's own folder: PgBouncer does not run as root.
    folder = Path(tempfile.mkdtemp(prefix="bitel-pgbouncer-"))
    # The server trusts local connections, whatever password comes.
    (folder / "users.txt").write_text(f'"{server.username}" ""\n')
    config = folder / "pgbouncer.ini"
    log = folder / "log"
    config.write_text(
        f"""[databases]
* = host={host} {f"port={server.port}" if server.port else ""}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder / "users.txt"}
pool_mode = {mode}
default_pool_size = {pool_size}
max_client_conn = 200
ignore_startup_parameters = {ignores}
logfile = {log}
"""
    )
    command = [program, str(config)]
    if os.getuid() == 0:
        # PgBouncer refuses to be root; the server's own user can reach its socket.
        user = pwd.getpwuid(os.stat(str(host)).st_uid)
        for path in (folder, *folder.iterdir()):
            os.chown(path, user.pw_uid, user.pw_gid)
        command = [program, "--user", user.pw_name, str(config)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for_port(port, process, log)
        through = server.set(host="127.0.0.1", port=port, query={}, password="any")
        yield through.render_as_string(hide_password=False)
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)
