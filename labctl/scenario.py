"""Scenarios: from a YAML file to checked, frozen objects, with every mistake at once."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic.json_schema import models_json_schema

from labctl.backends import CAPABILITIES, HostSpec, ProcessSpec
from labctl.document import Document, Expanded, Path_
from labctl.errors import Mistake, ScenarioError, UsageError
from labctl.predicates import Claim, Predicate
from labctl.steps import NOT_YET, STEPS, Step, Wait
from labctl.values import (
    HOST_NAME,
    PROCESS_NAME,
    Calls,
    Model,
    Names,
    SysctlKey,
    SysctlValue,
    Text,
    problem,
    shown,
    unknown,
)

MAX_ADDRESSES = 16
RESERVED = {"localhost"}


def _command(value: Any) -> tuple[str, ...]:
    words = value
    if isinstance(value, str):
        try:
            words = shlex.split(value)
        except ValueError as exc:
            raise problem(f"{shown(value)} is no command line: {exc}") from exc
    if not isinstance(words, list | tuple) or not words or not all(_scalar(w) for w in words):
        raise problem("a command line is wanted here: a text or a list of words")
    return tuple(map(str, words))


def _scalar(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


Command = Annotated[
    tuple[str, ...],
    BeforeValidator(_command),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": ["string", "number"]}}),
]


class Program(Model):
    """What a process does, and as whom."""

    calls: Calls | None = None
    run: Command | None = None
    image: Text | None = None
    uid: Annotated[int, Field(ge=0, le=65535)] | None = None
    env: dict[Text, Text] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_job(self) -> Program:
        if self.calls is not None and self.run is not None:
            raise problem("'calls' and 'run' exclude each other; keep one")
        if self.calls is not None and self.image is not None:
            raise problem("'calls' needs the peer image; 'image' goes with 'run'")
        return self


class Process(Program):
    """A process among several on a host."""

    @model_validator(mode="after")
    def _some_job(self) -> Process:
        if self.calls is None and self.run is None:
            raise problem("a process needs 'calls' or 'run'")
        return self


class Host(Program):
    """A host: its sysctls, its addresses and its processes."""

    sysctls: dict[SysctlKey, SysctlValue] = Field(default_factory=dict)
    addresses: Annotated[int, Field(ge=1, le=MAX_ADDRESSES)] = 1
    processes: dict[str, Process] = Field(default_factory=dict)


def _step(value: Any, handler: Any, info: ValidationInfo) -> Step:
    if isinstance(value, Step):
        return value
    if not isinstance(value, Mapping):
        raise problem(f"a step is a mapping with one verb ({', '.join(STEPS)}), not {shown(value)}")
    for verb, subject in NOT_YET.items():
        if verb in value:
            raise problem(f"{verb!r} is not supported yet: {subject} later work", key=verb)
    verbs = [key for key in value if key in STEPS]
    if len(verbs) > 1:
        raise problem(f"one verb a step, not {' and '.join(verbs)}; make it two steps")
    if not verbs:
        modifiers = {"as", "when", "within", "since"}
        word = next((key for key in value if key not in modifiers), "")
        raise problem(unknown("verb", word, STEPS), key=word)
    return STEPS[verbs[0]].model_validate(value, context=info.context)


AnyStep = Annotated[Step, WrapValidator(_step)]


class Written(Model):
    """A scenario as it is written: the model behind `labctl schema`."""

    title: Text
    about: Text = ""
    refs: list[Text] = Field(default_factory=list)
    params: dict[str, Any] = Field(default_factory=dict)
    variants: list[dict[str, Any]] = Field(default_factory=list)
    hosts: dict[str, Host]
    steps: list[AnyStep]
    expect: list[Claim] = Field(default_factory=list)
    needs: list[str] = Field(default_factory=list)

    @field_validator("title")
    @classmethod
    def _one_line(cls, title: str) -> str:
        if not title.strip() or "\n" in title.strip():
            raise problem("a title is one line")
        return title.strip()

    @field_validator("hosts")
    @classmethod
    def _two_hosts(cls, hosts: dict[str, Host]) -> dict[str, Host]:
        if len(hosts) < 2:
            raise problem("two hosts or more are needed: a connection has two ends")
        return hosts

    @field_validator("needs")
    @classmethod
    def _known_needs(cls, needs: list[str]) -> list[str]:
        for name in needs:
            if name not in CAPABILITIES:
                raise problem(unknown("capability", name, CAPABILITIES))
        return needs


@dataclass(frozen=True)
class Scenario:
    """One case: a scenario with its params filled in. Lines count from 1."""

    name: str
    source: str
    text: str
    title: str
    about: str
    refs: tuple[str, ...]
    variant: Mapping[str, Any]
    hosts: Mapping[str, Host]
    steps: tuple[Step, ...]
    step_lines: tuple[int, ...]
    expect: tuple[Predicate, ...]
    expect_lines: tuple[int, ...]
    needs: frozenset[str]

    @property
    def label(self) -> str:
        """`so_reuseaddr (old plain, new both)`."""
        values = ", ".join(f"{name} {value}" for name, value in self.variant.items())
        return f"{self.name} ({values})" if values else self.name

    @property
    def processes(self) -> dict[str, ProcessSpec]:
        """Every process by name."""
        return dict(_processes(self.hosts))

    @property
    def host_specs(self) -> list[HostSpec]:
        """The hosts, as a backend brings them up."""
        return [HostSpec(name, host.addresses) for name, host in self.hosts.items()]


def _processes(hosts: Mapping[str, Host]) -> list[tuple[str, ProcessSpec]]:
    found = []
    for name, host in hosts.items():
        if host.calls is not None or host.run is not None:
            found.append((name, _spec(name, name, host, host)))
        found += [(p, _spec(p, name, process, host)) for p, process in host.processes.items()]
    return found


def _spec(name: str, host: str, program: Program, default: Host) -> ProcessSpec:
    return ProcessSpec(
        name,
        host,
        program.calls,
        program.run,
        None if program.calls is not None else program.image or default.image,
        program.uid,
        program.env,
    )


def load(path: Path, sets: Mapping[str, str] | None = None) -> list[Scenario]:
    """The cases of a file: one, or one a variant. `sets` override params, as text that is read
    like YAML.

    Raises UsageError where the file can't be read or `sets` names no param, ScenarioError with
    every mistake.
    """
    return load_document(Document.read(path), path.read_text("utf-8"), path.stem, sets or {})


def load_document(
    document: Document, text: str, name: str, sets: Mapping[str, str]
) -> list[Scenario]:
    """See `load`."""
    head = document.expand(None, frozenset({"params", "variants"}))
    params, variants = _params(head, document.file)
    values = {key: _yaml(value) for key, value in sets.items()}
    names = {*params, *(key for variant in variants for key in variant)}
    for key in sets:
        if key not in names:
            raise UsageError(
                f"{document.file}: --set {key}: " + unknown("param", key, sorted(names))
            )
    cases: list[Scenario] = []
    mistakes: list[Mistake] = []
    for variant in variants or [{}]:
        chosen = {key: values.get(key, value) for key, value in variant.items()}
        if any(case.variant == chosen for case in cases):
            continue
        expanded = document.expand({**params, **chosen, **values})
        found = _check(expanded)
        if isinstance(found, Written):
            cases.append(_case(found, expanded, name, document.file, text, chosen))
        else:
            mistakes += [Mistake(document.file, line, message) for line, message in found]
    if mistakes:
        raise ScenarioError(mistakes)
    return cases


def _yaml(text: str) -> Any:
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if _scalar(value) or isinstance(value, bool) else text


def _params(head: Expanded, file: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    mistakes = [Mistake(file, line, message) for line, message in head.mistakes]
    params = head.data.get("params") or {}
    variants = head.data.get("variants") or []
    if not isinstance(params, dict):
        mistakes.append(
            Mistake(file, head.line(("params",)), "params is a mapping of names and defaults")
        )
    if not isinstance(variants, list) or not all(isinstance(v, dict) and v for v in variants):
        mistakes.append(Mistake(file, head.line(("variants",)), "variants is a list of mappings"))
    if mistakes:
        raise ScenarioError(mistakes)
    return params, variants


def _check(expanded: Expanded) -> Written | list[tuple[int, str]]:
    names, mistakes = _names(expanded)
    mistakes += expanded.mistakes
    try:
        text = Written.model_validate(expanded.data, context=names)
    except ValidationError as exc:
        for error in exc.errors():
            line, message = _place(error, expanded)
            # A param that is unknown leaves nothing behind; that was said already.
            if not any(line == known for known, _ in expanded.mistakes):
                mistakes.append((line, message))
        return mistakes
    mistakes += _labels(text, expanded)
    return mistakes or text


def _names(expanded: Expanded) -> tuple[Names, list[tuple[int, str]]]:
    """The names that the file defines, as far as it can be read, and the bad and double ones."""
    hosts: dict[str, int] = {}
    processes: dict[str, str] = {}
    mistakes = []

    def define(process: str, host: str, path: Path_) -> None:
        if process in processes:
            mistakes.append((expanded.line(path), f"the process {process!r} is defined twice; "
                             "process names are unique in the file"))  # fmt: skip
        processes[process] = host

    found = expanded.data.get("hosts")
    for name, host in found.items() if isinstance(found, dict) else ():
        line = expanded.line(("hosts", name))
        if not isinstance(name, str) or not HOST_NAME.fullmatch(name) or name in RESERVED:
            mistakes.append((line, f"{shown(name)} is no host name; allowed: letters, digits and "
                             "hyphens, beginning with a letter, 32 at most"))  # fmt: skip
            name = str(name)
        if not isinstance(host, dict):
            hosts[name] = 1
            continue
        count = host.get("addresses")
        hosts[name] = count if isinstance(count, int) and not isinstance(count, bool) else 1
        if "calls" in host or "run" in host:
            define(name, name, ("hosts", name))
        below = host.get("processes")
        for process in below if isinstance(below, dict) else ():
            path = ("hosts", name, "processes", process)
            if not isinstance(process, str) or not PROCESS_NAME.fullmatch(process):
                mistakes.append((expanded.line(path), f"{shown(process)} is no process name; "
                                 "allowed: "
                                 "letters, digits, hyphens and underscores"))  # fmt: skip
            define(str(process), name, path)
    return Names(hosts, processes), mistakes


def _place(error: Any, expanded: Expanded) -> tuple[int, str]:
    """The line and the message of a validation error."""
    path = tuple(part for part in error["loc"] if part != "[key]")
    context = error.get("ctx", {})
    if "key" in context:
        path = (*path, context["key"])
    message = context.get("message", error["msg"])
    if "offset" in context:
        return expanded.text.get(path, expanded.line(path)) + context["offset"], message
    return expanded.line(path), message


def _labels(text: Written, expanded: Expanded) -> list[tuple[int, str]]:
    """Labels must be named before they are used, and once."""
    mistakes: list[tuple[int, str]] = []
    known: list[str] = []
    for index, step in enumerate(text.steps):
        if isinstance(step, Wait) and step.since is not None and step.since not in known:
            line = expanded.line(("steps", index, "since"))
            mistakes.append((line, unknown("label", step.since, known) + " (set by an earlier as)"))
        if step.as_ is not None:
            if step.as_ in known:
                line = expanded.line(("steps", index, "as"))
                mistakes.append((line, f"the label {step.as_!r} is set twice"))
            known.append(step.as_)
    return mistakes


def _case(
    written: Written,
    expanded: Expanded,
    name: str,
    file: str,
    text: str,
    variant: Mapping[str, Any],
) -> Scenario:
    processes = [spec for _, spec in _processes(written.hosts)]
    implied = {"images" for spec in processes if spec.image}
    implied |= {"uids" for spec in processes if spec.uid}
    return Scenario(
        name=name,
        source=file,
        text=text,
        title=written.title,
        about=written.about.strip(),
        refs=tuple(written.refs),
        variant=variant,
        hosts=written.hosts,
        steps=tuple(written.steps),
        step_lines=tuple(expanded.line(("steps", i)) for i in range(len(written.steps))),
        expect=tuple(written.expect),
        expect_lines=tuple(expanded.line(("expect", i)) for i in range(len(written.expect))),
        needs=frozenset({*written.needs, *implied}),
    )


def schema() -> dict[str, Any]:
    """The JSON Schema of the scenario language, for editors."""
    models: list[type[Model]] = [Written, *STEPS.values()]
    places, found = models_json_schema([(model, "validation") for model in models])
    definitions = found["$defs"]
    written = definitions.pop("Written")
    del definitions["Step"]
    steps = [places[step, "validation"] for step in STEPS.values()]
    written["properties"]["steps"]["items"] = {"anyOf": steps}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **written,
        "title": "labctl scenario",
        "$defs": definitions,
    }


def find(paths: Sequence[str], shipped: Path) -> list[Path]:
    """Files for what was named: files, folders (all below), or names of shipped scenarios.

    Raises UsageError for what is none of these.
    """
    files: list[Path] = []
    for text in paths:
        path = Path(text)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix in (".yaml", ".yml"))
            if not found:
                raise UsageError(f"{text}: no scenario in this folder; a scenario ends in .yaml")
            files += found
        elif path.exists():
            files.append(path)
        elif named := sorted(shipped.rglob(f"{text}.yaml")):
            files += named
        else:
            known = [p.stem for p in sorted(shipped.rglob("*.yaml"))]
            raise UsageError(f"{text}: no such file; " + unknown("scenario", text, known))
    return list(dict.fromkeys(files))
