"""Tracepoints: what the kernel writes down at each, in a tracefs instance of our own
(Documentation/trace/events.rst, Documentation/trace/ftrace.rst).

Records are read as the kernel keeps them, page by page (trace_pipe_raw): so each has all of its
fields, with pointers and addresses of IPv6, and its time to the nanosecond.

Standard library only, Python 3.6 or later.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import struct

TRACEFS = "/sys/kernel/tracing"
PREFIX = "labctl-"

# sched.h, mount.h
CLONE_NEWNS = 0x20000
MS_REC_PRIVATE = 0x4000 | 1 << 18

FIELD = re.compile(r"field:.*?(\w+)(\[\d+\])?;\s*offset:(\d+);\s*size:(\d+);\s*signed:(\d)")
NUMBERS = {1: "b", 2: "h", 4: "i", 8: "q"}
COUNT = re.compile(r"^(?:overrun|dropped events): (\d+)$", re.MULTILINE)

PAGE = struct.Struct("@QL")  # of the ring buffer: its time, and how much of it is in use
WORD, TYPE = struct.Struct("=I"), struct.Struct("=H")
IN_USE, MISSED = (1 << 20) - 1, 3 << 30
PADDING, EXTENDED, ABSOLUTE = 29, 30, 31  # include/linux/ring_buffer.h


def mount():
    """Mounts tracefs so that only this process sees it. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name, *arguments):
        if getattr(libc, name)(*arguments):
            code = ctypes.get_errno()
            raise OSError(code, "%s tracefs: %s" % (name, os.strerror(code)))

    call("unshare", CLONE_NEWNS)
    call("mount", b"none", b"/", None, MS_REC_PRIVATE, None)
    try:
        call("mount", b"tracefs", TRACEFS.encode(), b"tracefs", 0, None)
    except OSError as exc:
        if exc.errno != errno.EBUSY:  # it is there already, as systemd mounts it
            raise


def read_file(*parts):
    """A file of tracefs; empty if there is none."""
    try:
        with open(os.path.join(TRACEFS, *parts)) as file:
            return file.read()
    except OSError:
        return ""


class Tracepoint:
    """A tracepoint by its format file: its number, its `fields` and how the kernel prints them.
    `keep`: which of its records a filter keeps; all, if empty."""

    def __init__(self, folder, text, keep=""):
        self.folder, self.text, self.keep = folder, text, keep
        number = re.search(r"^ID: (\d+)$", text, re.MULTILINE)
        self.number = int(number.group(1)) if number else None
        found, code, at = [], "=", 0
        for field, array, offset, size, signed in FIELD.findall(text):
            kind = NUMBERS.get(int(size)) if not array else None
            if kind and not int(signed):
                kind = kind.upper()
            code += "%dx%s" % (int(offset) - at, kind or size + "s")
            at = int(offset) + int(size)
            found.append(field)
        self.fields, self.struct = tuple(found), struct.Struct(code)

    def read(self, data):
        """The fields of a record by name: numbers, and arrays as bytes."""
        return dict(zip(self.fields, self.struct.unpack_from(data)))


def tracepoint(name, keep=""):
    """What this kernel has of such a name; without fields if it has none."""
    folder = os.path.join("events", name)
    return Tracepoint(folder, read_file(folder, "format"), keep)


