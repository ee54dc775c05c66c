"""Why not all calls of a program are seen, and how many are.

Standard library only, Python 3.6 or later.
"""

CALLS_AT_ONCE, CALLS_A_SECOND = 1000, 200
STOPS_AT_ONCE, STOPS_A_SECOND = 2000, 300
ATTACHED_AT_ONCE, ATTACHED_A_SECOND = 10000, 2000

NO_MACHINE = "on %s no program's calls are traced; allowed: x86_64, aarch64"
FLOOD = ("more than %d calls in a short time, and %d a second: not all later ones are "
         "recorded" % (CALLS_AT_ONCE, CALLS_A_SECOND))  # fmt: skip
BUSY = ("more than %d calls of any kind while it had sockets, and %d a second: not all that close "
        "are recorded" % (STOPS_AT_ONCE / 2, STOPS_A_SECOND / 2))  # fmt: skip
FREED = ("more than %d calls of any kind in a short time, and %d a second: it runs freely since, "
         "and not all its calls are seen" % (ATTACHED_AT_ONCE / 2,
                                             ATTACHED_A_SECOND / 2))  # fmt: skip
ITS_OWN = "it has a seccomp filter of its own that wants a tracer, and its calls begin without one"
BESIDE = "a thread that waited when the first socket came has closed some unseen"
RING = "it uses io_uring, and calls that go that way are not seen"
TRACES = "it traces processes itself, which labctl's tracing forbids; set 'calls: off'"
FOREIGN = "it makes calls of another machine (32 bits?), which are not seen"
