"""Why a process ended, or could do no more, as far as the events show, and what to do. Pure.

There is a function for each kind of reason; the first that finds one decides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from signal import Signals

from labctl.backends import ProcessSpec
from labctl.ground.data import dataclass
from labctl.ground.errnos import LOOKUP_FAILED
from labctl.judge.lives import Life, target
from labctl.language.facts import AWAITING
from labctl.language.predicates.finding import Claimed
from labctl.language.scenario import Scenario
from labctl.probes.observations import Segment
from labctl.probes.sockets import Socket
from labctl.record.events import CallEvent, SocketsEvent
from labctl.record.history import History

NOT_FOUND, NOT_RUN = 127, 126
"""The exit statuses of exec and shells: the command is not there, or can't be run."""
OF_SIGNALS = range(129, 129 + 64)
ITSELF = re.compile(r"(?<![\w.-])(localhost|127\.\d+\.\d+\.\d+|\[?::1\]?)(?![\w.-])")
UNREACHED = re.compile(r"refused|connect", re.IGNORECASE)
NO_FILE = re.compile(r"No such file|Cannot find module '[./]")
NO_MODULE = re.compile(r"No module named '?([\w.]+)|Cannot find (?:module|package) '([^'./][^']*)'")
READ_ONLY = "Read-only file system"
OWN = ("/tmp/", "/var/tmp/", "/run/", "/var/run/", "/dev/shm/")
PATHS = re.compile(r"(?<![\w./])/[^\s'\":,;()]+")
OWN_THERE = (
    "on namespaces /tmp, /var/tmp, /run and /dev/shm are the lab's own, without what is there "
    "outside; start labctl in its folder, or move it"
)
LOCAL = re.compile(r"\blocal: *[^,}#]*?:(?:\$\{(\w+)\}|\d+)")
"""Where a scenario claims a local port, and the param that it comes from, if it does."""
LAST_LINES = 20
CURL = {
    6: "it could not resolve the name", 7: "it could not connect", 28: "its time was over",
    35: "TLS failed", 52: "the server closed without an answer", 56: "the connection broke",
}  # fmt: skip
"""The meaning of curl(1)'s exit statuses."""
DEBUG = "see it by hand: labctl run --keep, then labctl shell"


@dataclass(frozen=True)
class Case:
    """A process, and all that is known of its lab."""

    name: str
    host: str
    life: Life
    spec: ProcessSpec
    scenario: Scenario
    history: History
    known: Mapping[str, Life]
    claimed: Claimed | None

    @property
    def status(self) -> int | None:
        """What its main process exited with."""
        return self.life.end.exit if self.life.end else None

    def hides(self, path: str) -> bool:
        """Whether a file of this machine may be where no lab shows it: of folders that each lab has
        for itself, it shows only the one where labctl was called."""
        folder = self.folder
        inside = folder and path.startswith(f"{folder}/")
        return self.there == "on this machine" and path.startswith(OWN) and not inside

    @property
    def folder(self) -> str:
        """The current folder of labctl, where its programs start; empty if that is not known."""
        return self.history.lab.environment.get("folder") or "" if self.history.lab else ""

    @property
    def there(self) -> str:
        """Where its program and its files come from."""
        if self.history.lab is None or self.history.lab.backend != "docker":
            return "on this machine"
        return f"in the image {self.spec.image}" if self.spec.image else "in the peer image"


def cause(
    name: str,
    scenario: Scenario,
    history: History,
    known: Mapping[str, Life],
    claimed: Claimed | None,
) -> str | None:
    """What may have ended a process, or may keep it from doing what is `claimed`, in a sentence;
    None if nothing is known, or a step has ended it."""
    life, spec = known[name], scenario.processes.get(name)
    if spec is None or life.asked:
        return None
    case = Case(name, life.host, life, spec, scenario, history, known, claimed)
    return next(filter(None, (kind(case) for kind in KINDS)), None)


def _last_call(case: Case) -> CallEvent | None:
    """The failed call that ended it, or its last one."""
    last = case.life.calls[-1] if case.life.calls else None
    return last if last and last.errno else None


