"""A scenario as it is written: the models of the loader and of `labctl schema`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic.config import JsonDict

from labctl.backends import Router
from labctl.backends.capabilities import CAPABILITIES
from labctl.ground.plain import shown
from labctl.language.predicates import Claim
from labctl.language.steps import LOOKING, STEPS, Step, modifiers
from labctl.language.values import (
    MAX_ADDRESSES,
    OFF,
    Memory,
    Model,
    ParamName,
    ProgramCalls,
    Right,
    SysctlKey,
    SysctlValue,
    Text,
    Uid,
    Variable,
    known,
    problem,
    shaped,
    unknown,
)

NewHost = Annotated[str, shaped("HostName")]
NewNetwork = Annotated[str, shaped("NetworkName")]
NewProcess = Annotated[str, shaped("ProcessName")]
Title = Annotated[Text, shaped("Line")]


def _command(value: Any) -> tuple[Any, ...]:
    words = value
    if value == "":
        return ()
    if isinstance(value, str):
        try:
            words = shlex.split(value)
        except ValueError as exc:
            raise problem(f"{shown(value)} is no command line: {exc}") from exc
    if not isinstance(words, list | tuple) or not words or not all(_scalar(w) for w in words):
        raise problem("a command line is wanted here: a text or a list of words")
    return tuple(words)


def _scalar(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


Command = Annotated[tuple[Text, ...], BeforeValidator(_command), shaped("Command")]


JOBS = ("run", "image", "default")
HAS_CALLS: JsonDict = {
    "required": ["calls"],
    "properties": {"calls": {"not": {"enum": [*OFF]}}},
}
JOB_KEYS: list[JsonDict] = [{"required": [job]} for job in JOBS]
ONE_JOB: JsonDict = {"allOf": [HAS_CALLS, {"anyOf": [*JOB_KEYS]}]}
SOME_JOB: JsonDict = {"anyOf": [HAS_CALLS, *JOB_KEYS]}

SERVICE_AND_MORE: JsonDict = {
    "required": ["service"],
    "properties": {"service": {"minLength": 1}},
    "anyOf": [HAS_CALLS, {"required": ["image"]}, {"required": ["default"]}],
}


class Program(Model):
    """What a process does, and as which user."""

    model_config = ConfigDict(json_schema_extra={"not": ONE_JOB})
    calls: ProgramCalls | None = None
    watch: Literal["calls", "io", "off"] | None = None
    run: Command | None = None
    default: Command | None = None
    image: Text | None = None
    uid: Uid = None
    env: dict[Variable, Text] = Field(default_factory=dict)
    rights: list[Right] = Field(default_factory=list)
    mem_limit: Memory | None = None
    pids_limit: Annotated[int, Field(ge=1, strict=True)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _calls_off(cls, written: Any) -> Any:
        """`calls: off` watches none of a program's."""
        if isinstance(written, Mapping) and written.get("calls") in OFF:
            if written.get("watch") is not None:
                raise problem("'calls: off' and 'watch' exclude each other; keep one")
            return {**{k: v for k, v in written.items() if k != "calls"}, "watch": "off"}
        return written

    @model_validator(mode="after")
    def _one_job(self) -> Program:
        for other in ("run", "default"):
            if self.calls is not None and getattr(self, other) is not None:
                raise problem(f"'calls' and '{other}' exclude each other; keep one")
        if self.calls is not None and self.image is not None:
            raise problem("'calls' needs the peer image; keep 'calls' or 'image'")
        if self.run == () and not self.default and not self.image:
            raise problem("an empty 'run' needs an 'image', whose own command runs, or a 'default'")
        return self

    @property
    def works(self) -> bool:
        """Whether it says what runs."""
        return self.calls is not None or bool(self.run or self.default or self.image)

    def command(self, image: str | None) -> tuple[str, ...] | None:
        """What it runs in an image, or without one; None means the image's own command, or
        calls."""
        return self.run or (None if image else self.default) or None


class Process(Program):
    """A process among several on a host."""

    model_config = ConfigDict(json_schema_extra={**SOME_JOB, "not": ONE_JOB})

    @model_validator(mode="after")
    def _some_job(self) -> Process:
        if not self.works:
            raise problem("a process needs 'calls', 'run', 'image' or 'default'")
        return self


CRAFTED_AND_MORE: JsonDict = {
    "required": ["peer"],
    "anyOf": [SOME_JOB, {"required": ["service"]}, {"required": ["processes"]}],
}

