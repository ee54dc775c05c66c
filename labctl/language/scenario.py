"""Scenarios: from a YAML file to checked, frozen objects, with every mistake at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import (
    ValidationError,
)

from labctl.backends import BACKENDS, MEM_LIMIT, PIDS_LIMIT, HostSpec, ProcessSpec, Service
from labctl.ground.data import dataclass
from labctl.ground.errors import Mistake, ScenarioError
from labctl.ground.written import variant_words
from labctl.lab.spec import LabSpec
from labctl.language.document import Document, Expanded, Params, Path_
from labctl.language.left_out import Others, blanked, elsewhere
from labctl.language.models import Host, MoreSteps, Program, Written
from labctl.language.named import misnamed
from labctl.language.networks import networks_of, spec, wrong_networks
from labctl.language.params import Choice, Given, alike
from labctl.language.predicates import Predicate
from labctl.language.steps import Step
from labctl.language.values import (
    HOST_NAME,
    OF_PROJECT,
    PROCESS_NAME,
    Names,
    choices,
    unknown,
)

RESERVED = {"localhost", "ip6-localhost"}
JOBS = ("calls", "run", "default", "service")
"""Keys of a host that give it a process of its own name, whatever else it has."""
MAX_WORK = 500_000
"""Nodes of a file, times its variants: so many take some seconds to check."""


@dataclass(frozen=True)
class Scenario:
    """One case: a scenario with its params filled in; `sets` are those of the command line.
    `compose` is the file of the project whose services are hosts. A source is `file:line`, from
    line 1."""

    name: str
    source: str
    text: str
    title: str
    theme: str
    about: str
    refs: tuple[str, ...]
    variant: Mapping[str, Any]
    sets: Mapping[str, str]
    compose: str
    compose_source: str
    networks: Mapping[str, Sequence[str]] | None
    hosts: Mapping[str, Host]
    service_sources: Mapping[str, str]
    sysctl_sources: Mapping[str, str]
    steps: tuple[Step, ...]
    step_sources: tuple[str, ...]
    expect: tuple[Predicate, ...]
    expect_sources: tuple[str, ...]
    needs: frozenset[str]

    @property
    def case(self) -> str:
        """`old plain, new both`: what distinguishes it from the file's other cases; empty without
        variants."""
        return variant_words(self.variant)

    @property
    def label(self) -> str:
        """`so_reuseaddr (old plain, new both)`."""
        return f"{self.name} ({self.case})" if self.case else self.name

    @property
    def processes(self) -> dict[str, ProcessSpec]:
        """Every process by name."""
        return dict(_processes(self.hosts, self.compose))

    @property
    def spec(self) -> LabSpec:
        """The lab that it needs."""
        return LabSpec(
            hosts=_specs(self.hosts, self.networks),
            processes=self.processes,
            starts=[process for step in self.steps for process in step.starts],
            needs=self.needs,
            sysctls={
                name: (host.sysctls, self.sysctl_sources[name])
                for name, host in self.hosts.items() if host.sysctls
            },
        )  # fmt: skip

    @property
    def least(self) -> float:
        """About how many seconds it takes at least, if all goes well."""
        return sum(
            step.least
            for step in self.steps
            if not (step.when and step.when.excludes(self.variant))
        )


def _specs(
    hosts: Mapping[str, Host], networks: Mapping[str, Sequence[str]] | None
) -> list[HostSpec]:
    return [spec(n, h.addresses, h.engine, h.router, networks) for n, h in hosts.items()]


def _processes(hosts: Mapping[str, Host], compose: str) -> list[tuple[str, ProcessSpec]]:
    found = []
    for name, host in hosts.items():
        if host.service:
            spec = _spec(name, name, host, host)
            found.append((name, replace(spec, service=Service(compose, host.service))))
        elif (
            host.calls is not None
            or host.run
            or host.default
            or (host.image and not host.processes)
        ):
            found.append((name, _spec(name, name, host, host)))
        found += [(p, _spec(p, name, process, host)) for p, process in host.processes.items()]
    return found


def _spec(name: str, host: str, program: Program, default: Host) -> ProcessSpec:
    """A process of a host. What it does not say itself, it takes from the host."""
    image = None if program.calls is not None else program.image or default.image
    watch = program.watch or default.watch or "calls"
    return ProcessSpec(
        name,
        host,
        program.calls,
        program.command(image),
        image,
        default.uid if program.uid is None else program.uid,
        {**default.env, **program.env},
        tuple(program.rights or default.rights),
        None if watch == "off" or program.calls is not None else watch,
        mem_limit=program.mem_limit or default.mem_limit or MEM_LIMIT,
        pids_limit=program.pids_limit or default.pids_limit or PIDS_LIMIT,
    )


@dataclass(frozen=True)
class _File:
    """Everything that all cases of a file have in common."""

    name: str
    path: str
    text: str
    sets: Mapping[str, str]


def load(path: Path, sets: Mapping[str, str] | None = None) -> list[Scenario]:
    """The cases of a file: one, or one for each variant. `sets` override params, as text that is
    read like YAML.

    Raises UsageError if the file can't be read or a name in `sets` is no param, ScenarioError with
    every mistake.
    """
    document = Document.read(path)
    return load_document(document, document.text, path.stem, sets or {})


def params_of(document: Document) -> set[str]:
    """The names of a file's params. Raises ScenarioError if they can't be read."""
    return Given(document).names


def load_document(
    document: Document, text: str, name: str, sets: Mapping[str, str], only: str | None = None
) -> list[Scenario]:
    """See `load`; `only` is the `case` to load, if not all of them."""
    file = _File(name, document.file, text, sets)
    cases, mistakes = _cases(document, file, only)
    if mistakes:
        raise ScenarioError(_of_sets(mistakes, document, file, only))
    return cases


def _of_sets(
    mistakes: list[Mistake], document: Document, file: _File, only: str | None
) -> list[Mistake]:
    """The mistakes, but a single one for each of `sets` without which some would not be there."""
    for name, value in file.sets.items():
        fewer = {other: text for other, text in file.sets.items() if other != name}
        with suppress(ScenarioError):
            _, left = _cases(document, replace(file, sets=fewer), only)
            gone = [mistake for mistake in mistakes if mistake not in left]
            if gone and all(mistake in mistakes for mistake in left):
                first = replace(gone[0], message=f"--set {name}={value}: {gone[0].message}")
                mistakes = [first, *left]
    return mistakes


def _cases(
    document: Document, file: _File, only: str | None
) -> tuple[list[Scenario], list[Mistake]]:
    given = Given(document)
    choices = given.choices(file.sets)
    mistakes = given.mistakes
    unclear = alike(choices)
    others = Others(document, choices, file.sets)
    cases: list[Scenario] = []
    for choice in choices:
        if only not in (None, variant_words(choice.variant)):
            continue
        expanded = document.expand(choice.params)
        if len(expanded.nodes) * len(choices) > MAX_WORK:
            message = (
                f"its {len(choices)} variants make {len(expanded.nodes) * len(choices)} nodes of "
                f"this file; {MAX_WORK} is the most: make it several files"
            )
            raise ScenarioError([Mistake(document.file, given.line, message)])
        found = _check(expanded, given.varied, unclear, others.of(choice.variant))
        if isinstance(found, Written):
            cases.append(_case(found, expanded, choice, file))
        else:
            mistakes += [Mistake(document.file, line, message) for line, message in found]
    return cases, mistakes


def with_step(case: Scenario, document: Document, params: Params, source: str) -> Scenario:
    """A case with one more step: the only step of a document that has nothing but `steps`. It is
    checked as if it stood in the case's own file. Raises ScenarioError with every mistake."""
    expanded = document.expand(params)
    labels = [step.as_ for step in case.steps if step.as_ is not None]
    mistakes = [*expanded.mistakes, *_references(expanded, [*case.variant], before=labels)]
    try:
        text = MoreSteps.model_validate(expanded.data, context=_names_of(case))
    except ValidationError as exc:
        mistakes += [_place(error, expanded) for error in exc.errors()]
    if mistakes:
        raise ScenarioError(Mistake(document.file, line, message) for line, message in mistakes)
    return replace(
        case, steps=(*case.steps, *text.steps), step_sources=(*case.step_sources, source)
    )