def _refusal(case: Case) -> tuple[str, int, float] | None:
    """Where it wanted to connect and nobody listened, and when: by its call or, if it is a program
    whose output says so, by the segments."""
    call = _last_call(case)
    if call and call.errno == "ECONNREFUSED" and call.name == "connect":
        return (*target(call), call.t)
    said = " ".join(case.spec.run or ()) + case.life.output
    if case.status and UNREACHED.search(case.life.output):
        answers: dict[tuple[str, str], list[Segment]] = {}
        for segment in case.history.segments():
            if segment.receiver == case.host != segment.sender:
                answers.setdefault((segment.source, segment.target), []).append(segment)
        refusals = [all_[0] for all_ in answers.values() if all("RST" in s.flags for s in all_)]
        for segment in reversed(refusals):
            host, _, port = segment.source.rpartition(":")
            if port in said:  # else it was another process of the host
                return host.strip("[]"), int(port), segment.time
    return None


def _refused(case: Case) -> str | None:
    refusal = _refusal(case)
    if refusal is None:
        return None
    name, port, t = refusal
    address = case.history.lab.addresses.get(name, name) if case.history.lab else name
    host = case.history.owners.get(address, "")
    if ITSELF.fullmatch(name) or not name or host == case.host:
        others = [other for other in case.scenario.hosts if other != case.host]
        others.sort(key=lambda other: port not in {s.local.port for s in _listeners(case, other)})
        return (
            f"{name or 'the wildcard'} is {case.host} itself, where nothing listened at {port}; "
            f"another host goes by its name: connect {others[0]}:{port}"
        )
    if not host:
        return None
    name = host if name == address else name
    then = [s.local for s in _listeners(case, host, t)]
    now = [s.local for s in _listeners(case, host)]
    if at := [local for local in then if local.port == port]:
        if any(local.wildcard or local.unmapped == address for local in at):
            return None  # a listener was there, and the connection was refused all the same
        return f"{host} listened at {at[0]} alone, which is not {name}; bind :{port}"
    if any(local.port == port for local in now):
        return (
            f"{host} did not listen at {port} then, and does now; before {case.name} starts, "
            f"wait: {{sockets: {{{host}: LISTEN}}}}"
        )
    if now:
        ports = ", ".join(dict.fromkeys(f":{local.port}" for local in now))
        return f"nothing listened at {port} of {host}, which listens at {ports}"
    ran = any(life.host == host for life in case.known.values())
    return f"nothing listened at {port} of {host}" + (
        "" if ran else ", where no process was started"
    )


def _listeners(case: Case, host: str, t: float = float("inf")) -> list[Socket]:
    """The listeners of a host in the last look before a moment."""
    for event in case.history.events.latest(SocketsEvent):
        if event.host == host and event.t <= t:
            return [socket for socket in event.sockets if socket.is_listener]
    return []


