"""The service process: builds its parts, runs them, and stops them within a time limit.

`build` makes the parts of a role from the settings. `run` starts them in order and stops them in
the opposite order. The database and the storage of recordings are opened first and closed last;
HTTP starts after the dialers and goes on while their calls end, so that clients can still read
their status. `dialer_worker` runs one dialer, active or in standby. `http_server` runs uvicorn on a
socket. `reloading` decides what SIGHUP changes, `shutdown` gives each step its share of the time.
`supervisor` runs several processes of this kind on one machine.
"""

from bitel.service.run import Role, Running, running, serve
from bitel.service.supervisor import Supervisor, end_with_parent

__all__ = ["Role", "Running", "Supervisor", "end_with_parent", "running", "serve"]