NOT_A_SERVICES = ("calls", "run", "default", "image", "uid", "env", "rights",
                  "mem_limit", "pids_limit")  # fmt: skip
"""What a Compose file says of a service, and no host."""


class Host(Program):
    """A host: its sysctls, its addresses and its processes, or the service that it is; as what kind
    of router it forwards; and whether it is a peer that steps alone make up."""

    model_config = ConfigDict(
        json_schema_extra={"not": {"anyOf": [ONE_JOB, SERVICE_AND_MORE, CRAFTED_AND_MORE]}}
    )
    service: Text | None = None
    sysctls: dict[SysctlKey, SysctlValue] = Field(default_factory=dict)
    addresses: Annotated[int, Field(ge=1, le=MAX_ADDRESSES, strict=True)] = 1
    engine: Text | None = None
    router: Router | None = None
    peer: Literal["crafted"] | None = None
    processes: dict[NewProcess, Process] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _service_alone(self) -> Host:
        for other in NOT_A_SERVICES if self.service else ():
            if getattr(self, other) not in (None, {}, []):
                raise problem(f"'service' and '{other}' exclude each other: what a service runs, "
                              "its Compose file says", key=other)  # fmt: skip
        return self

    @model_validator(mode="after")
    def _crafted_alone(self) -> Host:
        if self.peer and (self.service or self.processes or super().works):
            raise problem("a crafted peer runs nothing, as its kernel hears nothing; keep 'peer' "
                          "or what runs there", key="peer")  # fmt: skip
        return self

    @property
    def works(self) -> bool:
        """Whether it has a process of its own name."""
        if self.service:
            return True
        named = self.calls is not None or self.run or self.default or not self.processes
        return super().works and bool(named)


def _step(value: Any, handler: Any, info: ValidationInfo) -> Step:
    if isinstance(value, Step):
        return value
    if not isinstance(value, Mapping):
        raise problem(f"a step is a mapping with one verb ({', '.join(STEPS)}), not {shown(value)}")
    verbs = [key for key in value if key in STEPS]
    if len(verbs) > 1:
        raise problem(f"one verb a step, not {' and '.join(verbs)}; make it two steps")
    if not verbs:
        word = next((key for key in value if key not in modifiers()), None)
        if word is None:
            raise problem(f"a step needs a verb; allowed: {', '.join(STEPS)}")
        raise problem(unknown("verb", word, STEPS), key=word)
    return STEPS[verbs[0]].model_validate(value, context=info.context)


AnyStep = Annotated[Step, WrapValidator(_step)]


Capability = Annotated[
    str,
    BeforeValidator(lambda value: known("capability", value, CAPABILITIES)),
    shaped("Capability"),
]


ACTS: JsonDict = {"not": {"anyOf": [{"required": [step.verb]} for step in LOOKING]}}
TWO_HOSTS = "two hosts or more are needed"


class Written(Model):
    """A scenario as it is written: the model of `labctl schema`."""

    model_config = ConfigDict(json_schema_extra={
        "if": {"required": ["steps"], "properties": {"steps": {"contains": ACTS}}},
        "then": {"properties": {"hosts": {"minProperties": 2}}},
    })  # fmt: skip

    title: Title
    theme: Text = ""
    about: Text = ""
    refs: list[Text] = Field(default_factory=list)
    params: dict[ParamName, Any] = Field(default_factory=dict)
    variants: list[Annotated[dict[ParamName, Any], Field(min_length=1)]] = Field(
        default_factory=list
    )
    compose: Text = ""
    networks: dict[NewNetwork, list[NewHost]] | None = None
    hosts: Annotated[dict[NewHost, Host], Field(json_schema_extra={"minProperties": 1})]
    steps: list[AnyStep]
    expect: list[Claim] = Field(default_factory=list)
    needs: list[Capability] = Field(default_factory=list)

    @field_validator("title")
    @classmethod
    def _one_line(cls, title: str) -> str:
        if not title.strip() or "\n" in title.strip():
            raise problem("a title is one line")
        return title.strip()

    @model_validator(mode="after")
    def _two_hosts(self) -> Written:
        """Of somebody who is only watched there may be one alone."""
        acts = any(not isinstance(step, LOOKING) for step in self.steps)
        if not self.hosts or (acts and len(self.hosts) < 2):
            raise problem(f"{TWO_HOSTS}: a connection has two ends", key="hosts")
        return self


class MoreSteps(Model):
    """Steps by themselves, for a scenario that goes on."""

    steps: list[AnyStep]
