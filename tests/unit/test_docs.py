"""The docs are complete, and true as far as a program can tell."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from labctl.backends.capabilities import CAPABILITIES
from labctl.cli import commands as cli
from labctl.cli.exits import EXIT, INTERRUPTED
from labctl.ground.errors import LabctlError
from labctl.ground.resources import APART, catalogue, shelf
from labctl.judge.accounts import Account
from labctl.judge.causes.cause import Cause
from labctl.judge.check import Verdict
from labctl.judge.result import unperformed
from labctl.language import models, predicates, scenario, steps
from labctl.language.calls import parse_calls, peer
from labctl.language.document import Document
from labctl.language.facts import Facts
from labctl.language.steps import faults, injecting
from labctl.probes.sockets import State
from labctl.record.events import KINDS

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
JUDGING = {"servers", "clients", "proxies"}
SCENARIOS = sorted(catalogue(ROOT / "scenarios").values())
SCHEMA = ROOT / "docs" / "scenario.schema.json"
MODELINE = re.compile(r"# yaml-language-server: \$schema=(\S+)\n")

FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
ROW = re.compile(r"^\| (.+) \|$", re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")
BAR = re.compile(r"(?<!\\)\|")

AROUND: dict[str, Any] = {
    "title": "What a fragment stands in",
    "hosts": {"server": {"calls": "await"}, "client": {"calls": "await"}},
    "steps": [],
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its info string, its content, and where it begins."""

    page: Path
    line: int
    info: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


@cache
def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, line, found.group(1), found.group(2))


BLOCKS = [block for page in PAGES for block in blocks(page)]


def table(name: str, heading: str, first: str) -> list[list[str]]:
    """The rows below `| FIRST |` in a section, as cells; fails where there is no such table."""
    sections = re.split(r"^#+ ", FENCE.sub("", read(name)), flags=re.MULTILINE)
    (section,) = (text for text in sections if text.partition("\n")[0] == heading)
    rows = [[cell.strip() for cell in BAR.split(row)] for row in ROW.findall(section)]
    ends = [i for i, row in enumerate(rows) if set(row[0]) <= {"-"}]
    for this, following in zip(ends, [*ends[1:], len(rows) + 1], strict=True):
        if rows[this - 1][0] == first:
            return rows[this + 1 : following - 1]
    raise AssertionError(f"{name} has no table {first!r} below {heading!r}")


def words(name: str, heading: str, first: str) -> list[str]:
    """The first word of everything that stands as code in the first column of a table."""
    codes = [code for row in table(name, heading, first) for code in CODE.findall(row[0])]
    return [re.split(r"[\s:]", code, maxsplit=1)[0] for code in codes]


def keys(model: Any) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


LANGUAGE = "docs/language.md"


# --- What exists is documented, and nothing else --------------------------------------------------


@pytest.mark.parametrize(
    ("heading", "first", "known"),
    [
        ("Top level", "key", keys(models.Written)),
        ("Top level", "capability", set(CAPABILITIES)),
        ("Hosts", "key", keys(models.Host)),
        ("Processes", "key", keys(models.Process)),
        ("Calls", "call", set(peer().CALLS)),
        ("Steps", "verb", set(steps.STEPS)),
        ("Drops", "key of a drop", keys(faults.DropPattern)),
        ("Links", "key of a link", keys(faults.NetPattern)),
        ("Injections", "key of an injection", keys(injecting.InjectPattern)),
        ("Modifiers", "modifier", steps.modifiers()),
        ("Modifiers", "key", keys(steps.When)),
        ("Predicates", "subject", keys(predicates.Predicate)),
        ("Sockets", "key", keys(predicates.SocketPattern)),
        ("Process", "key", keys(predicates.ProcessPattern)),
        ("Segments", "key", keys(predicates.SegmentsPattern)),
        ("Values", "state", {str(state) for state in State}),
        ("The run directory", "kind", set(KINDS)),
    ],
)  # fmt: skip
def test_language(heading: str, first: str, known: set[str]) -> None:
    said = set(words(LANGUAGE, heading, first))
    assert said == known, (
        f"{LANGUAGE}, section {heading!r}, table {first!r}: "
        f"add rows for {sorted(known - said)}, remove those of {sorted(said - known)}"
    )


def test_capabilities() -> None:
    """Each as the table of labctl has it; the docs may say more of what it is."""
    said = {row[0].split("`")[1]: row[1] for row in table(LANGUAGE, "Top level", "capability")}
    lacks = {row[0].strip("`"): row[1:] for row in table(LANGUAGE, "Top level", "lacking")}
    assert said.keys() == lacks.keys() == CAPABILITIES.keys()
    for name, known in CAPABILITIES.items():
        assert said[name].startswith(known.what)
        assert lacks[name] == [known.probed, f"`{known.check}`", known.cost, known.hint]


def test_language_other_states() -> None:
    for name, others in table(LANGUAGE, "Values", "state"):
        for other in CODE.findall(others):
            assert f"`{State.parse(other)}`" == name


