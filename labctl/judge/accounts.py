"""What each process did last, for those who ask why a run failed: how it ended or which call it is
in, its last failed call, its last output. Pure: from a scenario and its events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, Literal

from labctl.ground import errnos
from labctl.ground.data import dataclass
from labctl.judge.ends import cause
from labctl.judge.lives import Life, lives, target
from labctl.language.facts import NEVER_STARTED, Facts
from labctl.language.predicates.finding import Claimed
from labctl.language.scenario import Scenario
from labctl.language.steps import Restart, Start, Wait
from labctl.record.events import CallEvent, ProcessEvent, StepEvent
from labctl.record.history import History

MOST = 6
"""How many processes to show at most; those that a claim names come first."""
LINES, WIDTH = 5, 300
"""How many lines of its output to show at most, and how long each may be."""
BLOCKED_SHOWN = 3
CALLS_LOOKED_AT = 50
SOCKETS_LOOKED_AT = 200
SEGMENTS_LOOKED_AT = 2000
GONE_WITHIN = 2.0
"""How many seconds after a main process has ended its backend says whether anything is left."""


@dataclass(frozen=True)
class Account:
    """What a process did last. `condition` says in words what it does or how it ended, `state` says
    it as data. `asked`: a step has ended it. `cause` is what may have ended it, and what to do, if
    that is known."""

    process: str
    host: str
    condition: str
    exit: int | None = None
    signal: str | None = None
    asked: bool = False
    last_failed_call: str | None = None
    output: tuple[str, ...] = ()
    cause: str | None = None
    state: Literal["unstarted", "running", "paused", "ended"] | None = None

    @property
    def ended(self) -> bool:
        """Whether its main process has ended."""
        return (self.exit, self.signal) != (None, None)

    @property
    def sentence(self) -> str:
        """`server on web exited with 127 at 0.051 s`."""
        place = "" if self.host == self.process else f" on {self.host}"
        return f"{self.process}{place} {self.condition}"

    def as_json(self) -> dict[str, Any]:
        """As the result document has it."""
        return {**asdict(self), "output": list(self.output)}


def accounts(
    scenario: Scenario, history: History, claimed: Claimed | None = None
) -> tuple[Account, ...]:
    """What the processes of a claim did last: those that it names, those on hosts that it names,
    and those that they talk to. Without a claim: all processes that were started."""
    known = lives(scenario, history.events)
    names = list(known) if claimed is None else _concerned(scenario, history, known, claimed.about)
    found = []
    for name in names[:MOST]:
        host = scenario.processes[name].host if name in scenario.processes else known[name].host
        if life := known.get(name):
            end, failed = life.end, life.failed
            found.append(
                Account(
                    name, host, _condition(life, history.now),
                    end.exit if end else None, end.signal if end else None, life.asked,
                    f"{call_failed(failed)} at {failed.t:.3f} s" if failed else None,
                    tuple(_last_lines(life.output)),
                    cause(name, scenario, history, known, claimed),
                    "ended" if end else "running" if life.frozen is None else "paused",
                )
            )  # fmt: skip
        else:
            condition = f"was not started{_start(scenario, history, name)}"
            found.append(Account(name, host, condition, state="unstarted"))
    return tuple(found)


def call_failed(call: CallEvent) -> str:
    """`connect server:8000: ECONNREFUSED (111 on Linux, ...)`."""
    return f"{call.call}: {errnos.describe(call.errno or '')}"


def ended_meanwhile(scenario: Scenario, history: History) -> str | None:
    """`server exited with 2; still waiting`, if the latest event says so: a main process of a host
    that a wait is about has ended, no step was to end it, and the wait goes on. One that has made
    all its calls is no news."""
    event, index = history.events[-1], history.step
    if not isinstance(event, ProcessEvent) or event.phase != "exit" or event.start is not None:
        return None
    last = next(history.events.latest(StepEvent), None)
    step = scenario.steps[index] if last and last.phase == "begin" else None
    spec = scenario.processes.get(event.process)
    if not isinstance(step, Wait) or spec is None or (spec.calls is not None and event.exit == 0):
        return None
    concerned = {event.host, event.process} & {*step.wait.hosts, *(step.wait.process or ())}
    if not concerned or lives(scenario, history.events)[event.process].asked:
        return None
    return None if step.wait.holds(history) else f"{event.process} {_how(event)}; still waiting"


def halted_first(found: Iterable[Account], claimed: Claimed, measured: Facts) -> str:
    """Which of a wait's processes could do nothing for it, and why: they were paused or not
    started, or had ended and no step was to end them. Empty if the measurement already says so. Of
    processes that the wait does not name, only those that failed."""
    words = []
    for account in sorted(found, key=lambda account: account.exit == 0):
        own = {account.process, account.host} & {*claimed.about}
        if account.ended:
            said = account.process == claimed.subject and _tells_of_its_end(claimed, measured)
            halts = not account.asked and not said and (own or account.exit != 0)
        else:
            halts = account.state in ("unstarted", "paused") and measured.process != NEVER_STARTED
        if halts:
            words.append(account.sentence)
    return "; ".join(words[:2])


def _tells_of_its_end(claimed: Claimed, measured: Facts) -> bool:
    """Whether the measurement says how a process ended. If a failed call ended it, it names only
    that call."""
    wanted = claimed.wanted
    asked = (wanted.process, wanted.exit, wanted.signal, wanted.errno) != (None,) * 4
    return asked and not (measured.errno and measured.exit)


def reasons(found: Iterable[Account]) -> list[str]:
    """A sentence for each process that ended for a known reason."""
    return [f"{account.process}: {account.cause}" for account in found if account.cause]


def account_lines(found: Sequence[Account], besides: Sequence[str] = ()) -> Iterator[str]:
    """Accounts as lines for people, without lines of output that already stand in `besides`."""
    for account in found:
        yield summed_up(account)
        yield from (f"  | {line}" for line in account.output if line not in besides)


def summed_up(account: Account) -> str:
    """An account as one line for people, without its output."""
    failed = account.last_failed_call
    return account.sentence + (f"; last failed: {failed}" if failed else "")


def _condition(life: Life, now: float) -> str:
    end = life.end
    if end is None:
        blocked = [f"{call.call} since {call.t:.3f} s" for call in life.blocked.values()]
        within = f"in {', '.join(blocked[:BLOCKED_SHOWN])}" if blocked else ""
        if life.frozen is not None:
            return ", ".join(filter(None, [f"is paused since {life.frozen:.3f} s", within]))
        return f"runs, blocked {within}" if blocked else "runs"
    within = (
        f", in {life.within.call}"
        if life.within and life.within.name not in ("return", "exit")
        else ""
    )
    lives_on = not life.gone and (life.blocked or now - end.t > GONE_WITHIN)
    left = "; what it left still runs" if lives_on else ""
    return f"{_how(end)} at {end.t:.3f} s{within}{left}"


def _how(end: ProcessEvent) -> str:
    return f"was killed by SIG{end.signal}" if end.signal else f"exited with {end.exit}"


def _last_lines(output: str) -> list[str]:
    lines = [line.rstrip()[:WIDTH] for line in output.splitlines()]
    return [line for line in lines if line][-LINES:]


def _start(scenario: Scenario, history: History, name: str) -> str:
    for index, step in enumerate(scenario.steps):
        if isinstance(step, Start | Restart) and name in step.starts:
            came = "comes later" if index > history.step else "was not done"
            return f": its start, at {scenario.step_sources[index]}, {came}"
    return ": no step starts it"


def _concerned(
    scenario: Scenario, history: History, known: dict[str, Life], about: Sequence[str]
) -> list[str]:
    """The processes that a claim is about. Those that it names, or whose hosts it names, come
    first."""
    specs = scenario.processes
    hosts = {name for name in scenario.hosts if name in about}
    own = [name for name in specs if name in about]
    hosts |= {specs[name].host for name in own}
    for host in sorted(hosts, key=list(scenario.hosts).index):
        there = [name for name, spec in specs.items() if spec.host == host]
        own += [name for name in there if name in known] or there
    peers = _peers(history, known, hosts)
    others = [name for name, life in known.items() if life.host in peers]
    return list(dict.fromkeys([*own, *others]))


def _peers(history: History, known: dict[str, Life], hosts: set[str]) -> set[str]:
    """The hosts that these hosts talk to, or try to."""
    sent = history.segments()[-SEGMENTS_LOOKED_AT:]
    pairs = {(s.sender, s.receiver) for s in sent if s.sender}
    for life in known.values():
        for call in [*life.calls[-CALLS_LOOKED_AT:], *life.blocked.values()]:
            pairs.add((life.host, history.owners.get(_address(call.peer or ""))))
            pairs.add((life.host, target(call)[0].partition(".")[0]))
    for host, look in history.sockets.items():
        for socket in look.sockets[:SOCKETS_LOOKED_AT]:
            pairs.add((host, history.owners.get(socket.remote.unmapped)))
    found = {there for here, there in pairs if here in hosts}
    return {name for name in found | {h for h, there in pairs if there in hosts} if name} - hosts


def _address(end: str) -> str:
    return end.rpartition(":")[0].strip("[]").removeprefix("::ffff:")
