"""Certificates for TLS, of authorities of our own, by openssl(1)."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NEW = "-nodes -days 2 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1"


@dataclass(frozen=True)
class Keys:
    """A certificate and its key; `ca` is that of who signed it."""

    cert: Path
    key: Path
    ca: Path


def authority(folder: Path, name: str) -> Keys:
    """One that signs others."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    _make(cert, key, name)
    return Keys(cert, key, cert)


def signed(by: Keys, name: str, address: str = "127.0.0.1") -> Keys:
    """One for an address, as a server and as a client."""
    cert, key = by.cert.with_name(f"{name}.pem"), by.cert.with_name(f"{name}.key")
    uses = ["-addext", f"subjectAltName=IP:{address}", "-addext", "basicConstraints=CA:FALSE"]
    _make(cert, key, name, "-CA", str(by.cert), "-CAkey", str(by.key), *uses)
    return Keys(cert, key, by.cert)


def _make(cert: Path, key: Path, name: str, *more: str) -> None:
    command = ["openssl", "req", "-x509", *NEW.split(), "-subj", f"/CN={name}"]
    command += ["-out", str(cert), "-keyout", str(key), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def context(folder: Path, name: str, url: str, keys: Keys) -> None:
    """Writes a context of Docker, as `docker context create` does, into its folder for settings.
    Without config.json docker-py does not find the contexts beside it."""
    place = hashlib.sha256(name.encode()).hexdigest()
    meta, tls = (folder / "contexts" / kind / place for kind in ("meta", "tls"))
    meta.mkdir(parents=True)
    (tls / "docker").mkdir(parents=True)
    endpoint = {"docker": {"Host": url, "SkipTLSVerify": False}}
    told = {"Name": name, "Metadata": {}, "Endpoints": endpoint}
    (meta / "meta.json").write_text(json.dumps(told))
    (folder / "config.json").write_text("{}")
    for file, source in (("ca.pem", keys.ca), ("cert.pem", keys.cert), ("key.pem", keys.key)):
        shutil.copy(source, tls / "docker" / file)
