"""What the tracer makes of the pages in which the kernel keeps its records."""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labctl.ground.resources import images
from tests.unit.test_protocol import loaded

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's programs")
BEGIN = 16
NANO = 10**9
TRACEPOINTS: Any = loaded(images() / "host" / "tracepoints.py")
TRACER: Any = loaded(images() / "host" / "tracer.py")

Written = tuple[int, bytes]
"""A record: nanoseconds since the one before, and its data."""


def word(kind: int, passed: int) -> bytes:
    return struct.pack("=I", kind | passed << 5)


def encoded(passed: int, data: bytes, absolute: int | None = None) -> bytes:
    """As kernel/trace/ring_buffer.c writes a record; short ones have their length in the word."""
    time = b""
    if absolute is not None:
        time = word(31, absolute & (1 << 27) - 1) + struct.pack("=I", absolute >> 27)
        passed = 0
    elif passed >> 27:
        time = word(30, passed & (1 << 27) - 1) + struct.pack("=I", passed >> 27)
        passed = 0
    if len(data) <= 112:
        return time + word(len(data) // 4, passed) + data
    return time + word(0, passed) + struct.pack("=I", len(data) + 4) + data


def page(at: int, content: bytes, missed: bool = False) -> bytes:
    used = len(content) | missed << 31
    return (struct.pack("@QL", at, used) + content).ljust(4096, b"\xa5")


WRITTEN = st.lists(
    st.tuples(
        st.integers(0, 1 << 40),
        st.integers(1, 50).map(lambda words: bytes(range(words)) * 4),
        st.sampled_from(["since", "at", "discarded before"]),
    ),
    max_size=15,
)


@given(at=st.integers(0, 1 << 50), written=WRITTEN)
def test_every_record_of_a_page_is_read(at: int, written: list[tuple[int, bytes, str]]) -> None:
    content, expected, now = b"", [], at
    for passed, data, how in written:
        now += passed
        if how == "discarded before":
            content += word(29, 1) + struct.pack("=I", 12) + bytes(8)
        content += encoded(passed, data, now if how == "at" else None)
        expected.append((now, data))
    assert list(TRACEPOINTS.records(page(at, content), BEGIN)) == expected


def test_the_rest_of_a_page_may_be_empty() -> None:
    content = encoded(5, b"abcd") + word(29, 0) + encoded(5, b"efgh")
    assert list(TRACEPOINTS.records(page(10, content), BEGIN)) == [(15, b"abcd")]
    assert list(TRACEPOINTS.records(b"", BEGIN)) == []


STATE = """\
name: inet_sock_set_state
ID: 2287
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:const void * skaddr;\toffset:8;\tsize:8;\tsigned:0;
\tfield:int oldstate;\toffset:16;\tsize:4;\tsigned:1;
\tfield:int newstate;\toffset:20;\tsize:4;\tsigned:1;
\tfield:__u16 sport;\toffset:24;\tsize:2;\tsigned:0;
\tfield:__u16 dport;\toffset:26;\tsize:2;\tsigned:0;
\tfield:__u16 family;\toffset:28;\tsize:2;\tsigned:0;
\tfield:__u8 saddr[4];\toffset:32;\tsize:4;\tsigned:0;
\tfield:__u8 daddr[4];\toffset:36;\tsize:4;\tsigned:0;
\tfield:__u8 saddr_v6[16];\toffset:40;\tsize:16;\tsigned:0;
\tfield:__u8 daddr_v6[16];\toffset:56;\tsize:16;\tsigned:0;
"""
RESET = """\
ID: 2280
\tfield:enum sk_rst_reason reason;\toffset:28;\tsize:4;\tsigned:0;

print fmt: "state=%s reason=%s", __print_symbolic(REC->state, { 1, "TCP_ESTABLISHED" }), \
__print_symbolic(REC->reason, { 1, "NOT_SPECIFIED" }, { 2, "NO_SOCKET" })
"""
HERE, THERE, V6 = "198.18.0.2", "198.18.0.3", "fd00::2"


def packed(address: str) -> bytes:
    return bytes(TRACER.packed(address))


def state(local: str, states: tuple[int, int], mapped: bool = False) -> dict[str, Any]:
    """The fields of a record of a socket with that local address."""
    v6, data = ":" in local, bytearray(72)
    family = socket.AF_INET6 if v6 or mapped else socket.AF_INET
    struct.pack_into("=HxxiQiiHHH", data, 0, 2287, -1, 7, *states, 80, 4000, family)
    for at, address in ((32, local), (36, THERE)):
        data[at : at + 4] = bytes(4) if v6 or mapped else packed(address)
    for at, address in ((40, local), (56, THERE)):
        wide = packed(address) if ":" in address else bytes(10) + b"\xff\xff" + packed(address)
        data[at : at + 16] = wide
    return dict(TRACEPOINTS.Tracepoint("events/sock/inet_sock_set_state", STATE).read(bytes(data)))


def tracer() -> Any:
    found = TRACER.Tracer(None, [])
    found.addresses = {packed(HERE), packed(V6)}
    return found


def test_the_fields_of_a_record() -> None:
    fields = state(HERE, (1, 8))
    assert (fields["common_type"], fields["common_pid"], fields["skaddr"]) == (2287, -1, 7)
    assert (fields["saddr"], fields["dport"]) == (packed(HERE), 4000)
    assert len(fields["daddr_v6"]) == 16


@pytest.mark.parametrize(
    ("local", "mapped", "expected"),
    [(HERE, False, f"{HERE}:80"), (HERE, True, f"{HERE}:80"), (V6, False, f"[{V6}]:80")],
)
def test_a_transition_of_a_lab_s_socket(local: str, mapped: bool, expected: str) -> None:
    assert tracer().state(state(local, (1, 8), mapped), {}) == {
        "kind": "state", "local": expected, "remote": f"{THERE}:4000",
        "old": "ESTAB", "new": "CLOSE-WAIT",
    }  # fmt: skip


def test_other_sockets_are_nobody_s_business() -> None:
    mine = tracer()
    assert mine.state(state("10.0.0.1", (1, 8)), {}) is None
    assert mine.discard({"rx_sk": 7, "reason": 3}, {3: "NO_SOCKET"}) is None


def test_a_discard_is_its_socket_s_that_the_last_transition_told() -> None:
    """A socket ends, and the next one has its place in memory."""
    mine, discard = tracer(), {"rx_sk": 7, "reason": 3}
    mine.state(state(V6, (2, 1)), {})
    found = mine.discard(discard, {3: "NO_SOCKET"})
    assert (found["local"], found["did"], found["reason"]) == (f"[{V6}]:80", "discard", "NO_SOCKET")
    mine.state(state("10.0.0.1", (2, 1)), {})
    assert mine.discard(discard, {3: "NO_SOCKET"}) is None


def test_sockets_are_forgotten_in_the_end() -> None:
    mine = tracer()
    for pointer in range(TRACER.REMEMBERED + 1):
        mine.state({**state(HERE, (2, 1)), "skaddr": pointer}, {})
    assert len(mine.sockets) == TRACER.REMEMBERED
    assert mine.discard({"rx_sk": 0, "reason": 3}, {}) is None
    assert mine.discard({"rx_sk": 1, "reason": 3}, {})


def test_a_reset_and_its_reason() -> None:
    names = TRACER.reasons(TRACEPOINTS.Tracepoint("events/tcp/tcp_send_reset", RESET))
    assert names == {1: "NOT_SPECIFIED", 2: "NO_SOCKET"}
    near = struct.pack("=H", socket.AF_INET) + struct.pack("!H", 80) + packed(HERE) + bytes(20)
    far = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", 9, 0)
    far += packed("fd00::3") + bytes(4)
    fields = {"saddr": near, "daddr": far, "reason": 2}
    assert tracer().reset(fields, names) == {
        "kind": "reset", "local": f"{HERE}:80", "remote": "[fd00::3]:9", "reason": "NO_SOCKET",
    }  # fmt: skip
    assert tracer().reset({**fields, "saddr": far}, names) is None


def test_a_segment_sent_again_and_why_that_failed() -> None:
    fields = state(HERE, (1, 1))
    assert tracer().again(fields, {})["reason"] is None
    assert tracer().again({**fields, "err": -101}, {})["reason"] == "ENETUNREACH"
    assert tracer().taken(fields, {})["did"] == "reset"
