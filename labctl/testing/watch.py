"""Watches for people's own tests: claims on containers that something else has started.

    with labctl.watch(db=postgres, api=api) as seen:
        seen.wait(sockets={"api": {"state": "ESTAB", "peer": "db:5432"}})

It is a record like any other, and its scenario.yaml grows with every claim.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from labctl.backends.watched import Watched, host_names
from labctl.ground.errors import ScenarioError
from labctl.language.from_python import demand, dump, here, misused
from labctl.language.from_python import document as as_document
from labctl.language.scenario import load_document
from labctl.language.steps import LOOKING
from labctl.record.store import RunFolder
from labctl.run.watch import Wanted, WatchSession, beside
from labctl.run.workflow import new_run
from labctl.testing.containers import Container, name_of
from labctl.testing.recording import Recording
from labctl.testing.verbs import Fields, checked

__tracebackhide__ = True
"""See recording.py."""

NO_PROCESSES = "a watch knows no processes: it sees networks alone"
VERBS = [step.verb for step in LOOKING]


class Watch(Recording[WatchSession]):
    """What `labctl.watch` returns: a watch in a `with`. It only looks: its verbs are `wait`,
    `expect`, `snapshot`, `sleep` and `note`, and they do what those of a `labctl.Lab` do. So do
    `sockets`, `segments`, `events` and `folder`."""

    _what = "watch"

    def __init__(
        self, beside: AbstractContextManager[Watched], out: Path | None, calls: bool = False
    ) -> None:
        super().__init__()
        self._beside, self._out, self._calls = beside, out, calls

    @checked
    def do(self, step: Fields) -> None:
        """Does one step, written as in the language: `{"wait": {"sockets": {...}}}`."""
        demand("step", step, (Mapping,), "a mapping with one verb")
        if not step.keys() & {*VERBS}:
            verbs = ", ".join(map(str, step))
            raise misused(f"{verbs}: a watch only looks; allowed: {', '.join(VERBS)}")
        for claim in (step.get("wait"), step.get("expect")):
            if isinstance(claim, Mapping) and "process" in claim:
                raise misused(NO_PROCESSES, "claim sockets, segments or counters")
        super().do(step)

    @contextmanager
    def _opened(self) -> Iterator[WatchSession]:
        with self._beside as watched:
            document, name = as_document({"hosts": {name: {} for name in watched.names}})
            try:
                (case,) = load_document(document, document.text, name, {})
            except ScenarioError as exc:  # some names are taken
                raise here(exc) from None
            self._data = document.expand(None).data
            with RunFolder(new_run(case, self._out), dump(self._data)) as folder:
                yield WatchSession(case, watched, folder, self._calls)


def watch(
    *containers: Container,
    hosts: Mapping[str, Container] | None = None,
    ports: Iterable[int] = (),
    calls: bool = False,
    out: Path | str | None = None,
    **named: Container,
) -> Watch:
    """Watches containers that run, during a `with`. Each is a host: those that are positional by
    their own names; keywords give others. What can't be a keyword stands in `hosts`, such as a
    host that is called `out`. `ports`: only sockets and packets of these. `calls`: record also the
    socket calls of their processes, which slows these down (docs/watch.md). `out` says where to
    record it.

    A container is a name, an id, or an object of docker-py or testcontainers. It may be started
    again: its host stays the same.

    Raises UsageError for a mistake, and SkipTest where no engine answers."""
    demand("hosts", hosts, (Mapping, None), "a mapping of containers, by the names of hosts,")
    demand("out", out, (Path, str, None), "a path; a host of this name stands in hosts={...}")
    whole = "numbers; a host of this name stands in hosts={...}"
    demand("ports", ports, (Iterable,), whole)
    demand("calls", calls, (bool,), "True or False; a host of this name stands in hosts={...}")
    numbers = [*ports]
    for port in numbers:
        demand("ports: each", port, (int,), whole)
        if not 0 < port < 1 << 16:
            raise misused(f"ports: {port} is not from 1 to 65535")
    if doubled := named.keys() & (hosts or {}).keys():
        raise misused(f"two hosts are called {min(doubled)}")
    called = {**(hosts or {}), **named}
    if not called and not containers:
        raise misused("a watch takes containers", 'labctl.watch("db") or labctl.watch(db=...)')
    for name in called:
        demand("hosts: each name", name, (str,), "a text")
        if host_names([name]) != [name]:
            allowed = "letters, digits and hyphens"
            hint = f'hosts={{"{host_names([name])[0]}": ...}}'
            raise misused(f"{name!r} can't be a host; {allowed} are allowed", hint)
    wanted = Wanted(
        containers=[name_of(container) for container in containers],
        ports=numbers,
        named={name: name_of(container) for name, container in called.items()},
    )
    return Watch(beside(wanted), None if out is None else Path(out), calls)
