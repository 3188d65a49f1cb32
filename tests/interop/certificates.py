"""A certificate authority for one run, and the certificate of `localhost` that it signs."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificates:
    """The files that a server needs to speak TLS to another one."""

    authority: Path
    certificate: Path
    private_key: Path


def issue(folder):
    """Makes an authority and a certificate for `localhost`, both valid for a day."""
    folder.mkdir(parents=True)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "1"]
    authority, authority_key = folder / "ca.pem", folder / "ca.key"
    openssl(
        *key, "-subj", "/CN=Sotto interoperability tests", "-x509",
        "-addext", "basicConstraints=critical,CA:TRUE",
        "-keyout", authority_key, "-out", authority,
    )  # fmt: skip
    issued = Certificates(authority, folder / "localhost.pem", folder / "localhost.key")
    openssl(
        *key, "-subj", "/CN=localhost", "-x509", "-CA", authority, "-CAkey", authority_key,
        "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
        "-addext", "basicConstraints=critical,CA:FALSE",
        "-addext", "extendedKeyUsage=serverAuth",
        "-keyout", issued.private_key, "-out", issued.certificate,
    )  # fmt: skip
    return issued


def openssl(*arguments):
    """Runs `openssl req`; its chatter is shown only when it fails."""
    command = ["openssl", "req", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
