"""Labs for people's own tests: the steps of the language from Python, one by one.

    with labctl.Lab(hosts={...}) as lab:
        lab.start("server")
        lab.expect(sockets={"server": "LISTEN"})

It is a run like any other: recorded in a directory, judged by the same code. Its scenario.yaml
grows with every step, so `labctl run` can repeat it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

from labctl.ground.errors import ScenarioError, UsageError
from labctl.ground.output import tell
from labctl.language.from_python import demand, dump, here, misused
from labctl.language.from_python import document as as_document
from labctl.language.models import TWO_HOSTS
from labctl.language.params import Given
from labctl.language.scenario import load_document
from labctl.language.services import check_services
from labctl.run import workflow
from labctl.run.places import Place
from labctl.run.places import place as place_of
from labctl.run.runner import Session, Silent
from labctl.testing.containers import share
from labctl.testing.recording import Recording
from labctl.testing.verbs import Verbs, checked

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

__tracebackhide__ = True
"""See recording.py."""

Placed = TypeVar("Placed", bound="DockerContainer")


class Where(TypedDict, total=False):
    """Where a lab runs, and where it is recorded."""

    backend: str
    os: str | None
    engines: Sequence[str]
    out: Path | None


class Lab(Recording[Session], Verbs):
    """A lab in a `with`. Every verb of the language is a method, see Verbs:

        lab.kill("server", as_="killed")             {kill: server, as: killed}
        lab.wait(sockets={"server": "none"},         {wait: {sockets: {server: none}},
                 since="killed", within="1s..2s")     since: killed, within: 1s..2s}
        lab.sysctl("server", {...})                  {sysctl: {server: {...}}}

    `hosts` is what stands below `hosts` in a scenario. Or `scenario` is a whole one: the path of a
    file, a YAML text or a mapping, whose own steps are done first, and whose `expect` is judged at
    the end. `sets` overrides params, as `--set` does. `backend`, `os` and `out` are as for
    `labctl run`, and `os` is Docker's alone. So are `engines`, each as `--engine` takes it.

    A claim that does not hold, or can't be decided, raises NotPassed, an AssertionError. If an
    exception leaves the `with`, the record has it, and the exception gets the ladder as a note. A
    lab that can't run here raises SkipTest. A mistake raises UsageError before anything is done; a
    lab that fails raises LabError.

    A lab belongs to the thread that brought it up. In another one its verbs raise UsageError, and
    so does the end of the `with`: nobody judged what the test wanted there.
    """

    _what = "lab"

    @checked
    def __init__(
        self,
        scenario: Path | str | Mapping[str, Any] | None = None,
        *,
        hosts: Mapping[str, Any] | None = None,
        sets: Mapping[str, str] | None = None,
        **place: Unpack[Where],
    ) -> None:
        if (scenario is None) == (hosts is None):
            raise misused("a lab takes a scenario or hosts, one of them")
        demand("scenario", scenario, (Path, str, Mapping, None), "a path, a text or a mapping")
        demand("hosts", hosts, (Mapping, None), "a mapping of hosts, by name")
        if hosts is not None and len(hosts) < 2:
            raise misused(TWO_HOSTS)
        backend, os, out = place.get("backend", "auto"), place.get("os"), place.get("out")
        engines = place.get("engines", ())
        demand("backend", backend, (str,), "auto, docker or netns")
        demand("os", os, (str, None), "a text, the name of an image,")
        demand("engines", engines, (list, tuple), "a list of texts, as --engine takes them,")
        for at in engines:
            demand("engines: each", at, (str,), "a text, as --engine takes it,")
        demand("out", out, (Path, str, None), "a path")
        demand("sets", sets, (Mapping, None), "a mapping of texts, by the names of params,")
        for name, value in (sets or {}).items():
            demand("sets: each name", name, (str,), "a text")
            demand(f"sets: {name}", value, (str,), "a text, as --set takes it,")
        self._backend, self._os, self._out = backend, os, None if out is None else Path(out)
        self._engines = tuple(engines)
        super().__init__()
        try:
            document, name = as_document({"hosts": hosts} if scenario is None else scenario)
            cases = check_services(load_document(document, document.text, name, sets or {}))
            choices = Given(document).choices(sets or {})
        except ScenarioError as exc:
            raise exc if isinstance(scenario, Path | str) else here(exc) from None
        if len(cases) != 1:
            labels = ", ".join(case.label for case in cases)
            raise UsageError(f"{document.file}: a lab is of one variant, not {labels}", "use sets")
        (case,) = cases
        self._params = choices[0].params
        data = document.expand(None).data
        data |= {"params": dict(self._params)} if self._params else {}
        if case.variant:
            data["variants"] = [{name: self._params[name] for name in case.variant}]
        self._data = data
        self._case = replace(case, text=dump(data))

    @checked
    def place(self, container: Placed, host: str) -> Placed:
        """Has a container of testcontainers, which is not started yet, run on a host of this lab,
        and returns it. It shares the network of the host, which outlives it. Call this last, right
        before its `start()`.

        labctl does not start it, so the record knows nothing of its process and its calls: no step
        and no claim can name it. On namespaces this raises UsageError."""
        session = self._of(host)
        if session.backend != "docker":
            raise misused("a lab on namespaces has no room for containers", 'use backend="docker"')
        share(container, session.lab.holders[host])
        self.note(f"on {host}: {container.image}, which testcontainers starts")
        return container

    def _opened(self) -> AbstractContextManager[Session]:
        place = ready(self._backend, self._os, self._engines)
        folder = workflow.new_run(self._case, self._out)
        return workflow.session(folder, self._case, Silent(), tell, place)


@cache
def ready(backend: str, os: str | None, engines: tuple[str, ...] = ()) -> Place:
    """The place of these names. Once in each process, this removes what killed runs left in an
    engine. Raises UsageError."""
    chosen = place_of(backend, os, None, False, engines)
    if chosen.backend == "docker":
        workflow.sweep(chosen.engines)
    return chosen
