"""Certificates for tests of TLS: an authority of the test's own, and what it signs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.prerequisites import need_openssl

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_DAYS = "2"


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files of a certificate and its key."""

    certificate: Path
    key: Path

    def in_one_file(self) -> Path:
        """Key and certificate together, as some programs want them."""
        both = self.certificate.with_suffix(".both.pem")
        both.write_text(self.key.read_text() + self.certificate.read_text())
        return both


@dataclass(frozen=True, slots=True)
class Authority:
    """Somebody who signs certificates. Who trusts `files.certificate` trusts those."""

    folder: Path
    files: Certificate

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """A new one, whose files are kept in `folder`."""
        files = Certificate(folder / "ca.pem", folder / "ca.key")
        _openssl(
            *("req", "-x509", *_KEY, "-keyout", str(files.key), "-out", str(files.certificate)),
            *("-days", _DAYS, "-subj", "/CN=Authority of this test"),
        )
        return cls(folder, files)

    def sign(self, name: str) -> Certificate:
        """A certificate for `name`, as in `IP:127.0.0.1` or `DNS:sip.example.test`."""
        stem = name.replace(":", "-")
        made = Certificate(self.folder / f"{stem}.pem", self.folder / f"{stem}.key")
        _openssl(
            *("req", "-x509", *_KEY, "-keyout", str(made.key), "-out", str(made.certificate)),
            *("-days", _DAYS, "-subj", f"/CN={name.partition(':')[2]}"),
            *("-addext", f"subjectAltName={name}", "-addext", "basicConstraints=critical,CA:FALSE"),
            *("-CA", str(self.files.certificate), "-CAkey", str(self.files.key)),
        )
        return made


def _openssl(*arguments: str) -> None:
    need_openssl()
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
