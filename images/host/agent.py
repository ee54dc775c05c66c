#!/usr/bin/env python3
"""The agent: holds a host's network namespace, watches its sockets and does things there.

It runs as long as the host lives, as the holder container's main process or as a process in the
host's namespace. A cheap in-process poll (sock_diag, see sock_diag(7)) notices when any TCP socket
changes its state, queue or kind of timer; then the agent reports the output of the real `ss`. So a
quiet host costs no process, and a change is reported within PERIOD_MAX. If work is expensive and
waiting is not, it rests longer, until something can have happened: a segment passes, a timer is due
(ss(8), --options), or the controller knows of a call (`wake`).

Events go to stdout and commands come from stdin, one JSON object a line. `t` is CLOCK_MONOTONIC.
With `--tether` the end of stdin ends the agent, and with it the host.

Standard library only, Python 3.6 or later.
"""

import base64
import contextlib
import ctypes
import errno
import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # an isolated Python leaves it out
import clocks
from addresses import Addresses
from captures import BLOCKS, BLOCKS_LEAST, BLOCKS_MOST, INSIDE, Capture
from faults import Faults, links, named, run
from kernel import changes, counters, open_diag, segments

PERIOD_MIN = 0.004
PERIOD_MAX = 0.025
QUICKLY, SLOWLY, FREELY = 1.3, 1.1, 2.0
"""How fast the period grows: up to PERIOD_MAX; beyond it, if it may, while a timer is overdue, so
that it is seen to go off within a tenth of its delay; and otherwise."""
REST = 2
"""Times the number of hosts, how much longer an agent rests than it works: so all agents together
take half a core at most."""
PR_SET_DUMPABLE = 4
PRIORITY = -10
"""Its priority: what it watches must not keep it from watching."""
MOST_OUTPUT = 4 << 20
UNDISTURBED = 0.002
"""For so many seconds after a segment the agent does nothing: it has priority over the programs of
the lab, and what a segment sets off there must not wait for it."""
CAPTURE_PERIOD = 0.005
COUNT_PERIOD, COUNT_MOST = 0.02, 0.1
"""Seconds from one report of counters to the next, at least: more and more, up to the second
number, while they grow all the time."""
TIMER = re.compile(r"timer:\(\w+,(?:(\d+)min)?(?:([\d.]+)sec|(\d*\.\d+)ms|(\d+)ms)?,")
"""1min59sec, 7.020sec, the same 7.020ms of an ss up to 6.1, 020ms, and nothing at all for 0."""
SS = ["ss", "--tcp", "--all", "--numeric", "--options", "--extended", "--info"]

libc = ctypes.CDLL(None, use_errno=True)
lock = threading.Lock()


def emit(**event):
    line = (json.dumps(event) + "\n").encode()
    with lock:
        while line:
            line = line[os.write(1, line) :]


def work():
    """CPU seconds of this process and of the children that it has waited for."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def timers(text):
    """In how many seconds the timers in the output of `ss` can go off, in order: it shows long ones
    in whole seconds, and the kernel is late rather than early."""
    return sorted(
        60 * int(minutes or 0) + float(seconds or fraction or 0) + int(millis or 0) / 1000
        for minutes, seconds, fraction, millis in TIMER.findall(text)
    )


def path_of(program):
    """Where a program is, or None. By its path, and with descriptors that close by themselves as
    Python's do, subprocess starts it with half the work (posix_spawn(3), since Python 3.8)."""
    paths = (os.path.join(folder, program) for folder in os.get_exec_path())
    return next((path for path in paths if os.access(path, os.X_OK)), None)


# --- The agent ------------------------------------------------------------------------------------


