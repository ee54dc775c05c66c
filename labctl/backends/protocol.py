"""The one protocol: every message between the controller and the programs in a lab, both ways.

Those of namespaces alone are in netns/messages.py, those of guests in run/guests/messages.py.

A message is a JSON object, one a line; one a packet on the world's socket. A message to a program
is a Command, and `do` names it. A message from a program is a Said: `kind` names it, and `t` is its
time, by CLOCK_MONOTONIC of the lab's kernel, in seconds. A command may have an `id`: then a `reply`
has the same `id`, and the fields of the command's Answer, or the `error` that prevented it.

The programs (agent.py, watch.py and tracer.py in images/host, peer.py and attach.py in images/peer,
netns/world.py) run on old Pythons and import nothing of this; tests/unit/test_protocol.py runs them
and checks that they follow it. They come from the same labctl as the controller, so nothing is
negotiated: `added` is the VERSION that brought a message.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import ConfigDict

from labctl.backends import Message
from labctl.backends.wire import A, Answer, Command, NoMessage, Program, Said, quoted
from labctl.probes.holders import Number
from labctl.probes.sockets import StateName

VERSION = 12
"""2 brought captures and the trace; 3 faults; 4 agents that rest; 5 the end of what a process left;
6 programs that report their faults, supervisors that answer, and counters and addresses as they
change; 7 a host's network apart from its watch; 8 guests; 9 resets; 10 calls of programs, who holds
 sockets, and the fate of segments; 11 what begins a lab on namespaces; 12 the moment of a kill, and
 calls of programs that ran before."""


class Hello(Said, kind="hello"):
    """A program's first message. Every lab has one: to have its checks built takes no time then."""

    model_config = ConfigDict(defer_build=False)


class Broken(Said, kind="broken", added=6):
    """A program's last message: what broke in it."""

    text: str


class Trouble(Said, kind="trouble"):
    """A probe that can't see."""

    probe: str
    text: str


class Done(Answer):
    """An answer without contents."""


# --- An agent -------------------------------------------------------------------------------------


class AgentHello(Hello, kind="hello"):
    """Both clocks at one moment, all counters, and what it polls (`watch`)."""

    wall: float
    counters: dict[str, int]
    kernel: str
    watch: str


class Sockets(Said, kind="sockets"):
    """The output of `ss`, and the counters that have changed; see SocketsEvent."""

    cause: Literal["change", "look"]
    text: str
    counters: dict[str, int]
    since: float | None = None
    caption: str | None = None


class Counters(Said, kind="counters", added=6):
    """The counters that have changed after `since`."""

    values: dict[str, int]
    since: float


class Packets(Said, kind="packets", added=2):
    """Captured packets: pcap records, in base64."""

    data: str

    @property
    def records(self) -> bytes:
        """The records. Raises NoMessage."""
        try:
            return base64.b64decode(self.data, validate=True)
        except ValueError as exc:
            raise NoMessage(f"no base64: {quoted(self.data)}") from exc


class Loss(Said, kind="loss", added=3):
    """A packet that the drop of a step has lost, or its head; in base64."""

    drop: int
    data: str


class Address(Said, kind="address", added=6):
    """An address that the host has now."""

    address: str


class Ready(Answer):
    """Why the host can't capture, or None; whether `ss` lists sockets that are only bound, if the
    command asked for that."""

    capture: str | None
    bound: bool


class Flushed(Answer, added=2):
    """How many packets found no room, on the link and inside the host; how many each drop has
    lost."""

    dropped: int
    dropped_inside: int
    lost: dict[str, int]


class SysctlsSet(Answer):
    """The sysctls that the host does not know, those that nobody can write there, and why others
    failed."""

    missing: list[str]
    readable: list[str]
    failed: dict[str, str]


class Executed(Answer):
    """A command's status and output, and how many bytes at its end were left out."""

    exit: int
    output: str
    left_out: int


class TellTime(Command[Done], do="clock"):
    """Tells the time."""


class SetNetwork(Command[Done], do="network", added=7):
    """Writes /etc/hosts, unless it is None, runs a batch of ip(8) commands, and makes nft(8) read
    its own. Interfaces may go by their hardware addresses."""

    hosts: str | None
    batch: str
    nft: str = ""


class SetUp(Command[Ready], do="setup"):
    """Begins to watch and to capture; see do_setup in agent.py."""

    longest: float
    share: int
    bound: bool


class Look(Command[Done], do="look"):
    """Reports sockets and counters. If nothing has happened since the last report, that is enough,
    unless this one must be `fresh`."""

    caption: str | None
    fresh: bool = True


class Wake(Command[Answer], do="wake", added=4):
    """Says that a socket may have changed without a segment. It has no answer."""


class Flush(Command[Flushed], do="flush", added=2):
    """Reports everything that was captured."""


class SetSysctls(Command[SysctlsSet], do="sysctl"):
    """Sets sysctls."""

    values: Mapping[str, str]


class Exec(Command[Executed], do="exec"):
    """Runs a command in the shell."""

    command: str


class Dropping(Answer, added=3):
    """Why the host can't report which segments it loses, or None."""

    unlogged: str | None


class Healed(Answer, added=3):
    """How many packets each drop has lost."""

    lost: dict[str, int]


class Probed(Answer, added=3):
    """The capabilities that the host lacks, and why."""

    missing: dict[str, str]


class Fault(Command[A], do="fault", added=3):
    """Does what the method `verb` of Faults (images/host/faults.py) does."""

    verb: ClassVar[str]

    def __init_subclass__(cls, verb: str) -> None:
        super().__init_subclass__("fault", 3)
        cls.verb = verb

    def as_json(self) -> Message:
        return {**super().as_json(), "verb": self.verb}


