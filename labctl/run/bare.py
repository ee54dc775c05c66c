"""Labs, with leases, at places; and one of hosts alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from labctl.backends import Backend, BackendOptions, HostSpec, Progress, backend_class
from labctl.backends import lease as leases
from labctl.backends.lease import Lease
from labctl.lab.lab import Lab
from labctl.lab.spec import LabSpec
from labctl.record.history import History
from labctl.run.places import Place


def lease_of(kind: str, what: str, place: Place, now: str) -> Lease:
    """A lease for a lab there; `kind` and `what` say what it is for."""
    wheres = [at.where for at in place.engines]
    return Lease(leases.new_name(), kind, what, place.backend, now, engines=wheres)


def opened_at(lease: Lease, folder: Path, place: Place, progress: Progress) -> Backend:
    """The backend for a lab there. Raises LabError."""
    options = BackendOptions(lease.run, lease.text, folder, place.system, progress, place.engines)
    backend: Backend = backend_class(lease.backend)(options)
    return backend


@contextmanager
def bare(place: Place, hosts: Sequence[HostSpec], progress: Progress) -> Iterator[Lab]:
    """A lab of these hosts alone, of which nothing is recorded."""
    lease = lease_of("check", "hosts", place, datetime.now(UTC).isoformat(timespec="seconds"))
    with lease, TemporaryDirectory(prefix="labctl-") as folder:
        opened = opened_at(lease, Path(folder), place, progress)
        spec = LabSpec(hosts, {})
        with Lab(spec, opened, History(), lambda _: None, lambda *_: None) as lab:
            yield lab