def _names_of(case: Scenario) -> Names:
    hosts = {name: host.addresses for name, host in case.hosts.items()}
    if any(host.service for host in case.hosts.values()):
        hosts = dict.fromkeys(hosts, OF_PROJECT)
    owners = {name: process.host for name, process in case.processes.items()}
    networks = {h.name: h.networks for h in case.spec.hosts if h.networks != ("",)}
    return Names(hosts, owners, networks)


def _silenced(case: Scenario, sources: Mapping[str, str]) -> Scenario:
    """A case whose crafted peers have a kernel that hears nothing: its first steps see to that,
    unless it says so itself before it injects anything."""
    from labctl.language.steps.faults import Deaf, Drop  # most scenarios have no such peer

    written = [{"drop": {"to": host, "injected": False}} for host in sources]
    found = [Deaf.model_validate(each, context=_names_of(case)) for each in written]
    before = takewhile(lambda step: step.verb != "inject", case.steps)
    said = [step.drop for step in before if isinstance(step, Drop)]
    steps = [
        (step, source) for step, source in zip(found, sources.values(), strict=True)
        if step.drop not in said
    ]  # fmt: skip
    return replace(
        case,
        steps=(*(step for step, _ in steps), *case.steps),
        step_sources=(*(source for _, source in steps), *case.step_sources),
        needs=case.needs.union(*(step.needs for step in found)),
    )


