"""A wait strategy of testcontainers: until a container has a socket in some state."""

from __future__ import annotations

import tempfile
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

from labctl.ground.errors import LabctlError, ScenarioError
from labctl.judge.check import NotPassed
from labctl.language.from_python import demand, here
from labctl.language.from_python import document as as_document
from labctl.language.scenario import load_document
from labctl.testing.containers import missing
from labctl.testing.watch import watch

if TYPE_CHECKING:
    from testcontainers.core.waiting_utils import WaitStrategy, WaitStrategyTarget

__tracebackhide__ = True
"""See recording.py."""

HOST = "container"
"""What a container is called in the record of a wait."""


def socket_state(state: str, port: int | None = None) -> WaitStrategy:
    """A wait strategy of testcontainers: the container is ready when one of its sockets is in this
    state; with `port`, a socket of this port. It watches from beside, so nothing runs in the
    container, and no port need be published.

        DockerContainer("postgres:17").waiting_for(labctl.socket_state("LISTEN", port=5432))

    Raises UsageError for a mistake, or if testcontainers is not installed. Its wait raises
    TimeoutError, with the sockets that there were; RuntimeError if the container has ended."""
    demand("state", state, (str,), "a TCP state")
    demand("port", port, (int, None), "a number")
    claim = {HOST: {"state": state, **({} if port is None else {"local": f":{port}"})}}
    try:
        steps = [{"wait": {"sockets": claim}}]
        document, name = as_document({"hosts": {HOST: {}}, "steps": steps})
        load_document(document, document.text, name, {})
    except ScenarioError as exc:
        raise here(exc) from None
    try:
        from testcontainers.core.waiting_utils import WaitStrategy
    except ImportError as exc:
        raise missing("socket_state") from exc

    class SocketState(WaitStrategy):
        """Waits for a claim on sockets."""

        def wait_until_ready(self, container: WaitStrategyTarget) -> None:
            folder = Path(tempfile.mkdtemp(prefix="labctl-"))
            wrapped = container.get_wrapped_container()
            try:
                with watch(hosts={HOST: wrapped}, out=folder) as seen:
                    seen.wait(sockets=claim, within=self._startup_timeout)
            except LabctlError as exc:
                wrapped.reload()
                what = f"{wrapped.name}: no socket in {state}"
                what += "" if port is None else f" on port {port}"
                if wrapped.status != "running":
                    status = wrapped.attrs["State"]["ExitCode"]
                    text = f"{what}: it has ended, with status {status}; its log may say why"
                    raise RuntimeError(text) from exc
                if not isinstance(exc, NotPassed):
                    raise
                text = f"{what} within {self._startup_timeout:g} s, and it runs; see what it"
                raise TimeoutError(f"{text} says in its log, and where it listens\n{exc}") from exc
            rmtree(folder, ignore_errors=True)

    return SocketState()