def test_result_document(tmp_path: Path) -> None:
    (case,) = load(AROUND)
    verdict = Verdict("pass", "", "", "", 0.0, "")
    why = LabctlError("why", "what to do")
    run = replace(unperformed(case, "skip", why, "netns", tmp_path), verdicts=(verdict,))
    result, each_run, each_verdict = (
        words(LANGUAGE, "The result", first) for first in ("result", "key", "key of a verdict")
    )
    assert set(result) == set(EXIT)
    assert each_run == list(run.as_json())
    assert each_verdict == list(verdict.as_json())
    measured = table(LANGUAGE, "The result", "key of what is measured")
    assert [key for row in measured for key in CODE.findall(row[0])] == [
        field.name for field in fields(Facts)
    ]
    account = table(LANGUAGE, "What processes did last", "key of a process")
    assert [key for row in account for key in CODE.findall(row[0])] == [
        field.name for field in fields(Account)
    ]


def test_the_index_has_every_page() -> None:
    named = {target for target in LINK.findall(read("docs/README.md")) if "/" not in target}
    there = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert named == there - {"README.md"}


def test_causes() -> None:
    sources = [path.read_text("utf-8") for path in (ROOT / "labctl/judge/causes").glob("*.py")]
    found = {name for text in sources for name in re.findall(r'"([a-z]+(?:-[a-z0-9]+)+)"', text)}
    said = {*words("docs/causes.md", "Causes", "id")}
    assert said == found, (
        f"docs/causes.md: add rows for {sorted(found - said)}, remove those of "
        f'{sorted(said - found)}; every "two-words" in labctl/judge/causes counts as an id'
    )
    assert words("docs/causes.md", "Causes", "key of a cause") == [f.name for f in fields(Cause)]