def _check(
    expanded: Expanded,
    varied: Sequence[str],
    unclear: Collection[str],
    left_out: Collection[int] = (),
) -> Written | list[tuple[int, str]]:
    names, mistakes = _names(expanded)
    mistakes += [m for m in expanded.mistakes if not elsewhere(expanded, left_out, m[0])]
    mistakes += [*_references(expanded, varied, unclear), *misnamed(expanded)]
    mistakes += wrong_networks(expanded)
    data, lacking = expanded.data, set[int]()
    while True:
        try:
            text = Written.model_validate(data, context=names)
        except ValidationError as exc:
            errors = exc.errors()
            wrong = {
                e["loc"][1] for e in errors if e["loc"][:1] == ("steps",) and len(e["loc"]) > 1
            }
            if more := {index for index in left_out if index in wrong} - lacking:
                lacking |= more
                data = blanked(data, lacking)
                continue
            placed = [_place(error, expanded) for error in errors]
            # A param without a value stays as it is written. Its line has that mistake already.
            unfilled = expanded.unfilled
            return mistakes + [(n, t) for n, t in placed if n not in unfilled or "${" not in t]
        return mistakes or text


def _names(expanded: Expanded) -> tuple[Names, list[tuple[int, str]]]:
    """The names that the file defines, as far as it can be read, and mistakes for bad and double
    names."""
    hosts: dict[str, int] = {}
    processes: dict[str, str] = {}
    mistakes = []
    taken = set(RESERVED)

    def mistake(path: Path_, message: str) -> None:
        mistakes.append((expanded.line(path), message))

    def define(process: str, host: str, path: Path_) -> None:
        if process in processes:
            mistake(path, f"the process {process!r} is defined twice; process names are unique "
                    "in the file")  # fmt: skip
        processes[process] = host

    found = expanded.data.get("hosts")
    for name, host in found.items() if isinstance(found, dict) else ():
        if not HOST_NAME.fullmatch(name):
            mistake(("hosts", name), f"{name!r} is no host name; allowed: letters, digits and "
                    "hyphens, 63 at most, and no address")  # fmt: skip
        elif name.lower() in taken:
            mistake(("hosts", name), f"the host name {name!r} is taken; small and capital letters "
                    "make no difference")  # fmt: skip
        taken.add(name.lower())
        if not isinstance(host, dict):
            hosts[name] = 1
            continue
        count = host.get("addresses")
        hosts[name] = count if isinstance(count, int) and not isinstance(count, bool) else 1
        below = host.get("processes")
        if any(host.get(key) not in (None, "") for key in JOBS) or (
            host.get("image") not in (None, "") and not below
        ):
            define(name, name, ("hosts", name))
        for process in below if isinstance(below, dict) else ():
            path = ("hosts", name, "processes", process)
            if not PROCESS_NAME.fullmatch(process):
                mistake(path, f"{process!r} is no process name; allowed: letters, digits, dots, "
                        "hyphens and underscores, 63 at most, no number")  # fmt: skip
            define(process, name, path)
    written = found.values() if isinstance(found, dict) else ()
    if any(isinstance(host, dict) and host.get("service") for host in written):
        hosts = dict.fromkeys(hosts, OF_PROJECT)
    return Names(hosts, processes, networks_of(expanded.data)), mistakes


def _place(error: Any, expanded: Expanded) -> tuple[int, str]:
    """The line and the message of a validation error."""
    path = tuple(part for part in error["loc"] if part != "[key]")
    context = error.get("ctx", {})
    if "key" in context:
        path = (*path, context["key"])
    message = context.get("message", error["msg"])
    if "offset" in context:
        return expanded.line_in(path, context["offset"]), message
    return expanded.line(path), message