class Agent:
    woken = True
    """By a packet, if it has not read any for a while; else it reads when it is time to."""

    def __init__(self, diag=None, commands=None):
        self.commands = commands or COMMANDS
        self.diag = diag or open_diag()
        self.ss, self.ports = SS, ()
        self.program = path_of(SS[0])
        self.seen = None
        self.looked = None  # the moment of a look, if nothing happened during it
        self.counted = {}
        self.counted_at = 0.0
        self.next_count = None
        self.between_counts = COUNT_PERIOD
        self.period = PERIOD_MIN
        self.rest = None
        self.longest = PERIOD_MAX
        self.rested = 0.0
        self.due, self.overdue = [], False
        self.next_sample = None
        self.captures = {}
        self.refused = None  # why it can't capture
        self.next_read = 0.0
        self.faults = Faults(emit)
        self.addresses = None

    @property
    def shortest(self):
        """The period after a change. If segments and calls announce the next one, nothing is
        urgent."""
        return PERIOD_MAX if self.longest > PERIOD_MAX else PERIOD_MIN

    def moment(self):
        """Equal at two times only if nothing happened between them: states may come and go, but the
        kernel counts segments."""
        return self.diag.fingerprint(), segments()

    def look(self, cause, seen=None, **extra):
        """Reports what `ss` and the counters say now. `seen`: a fingerprint taken just now."""
        before = seen or self.diag.fingerprint(), segments()
        at = time.monotonic()
        with subprocess.Popen(self.ss, executable=self.program, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, close_fds=False) as ss:  # fmt: skip
            text, errors = ss.stdout.read(), ss.stderr.read()  # in turn: it has but a line of these
        if ss.returncode:
            emit(kind="trouble", t=at, text=errors.decode("utf-8", "replace"), probe="ss")
        since, changed = self.count()
        # Columns are as wide as their widest entry, so most of a long list may be blanks.
        text = "\n".join(map(str.rstrip, text.decode("utf-8", "replace").split("\n")))
        self.looked_at(text)
        emit(kind="sockets", t=at, cause=cause, text=text, counters=changed, since=since, **extra)
        if self.longest > PERIOD_MAX:
            self.due, self.overdue = [at + left for left in timers(text)], False
            if self.due:
                self.next_sample = min(self.next_sample, max(self.rested, self.due[0]))
        # By the next sample, what ss saw may be over. If anything happened meanwhile, that sample
        # looks again.
        self.looked = before if self.moment() == before else None
        self.seen = self.looked and before[0]
        return at

    def looked_at(self, text):
        """Hears what `ss` has just said, before it is reported."""

    def count(self):
        """When the counters were read before, and which have changed since then."""
        now, since = counters(), self.counted_at
        changed = changes(now, self.counted)
        self.counted, self.counted_at, self.next_count = now, time.monotonic(), None
        return since, changed

    def report_counters(self):
        """Reports the counters that have changed."""
        since, changed = self.count()
        busy = self.counted_at - since < 2 * COUNT_MOST
        longer = min(COUNT_MOST, self.between_counts * QUICKLY)
        self.between_counts = longer if busy else COUNT_PERIOD
        if changed:
            emit(kind="counters", t=self.counted_at, since=since, values=changed)

    def unchanged(self):
        """Whether all is as it was at the last look."""
        return self.looked == self.moment() and self.counted == counters()

    def sample(self):
        """Looks if anything changed; sets the time of the next sample."""
        start, worked = time.monotonic(), work()
        seen = self.diag.fingerprint()
        if seen != self.seen:
            self.look("change", seen)
            self.period = self.shortest
        now = time.monotonic()
        # A busy machine may have kept us waiting; that is no reason to rest.
        took = min(work() - worked, now - start)
        self.rested = now + self.rest * took
        while self.due and now >= self.due[0]:
            del self.due[0]
            self.period, self.overdue = min(self.period, PERIOD_MAX), True
        self.next_sample = max(self.rested, min([now + self.period, *self.due[:1]]))
        growth = QUICKLY if self.period < PERIOD_MAX else SLOWLY if self.overdue else FREELY
        self.period = min(self.longest, self.period * growth)

    def wake(self):
        """Samples soon, and then often, if it would rest for long: something may have happened."""
        if self.longest > PERIOD_MAX:
            self.period = self.shortest
            soon = max(self.rested, time.monotonic() + PERIOD_MIN)
            self.next_sample = min(self.next_sample, soon)

    def capture(self, interface, blocks):
        """Captures there too, in so many blocks of memory."""
        try:
            self.captures[interface] = Capture(interface, blocks, self.ports)
        except OSError as exc:
            self.refused = self.refused or exc.strerror
            self.longest = PERIOD_MAX  # no segment would wake it

    def new_address(self, address):
        """Reports an address that the host has got."""
        emit(kind="address", t=time.monotonic(), address=address)

    def read_packets(self):
        """Reports the packets that were captured since the last time."""
        records = []
        for capture in self.captures.values():
            capture.revive()
            records += capture.read()
        self.next_read = time.monotonic() + self.until_next(len(records))
        if records:
            records.sort(key=lambda each: each[0])
            data = base64.b64encode(b"".join(record for _, record in records)).decode()
            emit(kind="packets", t=time.monotonic(), data=data)
            # Most counters grow with packets.
            soonest = max(self.next_read, self.counted_at + self.between_counts)
            self.next_count = self.next_count or soonest
            self.wake()

    def until_next(self, count):
        """How long to wait until it reads captures again, after so many packets."""
        return CAPTURE_PERIOD

    def obey(self, message):
        ident = message.pop("id")
        try:
            self.commands[message.pop("do")](self, ident, **message)
        except (OSError, ValueError) as exc:
            emit(kind="reply", id=ident, t=time.monotonic(), error=str(exc))

    def run(self):
        pending = b""
        self.count()
        t, wall = clocks.both()
        emit(kind="hello", t=t, wall=wall,
             counters=changes(self.counted, {}), kernel=os.uname().release,
             watch=type(self.diag).__name__.lower())  # fmt: skip
        while True:
            now = time.monotonic()
            if self.captures and now >= self.next_read and not self.woken:
                self.read_packets()
            deadlines = [at for at in (self.next_sample, self.next_count) if at]
            watched = [0]
            if self.captures and now < self.next_read:
                deadlines.append(self.next_read)
            else:
                watched += self.captures.values()
            watched += [w for w in (self.faults.log, self.addresses) if w]
            patience = max(0, min(deadlines) - now) if deadlines else None
            ready, _, _ = select.select(watched, [], [], patience)
            if any(capture in ready for capture in self.captures.values()):
                time.sleep(UNDISTURBED)
                self.read_packets()
            if self.next_count and time.monotonic() >= self.next_count:
                self.report_counters()
            if self.addresses in ready:
                for address in self.addresses.read():
                    self.new_address(address)
            if self.faults.log in ready:
                self.faults.report()
                self.wake()
            if 0 in ready:
                data = os.read(0, 65536)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    self.obey(json.loads(line.decode()))
            if self.next_sample and time.monotonic() >= self.next_sample:
                self.sample()


