"""Certificates for the tests, made by the `openssl` program in a folder of their own.

An authority signs certificates of servers and clients; another one, which nobody
trusts, signs one too; one has expired, and one has signed itself:

    made = Certificates(folder)
    made.ca                    the authority's certificate, for ssl_ca_certs
    made.server("localhost")   (certificate, key) for a name or an address
"""

from __future__ import annotations

import subprocess
from functools import cached_property
from pathlib import Path

KEY_PASSWORD = "a key's secret"

_CONFIG = """
[ca]
default_ca = here
[here]
database = {folder}/index
new_certs_dir = {folder}
rand_serial = yes
unique_subject = no
default_md = sha256
policy = any
copy_extensions = copy
x509_extensions = leaf
[any]
commonName = optional
[req]
distinguished_name = dn
prompt = no
[dn]
CN = unused
[leaf]
basicConstraints = CA:false
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[bare]
basicConstraints = CA:false
subjectKeyIdentifier = none
authorityKeyIdentifier = none
[authority]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
"""


def _openssl(*args: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, args)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"openssl {' '.join(map(str, args))}\n{done.stdout}{done.stderr}")


class Authority:
    """One authority and what it has signed."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir()
        self.folder = folder
        self.config = folder / "config"
        self.config.write_text(_CONFIG.format(folder=folder))
        (folder / "index").touch()
        self.certificate, self.key = folder / "ca.pem", folder / "ca.key"
        self._request("ca", name)
        self._run(
            "x509",
            "-req",
            "-in",
            folder / "ca.csr",
            "-signkey",
            self.key,
            "-days",
            "30",
            "-extfile",
            self.config,
            "-extensions",
            "authority",
            "-out",
            self.certificate,
        )

    def _run(self, *args: str | Path) -> None:
        _openssl(*args)

    def _request(self, stem: str, name: str, alternative: str = "") -> None:
        """A new EC key, and the request to sign it."""
        extra = ["-addext", f"subjectAltName={alternative}"] if alternative else []
        self._run(
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-config",
            self.config,
            "-subj",
            f"/CN={name}",
            *extra,
            "-keyout",
            self.folder / f"{stem}.key",
            "-out",
            self.folder / f"{stem}.csr",
        )

    def sign(
        self,
        stem: str,
        name: str,
        alternative: str = "",
        *,
        expired: bool = False,
        extensions: str = "leaf",
    ) -> tuple[Path, Path]:
        """A certificate for name, with the alternative names as OpenSSL writes them."""
        certificate, key = self.folder / f"{stem}.pem", self.folder / f"{stem}.key"
        if certificate.exists():
            return certificate, key
        self._request(stem, name, alternative)
        times = ("20200101000000Z", "20200201000000Z") if expired else None
        dates = ["-startdate", times[0], "-enddate", times[1]] if times else ["-days", "20"]
        self._run(
            "ca",
            "-batch",
            "-notext",
            "-config",
            self.config,
            "-cert",
            self.certificate,
            "-keyfile",
            self.key,
            "-in",
            self.folder / f"{stem}.csr",
            *dates,
            "-extensions",
            extensions,
            "-out",
            certificate,
        )
        return certificate, key

    def revocations(self) -> Path:
        """The certificate and the list of what it has revoked, in one file."""
        target = self.folder / "ca-and-crl.pem"
        self._run(
            "ca",
            "-gencrl",
            "-config",
            self.config,
            "-cert",
            self.certificate,
            "-keyfile",
            self.key,
            "-crldays",
            "20",
            "-out",
            self.folder / "crl.pem",
        )
        target.write_text(self.certificate.read_text() + (self.folder / "crl.pem").read_text())
        return target

    def revoke(self, certificate: Path) -> None:
        self._run(
            "ca",
            "-config",
            self.config,
            "-cert",
            self.certificate,
            "-keyfile",
            self.key,
            "-revoke",
            certificate,
        )


class Certificates:
    """All that the tests need, each made at its first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def authority(self) -> Authority:
        return Authority(self.folder / "trusted", "A test authority")

    @cached_property
    def stranger(self) -> Authority:
        return Authority(self.folder / "strange", "Nobody's authority")

    @property
    def ca(self) -> str:
        return str(self.authority.certificate)

    @cached_property
    def server(self) -> tuple[Path, Path]:
        """For localhost and the addresses of this machine."""
        return self.authority.sign(
            "server", "server", "DNS:localhost,IP:127.0.0.1,IP:::1,DNS:*.example.test"
        )

    @cached_property
    def elsewhere(self) -> tuple[Path, Path]:
        """Of another host."""
        return self.authority.sign("elsewhere", "elsewhere", "DNS:elsewhere.test,IP:10.9.8.7")

    @cached_property
    def named(self) -> tuple[Path, Path]:
        """Of localhost by name alone, in the subject."""
        return self.authority.sign("named", "localhost")

    @cached_property
    def loose(self) -> tuple[Path, Path]:
        """Without what VERIFY_X509_STRICT insists on."""
        return self.authority.sign(
            "loose", "loose", "DNS:localhost,IP:127.0.0.1", extensions="bare"
        )

    @cached_property
    def expired(self) -> tuple[Path, Path]:
        return self.authority.sign("expired", "x", "DNS:localhost,IP:127.0.0.1", expired=True)

    @cached_property
    def untrusted(self) -> tuple[Path, Path]:
        return self.stranger.sign("server", "server", "DNS:localhost,IP:127.0.0.1")

    @cached_property
    def self_signed(self) -> tuple[Path, Path]:
        folder = self.stranger.folder
        certificate, key = folder / "self.pem", folder / "self.key"
        _openssl(
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-config",
            self.stranger.config,
            "-subj",
            "/CN=localhost",
            "-days",
            "20",
            "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-keyout",
            key,
            "-out",
            certificate,
        )
        return certificate, key

    @cached_property
    def revoked(self) -> tuple[Path, Path]:
        """Trusted once, and revoked."""
        pair = self.authority.sign("revoked", "revoked", "DNS:localhost,IP:127.0.0.1")
        self.authority.revoke(pair[0])
        return pair

    @cached_property
    def revocations(self) -> Path:
        """The authority and the list of what it has revoked."""
        assert self.revoked
        return self.authority.revocations()

    @cached_property
    def client(self) -> tuple[Path, Path]:
        return self.authority.sign("client", "client")

    @cached_property
    def client_in_one(self) -> Path:
        """Certificate and key in one file."""
        certificate, key = self.client
        target = certificate.with_name("client-both.pem")
        target.write_text(certificate.read_text() + key.read_text())
        return target

    @cached_property
    def encrypted_key(self) -> Path:
        """The client's key, encrypted with KEY_PASSWORD."""
        _, key = self.client
        target = key.with_name("client-encrypted.key")
        _openssl("pkcs8", "-topk8", "-in", key, "-out", target, "-passout", f"pass:{KEY_PASSWORD}")
        return target

    @cached_property
    def ca_folder(self) -> Path:
        """A folder of authorities as ssl_ca_path takes it."""
        target = self.folder / "hashed"
        target.mkdir()
        (target / "ca.pem").write_text(self.authority.certificate.read_text())
        _openssl("rehash", target)
        return target

    @cached_property
    def ca_der(self) -> bytes:
        target = self.authority.folder / "ca.der"
        _openssl("x509", "-in", self.authority.certificate, "-outform", "DER", "-out", target)
        return target.read_bytes()