def _references(
    expanded: Expanded,
    varied: Sequence[str],
    unclear: Collection[str] = (),
    before: Sequence[str] = (),
) -> list[tuple[int, str]]:
    """Mistakes in what steps refer to beside hosts and processes. A label must be set before it is
    used, and only once. `when` must name params and values that exist, and no param whose values
    are `unclear`. The labels in `before` are set already."""
    mistakes: list[tuple[int, str]] = []
    labels = dict.fromkeys(before)
    drops = dict.fromkeys(["all", *before])

    def mistake(message: str, *path: str | int) -> None:
        mistakes.append((expanded.line(("steps", *path)), message))

    def counted_from(holder: Any, *path: str | int) -> None:
        """A `since` must name a label that an earlier step sets."""
        since = holder.get("since") if isinstance(holder, dict) else None
        if isinstance(since, str) and since not in labels:
            message = f"no earlier 'as' sets the label {since!r}; {choices(since, labels)}"
            mistakes.append((expanded.line((*path, "since")), message))

    def claimed(predicate: Any, *path: str | int) -> None:
        if isinstance(predicate, dict):
            counted_from(predicate.get("segments"), *path, "segments")
            processes = predicate.get("process")
            for name, claim in processes.items() if isinstance(processes, dict) else ():
                counted_from(claim, *path, "process", name)

    steps = expanded.data.get("steps")
    for index, step in enumerate(steps if isinstance(steps, list) else ()):
        if not isinstance(step, dict):
            continue
        label, when = step.get("as"), step.get("when")
        counted_from(step, "steps", index)
        healed = step.get("heal", "all")
        if isinstance(healed, str) and healed not in drops:
            message = f"no earlier drop has the label {healed!r}; {choices(healed, drops)}"
            mistake(message, index, "heal")
        for verb in ("wait", "expect"):
            claimed(step.get(verb), "steps", index, verb)
        if isinstance(label, str):
            if label in labels:
                mistake(f"the label {label!r} is set twice; choose another", index, "as")
            else:
                labels[label] = None
                drops |= {label: None} if {"drop", "reject"} & step.keys() else {}
        if not isinstance(when, dict):
            continue
        backend, variant = when.get("backend"), when.get("variant")
        if isinstance(backend, str) and backend not in BACKENDS:
            mistake(unknown("backend", backend, BACKENDS), index, "when", "backend")
        for name in variant if isinstance(variant, dict) else ():
            if name not in varied:
                message = unknown("param of the variants", name, varied)
                mistake(message, index, "when", "variant", name)
            elif name in unclear:
                message = f"variants differ in how {name!r} is written alone, which 'when' can't "
                message += "tell apart; put its values in quotation marks"
                mistake(message, index, "when", "variant", name)
    final = expanded.data.get("expect")
    for index, predicate in enumerate(final if isinstance(final, list) else ()):
        claimed(predicate, "expect", index)
    return mistakes


def _case(written: Written, expanded: Expanded, choice: Choice, file: _File) -> Scenario:
    def source(*path: str | int) -> str:
        return f"{file.path}:{expanded.line(path)}"

    def sources(key: str, count: int) -> tuple[str, ...]:
        return tuple(source(key, index) for index in range(count))

    compose = str(Path(file.path).parent / written.compose) if written.compose else ""
    processes = [spec for _, spec in _processes(written.hosts, compose)]
    implied = {"images" for spec in processes if spec.image}
    implied |= {"compose" for spec in processes if spec.service}
    implied |= {"uids" for spec in processes if spec.uid}
    implied |= {"nat" for host in written.hosts.values() if host.router == "nat"}
    for step in written.steps:
        if not (step.when and step.when.excludes(choice.variant)):
            implied |= step.needs
    case = Scenario(
        name=file.name,
        source=file.path,
        text=file.text,
        title=written.title,
        theme=written.theme.strip(),
        about=written.about.strip(),
        refs=tuple(written.refs),
        variant=choice.variant,
        sets=file.sets,
        compose=compose,
        compose_source=source("compose"),
        networks=written.networks,
        hosts=written.hosts,
        service_sources={host: source("hosts", host, "service") for host in written.hosts},
        sysctl_sources={host: source("hosts", host, "sysctls") for host in written.hosts},
        steps=tuple(written.steps),
        step_sources=sources("steps", len(written.steps)),
        expect=tuple(written.expect),
        expect_sources=sources("expect", len(written.expect)),
        needs=frozenset({*written.needs, *implied}),
    )
    crafted = [host for host, what in written.hosts.items() if what.peer]
    return _silenced(case, {h: source("hosts", h, "peer") for h in crafted}) if crafted else case