def test_exit_statuses() -> None:
    documented = {int(row[0]) for row in table("README.md", "Exit statuses", "status")}
    kinds = [LabctlError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert documented == {
        *EXIT.values(),
        INTERRUPTED,
        *(kind.exit_status for kind in kinds),
    }
    for result, _, status in table(LANGUAGE, "The result", "result"):
        assert EXIT[result.strip("`")] == int(status)


def commands(group: click.Group, *above: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *above, name)
        elif not command.hidden:
            yield " ".join(("labctl", *above, name)), command


COMMANDS = dict(commands(cli.main))


def test_commands() -> None:
    documented = {}
    for row in table("README.md", "Commands", "command"):
        (usage,) = CODE.findall(row[0])
        (name,) = (name for name in COMMANDS if f"{usage} ".startswith(f"{name} "))
        documented[name] = usage.removeprefix(name), " ".join(row)
    assert set(documented) == set(COMMANDS)
    for name, command in COMMANDS.items():
        arguments, text = documented[name]
        for parameter in command.params:
            if isinstance(parameter, click.Argument):
                assert parameter.human_readable_name in arguments
            else:
                assert max(parameter.opts, key=len) in text


def test_common_options() -> None:
    with click.Context(cli.main, **cli.main.context_settings) as context:
        for parameter in cli.main.get_params(context):
            for option in parameter.opts:
                assert re.search(rf"`[^`]*{option}`", read("README.md"))


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_where_to_add(page: str) -> None:
    whole = table("docs/architecture.md", "Where to add things", "to add")
    assert [row for row in table(page, "Where to add things", "to add") if row not in whole] == []


def test_where_to_add_names_what_is_there() -> None:
    for row in table("docs/architecture.md", "Where to add things", "to add"):
        text = "".join(read(path) if (ROOT / path).is_file() else "\n".join(
            file.read_text("utf-8") for file in (ROOT / path).glob("*.*")
        ) for path in CODE.findall(row[1]) if "/" in path)  # fmt: skip
        for name in re.findall(r"\b[A-Z]{4,}\b", row[1].replace("README", "")):
            assert re.search(rf"^{name}\b", text, re.MULTILINE), f"{name} in {row}"


def test_lessons() -> None:
    listed = words("docs/lessons.md", "The lessons", "lesson")
    assert sorted(listed) == sorted(path.stem for path in SCENARIOS)


def test_the_tests_of_others() -> None:
    """Each scenario that stands apart once, and each says where it comes from."""
    apart = {n: p for n, p in shelf(ROOT / "scenarios").items() if n.startswith(APART)}
    listed = re.findall(r"^\| \[`(\w+)`\]", read("docs/peers.md"), re.MULTILINE)
    assert sorted(APART + name for name in listed) == sorted(apart)
    for path in apart.values():
        (case, *_) = scenario.load(path)
        assert case.refs
        assert case.theme
        assert f"| {case.title} |" in read("docs/peers.md")


def test_catalogue() -> None:
    """Each fact once, with lessons that exist; and no lesson that shows none, but for those that
    judge servers, clients and proxies."""
    rows = [BAR.split(row) for row in ROW.findall(read("docs/catalogue.md"))]
    shown = {ident.strip(): CODE.findall(lessons) for ident, _, lessons in rows}
    facts = [f"S{n}" for n in range(1, 14)] + [f"F{n}" for n in range(1, 46)]
    assert [row[0].strip() for row in rows if row[0].strip()[1:].isdigit()] == facts
    assert all(shown[fact] for fact in facts)
    named = {lesson for fact in facts for lesson in shown[fact]}
    assert named == {path.stem for path in SCENARIOS if path.parent.name not in JUDGING}


# --- Examples -------------------------------------------------------------------------------------


def load(data: dict[str, Any]) -> list[scenario.Scenario]:
    text = yaml.safe_dump(data, sort_keys=False)
    return scenario.load_document(Document("around", text), text, "around", {})


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_example(block: Block) -> None:
    """`yaml` is a scenario, `yaml KEY` what stands below a top-level key, `yaml excerpt` a part of
    a shipped scenario, `yaml workflow` none, and `calls` what a process does. A block may name its
    file."""
    kind, _, key = block.info.partition(" ")
    if block.info.startswith("yaml workflow"):
        yaml.safe_load(block.text)  # tests/unit/test_ci_of_others.py knows what it names
    elif block.info == "yaml" or (kind == "yaml" and "." in key):
        scenario.load_document(Document(str(block), block.text), block.text, "example", {})
    elif block.info == "yaml excerpt":
        assert any(block.text in path.read_text("utf-8") for path in SCENARIOS)
    elif block.info == "yaml hosts":
        load({**AROUND, key: {**AROUND["hosts"], **yaml.safe_load(block.text)}})
    elif kind == "yaml":
        assert key in keys(models.Written)
        load({**AROUND, key: yaml.safe_load(block.text)})
    elif kind == "calls":
        assert parse_calls(block.text)
    elif kind == "python":
        compile(block.text, str(block), "exec")  # tests/contract/test_testing.py runs it
    elif kind == "toml":
        tomllib.loads(block.text)
    elif kind == "json":
        json.loads(block.text)
    else:
        assert block.info in ("sh", "sh fails", "text")


def shell_lines() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        text = page.read_text("utf-8")
        inline = (code for code in CODE.findall(FENCE.sub("", text)) if "|" not in code)
        fenced = (line for b in blocks(page) if b.info == "sh" for line in b.text.splitlines())
        yield from ((page, line) for line in (*inline, *fenced) if line.startswith("labctl "))


def test_labctl_lines() -> None:
    """Every `labctl ...` has a command and options that exist; a changelog tells of others too."""
    for page, line in shell_lines():
        if page.name == "CHANGELOG.md":
            continue
        command = re.split(r"[;>#]| -- ", re.sub(r'"[^"]*"', "", line))[0].strip()
        if command == "labctl --version":
            continue
        names = [name for name in COMMANDS if f"{command} ".startswith(f"{name} ")]
        groups = [name for name in cli.main.commands if command == f"labctl {name}"]
        assert names or groups, f"{page.name}: {line}"
        known = {option for name in names for p in COMMANDS[name].params for option in p.opts}
        used = re.findall(r"(?<=\s)--?[a-z][a-z-]*", command)
        assert set(used) <= {*known, "--help"}, f"{page.name}: {line}"


def test_compose_lines() -> None:
    """What is to be done by hand stands in the header of compose.yaml."""
    found = [line for b in blocks(ROOT / "README.md") for line in b.text.splitlines()]
    lines = [line.strip() for line in found if line.startswith("docker compose ")]
    assert len(lines) == 4
    assert all(f"#     {line}" in read("compose.yaml").splitlines() for line in lines)


# --- Files ----------------------------------------------------------------------------------------


def without_signals(found: Any) -> Any:
    """A schema without the list of signals, which is the machine's own."""
    if isinstance(found, dict):
        return {k: without_signals(v) for k, v in found.items() if k != "enum" or "KILL" not in v}
    return [without_signals(item) for item in found] if isinstance(found, list) else found


@pytest.mark.parametrize("name", ["scenario", "history", "result"])
def test_schema_is_committed(name: str) -> None:
    printed = json.loads(CliRunner().invoke(cli.main, ["schema", name]).output)
    committed = json.loads((ROOT / "docs" / f"{name}.schema.json").read_text("utf-8"))
    assert without_signals(committed) == without_signals(printed), (
        f"run this: .venv/bin/labctl schema {name} > docs/{name}.schema.json"
    )


@pytest.mark.parametrize("path", shelf(ROOT / "scenarios").values(), ids=lambda path: path.stem)
def test_scenario_names_the_schema(path: Path) -> None:
    found = MODELINE.match(path.read_text("utf-8"))
    assert found
    assert (path.parent / found.group(1)).resolve() == SCHEMA


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    text = FENCE.sub("", page.read_text("utf-8"))
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        headings = HEADING.findall(FENCE.sub("", file.read_text("utf-8"))) if anchor else []
        assert not anchor or anchor in map(slug, headings), target


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