class Drop(Fault[Dropping], verb="drop"):
    """Loses segments by these rules; `log` is the statement in them that reports to a group."""

    number: int
    group: int
    log: str
    rules: str


class Heal(Fault[Healed], verb="heal"):
    """Ends drops."""

    numbers: Sequence[int]


class Link(Fault[Done], verb="link"):
    """Takes the links up, or down, or one device."""

    up: bool
    device: str = ""


class Shape(Fault[Done], verb="shape"):
    """Makes the links, or one device, do what these words of tc-netem(8) say to everything that the
    host sends."""

    netem: Sequence[str]
    device: str = ""


class Inject(Fault[Done], verb="inject"):
    """Sends an IP packet, in base64."""

    data: str


class Probe(Fault[Probed], verb="probe"):
    """Finds out which of these capabilities the host lacks."""

    what: Sequence[str]


# --- The tracer -----------------------------------------------------------------------------------


class Refused(Said, kind="refused", added=2):
    """Its first and last message: why it can't trace."""

    reason: str


class State(Said, kind="state", added=2):
    """A full socket went from one state to another."""

    local: str
    remote: str
    old: StateName
    new: StateName


class Reset(Said, kind="reset", added=9):
    """The kernel sent an RST for a reason of its own (include/net/rstreason.h)."""

    local: str
    remote: str
    reason: str


class Fate(Said, kind="fate", added=10):
    """What the kernel did with a segment; see FateEvent."""

    local: str
    remote: str
    did: Literal["discard", "reset", "retransmit"]
    reason: str | None


class Watch(Command[Done], do="watch", added=2):
    """Reports the sockets that have these local addresses, from now on."""

    addresses: Sequence[str]


class FlushTrace(Command[Done], do="flush", added=2):
    """Reports everything that was traced, and how much was missed."""


# --- A supervisor, and the process below it -------------------------------------------------------


class Process(Said, kind="process"):
    """The main process starts, or exits; see ProcessEvent."""

    phase: Literal["start", "exit"]
    pid: int | None = None
    exit: int | None = None
    signal: str | None = None
    left: bool | None = None
    watch: Literal["calls", "io"] | None = None
    stop: str | None = None
    grace: float | None = None


class Unseen(Said, kind="unseen", added=10):
    """From now on not all of a program's calls are told; see UnseenEvent."""

    text: str
    but: list[str]


class Call(Said, kind="call"):
    """The process begins a socket call, or ends it; see CallEvent."""

    pid: int
    phase: Literal["enter", "done"]
    call: str
    name: str
    errno: str | None = None
    error: str | None = None
    result: int | None = None
    local: str | None = None
    peer: str | None = None
    eof: bool | None = None
    data: str | None = None
    value: str | None = None
    fd: int | None = None
    thread: int | None = None
    since: float | None = None


class Output(Said, kind="output"):
    """A program wrote something, after so many bytes that were left out."""

    text: str
    left_out: int | None = None


class Holders(Said, kind="holders", added=10):
    """What the processes below the supervisor have open; see HoldersEvent."""

    commands: dict[Number, str]
    sockets: dict[Number, dict[Number, int]]
    unread: list[int]
    left_out: int | None = None


class Begin(Command[Answer], do="begin"):
    """Starts the process, if it was held until then. It has no answer, like most below."""


class DoCall(Command[Answer], do="call"):
    """Makes a process in `await` do a call."""

    call: str


class Signal(Command[Answer], do="signal"):
    """Sends a signal (`TERM`) to the main process."""

    signal: str


class End(Command[Answer], do="end", added=5):
    """Sends SIGTERM to all below the supervisor."""


class Freeze(Command[Answer], do="freeze"):
    """Sends SIGSTOP to all below the supervisor."""


class Thaw(Command[Answer], do="thaw"):
    """Sends SIGCONT to all below the supervisor."""


class TellAll(Command[Done], do="answer", added=6):
    """Reports everything that was written before."""


class TellHolders(Command[Done], do="holders", added=10):
    """Reports who holds which socket."""


class KillAll(Command[Done], do="killall", added=12):
    """Sends SIGKILL to all below the supervisor, and ends it; tells the time right before."""


# --- What attaches to programs that run already --------------------------------------------------


class Attach(Command[Done], do="attach", added=12):
    """Tells the calls of these processes and of all that they start, and which sockets they
    have."""

    pids: Sequence[int]


class TellHeld(Command[Done], do="held", added=12):
    """Tells once more which sockets they have, and what is not seen."""


class FlushCalls(Command[Done], do="flush", added=12):
    """Reports everything that was told before."""


# --- Who says and does what -----------------------------------------------------------------------


WATCHER = Program(
    (AgentHello, Sockets, Counters, Packets, Address, Holders, Trouble, Broken),
    (TellTime, SetUp, Look, Wake, Flush),
)
AGENT = Program(
    (AgentHello, Sockets, Counters, Packets, Loss, Address, Trouble, Broken),
    (
        TellTime,
        SetNetwork,
        SetUp,
        Look,
        Wake,
        Flush,
        SetSysctls,
        Exec,
        Drop,
        Heal,
        Link,
        Shape,
        Inject,
        Probe,
    ),
)
TRACER = Program((Hello, Refused, State, Reset, Fate, Trouble, Broken), (Watch, FlushTrace))
SUPERVISOR = Program(
    (Process, Call, Unseen, Output, Holders, Broken),
    (Begin, DoCall, Signal, End, Freeze, Thaw, TellAll, TellHolders, KillAll),
)
ATTACHER = Program((Hello, Process, Call, Unseen), (Attach, TellHeld, FlushCalls))
