"""Certificates and TLS contexts for SIP over TLS (RFC 3261 §26.3, RFC 5922)."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path


class TlsFileError(ValueError):
    """A file of certificates or keys can't be used; the message says which and why."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. `ca` has the trusted certificates; None: the system's store.

    `certificate` and `key` are ours, for servers that request one and for our listener, which needs
    them. With `ask_clients`, clients must present a certificate signed by `ca`.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    ask_clients: bool = False

    def client_context(self) -> ssl.SSLContext:
        """The context for connections that we open. Raises TlsFileError."""
        context = ssl.create_default_context()
        if self.ca is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            _trust(context, self.ca)
        self.show(context)
        return context

    def server_context(self) -> ssl.SSLContext | None:
        """The context of our listener; None without a certificate. Raises TlsFileError."""
        if self.certificate is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION  # costs us more than the client
        self.show(context)
        if self.ask_clients:
            if self.ca is None:
                raise TlsFileError("to ask clients for a certificate, name the CA that signs them")
            _trust(context, self.ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def show(self, context: ssl.SSLContext) -> None:
        """Load the certificate and key into a context. Raises TlsFileError."""
        if self.certificate is None:
            if self.key is not None:
                raise TlsFileError(f"the key {self.key} is of no use without its certificate")
            return
        _check_readable(self.certificate)
        if self.key is not None:
            _check_readable(self.key)
        try:
            # Without a callback, OpenSSL would ask for the passphrase of a key on the terminal.
            context.load_cert_chain(self.certificate, self.key, password=lambda: b"")
        except ssl.SSLError as error:
            key = self.key or self.certificate
            if error.reason == "KEY_VALUES_MISMATCH":
                raise TlsFileError(f"the key {key} is not that of {self.certificate}") from error
            raise TlsFileError(
                f"{self.certificate} and {key} are not a certificate and its key as PEM, "
                "without a passphrase"
            ) from error


def _trust(context: ssl.SSLContext, ca: Path) -> None:
    _check_readable(ca)
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise TlsFileError(f"{ca} holds no certificates as PEM") from error


def _check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise TlsFileError(f"{path} can't be read: {error.strerror}") from error