def _nameless(case: Case) -> str | None:
    call = _last_call(case)
    if call is None or call.errno != LOOKUP_FAILED:
        return None
    name = target(call)[0] or call.call
    names = list(case.history.lab.addresses) if case.history.lab else []
    close = get_close_matches(name, names, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    family = " in the family of its socket" if name in names else ""
    return f"nobody is called {name!r}{family}; there are {', '.join(case.scenario.hosts)}{meant}"


def _socketless(case: Case) -> str | None:
    call = _last_call(case)
    if call is None or call.errno != "EBADF":
        return None
    return f"`{call.call}` had no socket to act on; `socket` makes one, `close` takes it away"


def _itself(case: Case) -> str | None:
    found, said = ITSELF.search(" ".join(case.spec.run or ())), case.life.output
    if not found or not case.status or (said.strip() and not UNREACHED.search(said)):
        return None
    return f"{found[0]} in its command is {case.host} itself; other hosts go by their names"


def _not_found(case: Case) -> str | None:
    if case.status not in (NOT_FOUND, NOT_RUN) or not case.spec.run:
        return None
    program, also = case.spec.run[0], ""
    if case.there == "in the peer image":
        also = ", or give it an `image` that has it"
    if not re.search(rf"(cannot run|exec) {re.escape(program)}\b", case.life.output):
        return f"its shell could not run a command {case.there}; correct `run`{also}"
    if case.status == NOT_RUN:
        return f"{program!r} can't be run {case.there}: see that it is a program, with chmod +x"
    if case.hides(program):
        return f"the lab does not show a program {program!r}: {OWN_THERE}"
    return f"there is no program {program!r} {case.there}; correct `run`{also}"


def _no_file(case: Case) -> str | None:
    last = case.life.output.strip().splitlines()[-LAST_LINES:]
    lines = [line.strip() for line in last if NO_FILE.search(line)]
    if not case.status or not lines or not case.spec.run:
        return None
    if any(case.hides(path) for path in PATHS.findall(lines[-1])):
        return f"the lab does not show a file ({lines[-1]}): {OWN_THERE}"
    place = f"{case.folder}, " if case.folder else ""
    hint = f"programs start in {place}the current folder of labctl"
    if case.there != "on this machine":
        hint = "files of this machine are not in containers, so make an image that has it"
    return f"a file is not {case.there} ({lines[-1]}); {hint}"


def _read_only(case: Case) -> str | None:
    said = [line.strip() for line in case.life.output.splitlines() if READ_ONLY in line]
    if not case.status or not said or case.there != "on this machine":
        return None
    return (
        f"on namespaces it sees this machine read-only ({said[-1]}); let it write below /tmp, or "
        "use --backend docker"
    )


def _no_module(case: Case) -> str | None:
    found = NO_MODULE.search(case.life.output)
    if not case.status or not found or not case.spec.run:
        return None
    return f"the module {found[1] or found[2]!r} is not {case.there}; install it there"


def _signalled(case: Case) -> str | None:
    end = case.life.end
    if end and end.signal == "KILL":
        return "no step killed it; the kernel does for want of memory, which dmesg tells"
    if end and end.signal in ("SEGV", "BUS", "ILL", "FPE", "ABRT", "SYS", "TRAP"):
        return f"its program crashed (SIG{end.signal})"
    if end and end.signal:
        return f"no step sent it SIG{end.signal}: another program did, or it did so itself"
    return None


def _wordless(case: Case) -> str | None:
    if not case.status or _last_call(case):
        return None
    if case.life.within and case.life.within.name == "exit":
        return f"its own call `{case.life.within.call}` says so"
    if case.status in OF_SIGNALS and case.status - 128 in {*Signals}:
        name = Signals(case.status - 128).name
        return f"{case.status} is what a shell says of a command that {name} ended; {DEBUG}"
    if case.life.output.strip():
        return None
    program = case.spec.run[0].rpartition("/")[2] if case.spec.run else ""
    if program == "curl" and case.status in CURL:
        return f"curl's {case.status}: {CURL[case.status]}; without -s it says more"
    return f"its program chose {case.status}, and wrote nothing; {DEBUG} {case.host}"


def _silent(case: Case) -> str | None:
    claimed = case.claimed
    if case.life.end or case.life.output or not case.spec.run or claimed is None:
        return None
    if claimed.subject != case.name or claimed.wanted.output is None:
        return None
    return (
        "it has written nothing yet; what it wrote may wait in its buffer: python3 -u, stdbuf -oL"
    )


def _elsewhere(case: Case) -> str | None:
    """Its host listens, but not where a claim wants a listener."""
    claimed, alone = (
        case.claimed,
        all(o is case.life or o.host != case.host for o in case.known.values()),
    )
    if case.life.end or not alone or claimed is None or claimed.subject != case.host:
        return None
    there = list(dict.fromkeys(socket.local.port for socket in _listeners(case, case.host)))
    missed = [port for port in claimed.wanted.listens if port not in there]
    if not there or not missed:
        return None
    listed = ", ".join(f":{port}" for port in there)
    params = {*LOCAL.findall(case.scenario.text)}
    known = len(there) == len(params) == 1 and "" not in params
    hint = f"; --set {params.pop()}={there[0]}" if known else ""
    return f"it listens on {listed}, and not on :{missed[0]}{hint}"


def _deaf(case: Case) -> str | None:
    asked = case.claimed and case.claimed.wanted.process == AWAITING
    if case.life.end or not asked or case.spec.calls is None or "await" in case.spec.calls:
        return None
    return "it does what `call` steps ask for once its own calls end with `await`"


KINDS = (
    _refused, _nameless, _socketless, _not_found, _no_file, _read_only, _no_module, _itself,
    _signalled, _wordless, _silent, _elsewhere, _deaf,
)  # fmt: skip
