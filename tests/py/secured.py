"""A private Redis server that speaks TLS, beside its Unix socket and its plain port."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from certificates import Certificates
from servers import Server, free_port


class SecuredServer(Server):
    """`SecuredServer(made, made.server, tls_auth_clients="yes")`; see Server."""

    def __init__(
        self, made: Certificates, pair: tuple[Path, Path] | None = None, **options: str
    ) -> None:
        certificate, key = pair or made.server
        self.tls_port = free_port()
        super().__init__(
            **{
                "tls_port": str(self.tls_port),
                "tls_cert_file": str(certificate),
                "tls_key_file": str(key),
                "tls_ca_cert_file": made.ca,
                "tls_auth_clients": "no",
                **options,
            }
        )
        self.made = made

    @property
    def tls(self) -> dict[str, Any]:
        """Keyword arguments of a client that trusts it."""
        return {
            "host": "localhost",
            "port": self.tls_port,
            "ssl": True,
            "ssl_ca_certs": self.made.ca,
            **self._secret(),
        }

    @property
    def tls_url(self) -> str:
        """The same as a URL."""
        secret = f":{self.password}@" if self.password else ""
        return f"rediss://{secret}localhost:{self.tls_port}/0?ssl_ca_certs={self.made.ca}"