@contextlib.contextmanager
def alone(folder):
    """Only one tracer of this kernel at a time: others sweep an instance that nobody has open.
    All mounts of tracefs are one, so a lock of its folder holds in every container."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


class Instance:
    """A ring buffer of our own for some tracepoints. Raises OSError if there can be none.

    If somebody holds one of this name open, this uses it, and leaves it to them at the end."""

    def __init__(self, name, tracepoints):
        self.path = os.path.join(TRACEFS, "instances", PREFIX + name)
        self.tracepoints = {each.number: each for each in tracepoints}
        with alone(os.path.dirname(self.path)):
            self._sweep()
            if not os.path.isdir(self.path):
                os.mkdir(self.path)
            cpus = os.path.join(self.path, "per_cpu")
            self.pipes = [
                os.open(os.path.join(cpus, cpu, "trace_pipe_raw"), os.O_RDONLY | os.O_NONBLOCK)
                for cpu in os.listdir(cpus)
            ]
        self.write("trace_clock", "mono")  # which empties it, too, of what others left
        if os.path.exists(self.path + "/buffer_percent"):
            self.write("buffer_percent", "0")  # be woken by the first event, not by half a buffer
        for each in tracepoints:
            if each.keep:
                self.write(each.folder + "/filter", each.keep)
        names = FIELD.findall(read_file("events", "header_page"))
        (data,) = [each for each in names if each[0] == "data"]
        self.begin, self.size = int(data[2]), int(data[2]) + int(data[3])
        self.missed = False  # whether a record found no room, since somebody last asked
        self._kept = []

    def _sweep(self):
        """Removes instances that no tracer uses: one in use can't be removed."""
        parent = os.path.dirname(self.path)
        for name in os.listdir(parent):
            if name.startswith(PREFIX):
                try:
                    os.rmdir(os.path.join(parent, name))
                except OSError:
                    pass

    def write(self, name, text):
        with open(os.path.join(self.path, name), "w") as file:
            file.write(text)

    def start(self):
        for each in self.tracepoints.values():
            self.write(each.folder + "/enable", "1")

    def read(self, until):
        """What was written down up to this moment, in its order: the nanosecond, by the kernel's
        CLOCK_MONOTONIC, the number of the tracepoint, and the fields.

        Each processor has records of its own, and they are read one after the other. So what is
        later than the moment waits: another may have something earlier."""
        for pipe in self.pipes:
            for page in self._pages(pipe, until):
                self._kept += page
        self._kept.sort(key=lambda record: record[0])
        late = len(self._kept)
        while late and self._kept[late - 1][0] > until:
            late -= 1
        found, self._kept = self._kept[:late], self._kept[late:]
        for t, data in found:
            (number,) = TYPE.unpack_from(data)
            if number in self.tracepoints:
                yield t, number, self.tracepoints[number].read(data)

    def waits(self):
        """Whether it has read something that is not yet told."""
        return bool(self._kept)

    def _pages(self, pipe, until):
        """The records of a processor, up to one that is later."""
        page = [(0, b"")]
        while page and page[-1][0] <= until:
            try:
                data = os.read(pipe, self.size)
            except BlockingIOError:
                return
            self.missed = self.missed or bool(data and PAGE.unpack_from(data)[1] & MISSED)
            page = list(records(data, self.begin))
            yield page

    def lost(self):
        """How many records found no room, since the beginning."""
        self.missed = False
        folder = self.path + "/per_cpu"
        stats = (read_file(folder, cpu, "stats") for cpu in os.listdir(folder))
        return sum(int(count) for text in stats for count in COUNT.findall(text))

    def remove(self):
        for each in self.tracepoints.values():
            self.write(each.folder + "/enable", "0")
        with alone(os.path.dirname(self.path)):
            for pipe in self.pipes:
                os.close(pipe)
            self._sweep()


def records(page, begin):
    """The records of a page of the ring buffer, whose data begin there: pairs of nanosecond and
    bytes. A record has a word before it: its length or kind, and the time since the one before
    (kernel/trace/ring_buffer.c)."""
    if len(page) < begin:
        return
    t, used = PAGE.unpack_from(page)
    at, end = begin, begin + (used & IN_USE)
    while at < end:
        (word,) = WORD.unpack_from(page, at)
        kind, passed = word & 31, word >> 5
        at += WORD.size
        if kind == PADDING and not passed:
            return
        more = WORD.unpack_from(page, at)[0] if not 0 < kind < PADDING else 0
        if kind == PADDING:
            at += more
        elif kind == EXTENDED:
            t += passed + (more << 27)
            at += WORD.size
        elif kind == ABSOLUTE:
            t = passed + (more << 27)
            at += WORD.size
        else:
            t += passed
            first = at if kind else at + WORD.size
            at += kind * WORD.size or more
            yield t, page[first:at]