def do_wake(agent, ident):
    """Has no answer."""
    agent.wake()


def do_look(agent, ident, caption=None, fresh=True):
    """Looks; but if it need not be `fresh` and the last look still holds, does not."""
    agent.read_packets()
    at = time.monotonic()
    if fresh or not agent.unchanged():
        at = agent.look("look", caption=caption)
    emit(kind="reply", id=ident, t=at)


def do_clock(agent, ident):
    emit(kind="reply", id=ident, t=time.monotonic())


def do_network(agent, ident, hosts, batch, nft):
    """Writes /etc/hosts, runs a batch of ip(8) commands, and makes nft(8) read its own."""
    if hosts is not None:
        with open("/etc/hosts", "w") as file:
            file.write(hosts)
    if batch:
        run(["ip", "-batch", "-"], named(batch))
    if nft:
        run(["nft", "-f", "-"], named(nft))
    emit(kind="reply", id=ident, t=time.monotonic())


def do_setup(agent, ident, longest, share, bound):
    """Begins to watch and to capture, as one of `share` hosts. It reports no socket that is there
    already, until one changes or the controller asks: a lab has none yet.

    `capture` in the reply is why it can't capture, or null. `bound`, if asked for, is whether `ss`
    lists sockets that are only bound.

    After each sample the agent rests, much longer than it worked: listing sockets is slow on a host
    with thousands of them, and for many hosts at once. On a quiet host it rests for up to `longest`
    seconds. If that is long, only work takes time: nobody keeps the agent from reading what it
    captured, but memory for more would be work.
    """
    agent.rest, agent.longest, agent.next_sample = REST * share, longest, time.monotonic()
    if longest > PERIOD_MAX:  # nobody is late: who works goes on (sched(7))
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    agent.addresses = Addresses()
    room = BLOCKS if longest > PERIOD_MAX else room_for(share)
    inside = max(4, room // 16)  # few talk to themselves
    wanted = [(link, room) for link in links()] + [(INSIDE, inside)]
    with at_once(agent.capture, wanted, longest <= PERIOD_MAX):
        bound = bound and lists_bound()
    agent.seen = agent.diag.fingerprint()
    emit(kind="reply", id=ident, t=time.monotonic(), capture=agent.refused, bound=bound)


@contextlib.contextmanager
def at_once(work, calls, apart=True):
    """Works with each of these arguments, in threads, during a `with`. For each ring the kernel
    waits until no processor looks at the socket any more (packet_set_ring in af_packet.c). If they
    need not be `apart`, since only work takes time, does it in turn."""
    threads = [threading.Thread(target=work, args=arguments) for arguments in calls]
    for thread in threads:
        try:
            (thread.start if apart else thread.run)()
        except RuntimeError:  # no more threads
            thread.run()
    yield
    for thread in threads:
        if thread.ident:
            thread.join()


def room_for(share):
    """How many blocks of memory the capture of a link takes, on one of `share` hosts: of many hosts
    few are busy at once."""
    return max(BLOCKS_LEAST, BLOCKS_MOST * 4 // max(4, share))


def lists_bound():
    """Whether `ss` and this kernel show a socket that is only bound: some do not."""
    with socket.socket() as bound:
        bound.bind(("", 0))
        done = subprocess.run(SS, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        return b"UNCONN" in done.stdout


def do_flush(agent, ident):
    """Reports what is left in the rings, how many packets had no room in each, and how many the
    drops have lost."""
    agent.read_packets()
    dropped = {name: capture.dropped() for name, capture in agent.captures.items()}
    inside, lost = dropped.pop(INSIDE, 0), agent.faults.lost()
    emit(kind="reply", id=ident, t=time.monotonic(), lost=lost,
         dropped=sum(dropped.values()), dropped_inside=inside)  # fmt: skip


def do_sysctl(agent, ident, values):
    """Writes sysctls; says which are unknown here (`missing`), which nobody can write here
    (`readable`), and which were refused (`failed`)."""
    missing, readable, failed = [], [], {}
    for key, value in values.items():
        path = "/proc/sys/" + key.replace(".", "/")
        try:
            with open(path, "w") as file:
                file.write("%s\n" % value)  # also an empty one, which clears a list of ports
        except FileNotFoundError:
            missing.append(key)
        except OSError as exc:
            if os.stat(path).st_mode & 0o222:
                failed[key] = errno.errorcode.get(exc.errno, exc.strerror)
            else:
                readable.append(key)
    emit(kind="reply", id=ident, t=time.monotonic(), missing=missing, readable=readable,
         failed=failed)  # fmt: skip


def written(process):
    """What a command writes, until it closes its output, or has ended: others may still have that
    open."""
    pipe, ready, ended = process.stdout.fileno(), select.poll(), False
    ready.register(pipe, select.POLLIN)
    while not ended:
        ended = process.poll() is not None
        if ready.poll(0 if ended else 20):
            data = os.read(pipe, 65536)  # all that a pipe holds: pipe(7)
            if not data:
                return
            yield data


def do_exec(agent, ident, command):
    """Runs a command in the shell; output beyond MOST_OUTPUT is `left_out`."""

    def work():
        try:
            os.setpriority(os.PRIO_PROCESS, 0, 0)  # of this thread, and of what it starts
        except OSError:
            pass  # it is lower, as the engine was started so
        try:
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  stdin=subprocess.DEVNULL, shell=True) as process:  # fmt: skip
                output, left_out = bytearray(), 0
                for data in written(process):
                    left_out += max(0, len(data) - (MOST_OUTPUT - len(output)))
                    output += data[: MOST_OUTPUT - len(output)]
                status = process.wait()  # after a signal: as a shell reports it
                emit(kind="reply", id=ident, t=time.monotonic(), left_out=left_out,
                     exit=status if status >= 0 else 128 - status,
                     output=output.decode("utf-8", "replace"))  # fmt: skip
                while process.stdout.read(65536):
                    pass  # what it left in the background may write on, and gets no SIGPIPE
        except OSError as exc:
            emit(kind="reply", id=ident, t=time.monotonic(), error=str(exc))

    threading.Thread(target=work, daemon=True).start()


def do_fault(agent, ident, verb, **details):
    """Does what a method of Faults does. `t` in the reply is when it began."""
    t = time.monotonic()
    emit(kind="reply", id=ident, t=t, **getattr(agent.faults, verb)(**details))


COMMANDS = {
    "wake": do_wake,
    "look": do_look,
    "clock": do_clock,
    "network": do_network,
    "setup": do_setup,
    "flush": do_flush,
    "sysctl": do_sysctl,
    "exec": do_exec,
    "fault": do_fault,
}


def tethered(make):
    """Makes an agent, and runs it until its standard input ends."""
    # Else commands could write into this stream (ptrace(2), "Ptrace access mode checking").
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    try:
        make().run()
    except Exception as exc:
        emit(kind="broken", t=time.monotonic(), text="%s: %s" % (type(exc).__name__, exc))
        raise


def main(arguments):
    if "--tether" in arguments:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
        except OSError:
            pass  # it takes CAP_SYS_NICE
        tethered(Agent)
    else:
        # For use by hand: the host only has to be there, until somebody stops it.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        while True:
            signal.pause()


if __name__ == "__main__":
    main(sys.argv[1:])
