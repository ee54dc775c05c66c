"""The options of sockets: what Linux's headers name, numbers and lays out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from labctl.ground.resources import peer_module

OPTIONS = peer_module("options")
INCLUDE = Path("/usr/include")
LEVELS = {
    "asm-generic/socket.h": (1, "SO"), "linux/tcp.h": (6, "TCP"), "linux/in.h": (0, "IP|MCAST"),
    "linux/in6.h": (41, "IPV6"),
}  # fmt: skip
VALUES = re.compile(
    r"IP_(PMTUDISC|DEFAULT_MULTICAST|MSFILTER_SIZE)|MCAST_(EX|IN)CLUDE|"
    r"IPV6_(PMTUDISC_|FL_|FLOWINFO_(FLOWLABEL|PRIORITY)|PRIORITY_|TLV_|PREFER_SRC_)|"
    r"TCP_(MSS_|REPAIR_O|MD5SIG_(MAXKEYLEN|FLAG)|RECEIVE_ZEROCOPY_FLAG|AO_(MAXKEYLEN|KEYF))"
)
"""What the headers define beside options."""
DEFINED = r"^#define[ \t]+((?:%s)_\w+)[ \t]+(\w+)"


def defined(header: str) -> dict[str, tuple[int, int]]:
    """The options of a header: level and number."""
    path = INCLUDE / header
    if not path.exists():
        pytest.skip(f"no {path}")
    level, prefix = LEVELS[header]
    found = dict(re.findall(DEFINED % prefix, path.read_text("utf-8"), re.MULTILINE))
    numbers = {}
    for name, value in found.items():
        while value in found:  # one is another by a second name
            value = found[value]
        if value.isdecimal() and not VALUES.match(name):
            numbers[name] = level, int(value)
    return numbers


@pytest.mark.parametrize("header", LEVELS)
def test_every_option_of_the_headers_is_known(header: str) -> None:
    wanted = defined(header)
    assert len(wanted) > 30
    known = {name: OPTIONS.OPTIONS.get(name) for name in wanted}
    assert known == wanted


def test_the_fields_of_tcp_info_are_where_c_has_them() -> None:
    """By the comments of no header: by the sizes of struct tcp_info as kernels have grown it."""
    at = {name: (bit // 8, width) for name, (bit, width) in OPTIONS.FIELDS.items()}
    assert at["tcpi_state"] == (0, 8)
    assert at["tcpi_snd_wscale"] == (6, 4)
    assert OPTIONS.FIELDS["tcpi_rcv_wscale"] == (6 * 8 + 4, 4)
    assert OPTIONS.FIELDS["tcpi_fastopen_client_fail"] == (7 * 8 + 1, 2)
    assert at["tcpi_rto"] == (8, 32)
    assert at["tcpi_total_retrans"] == (100, 32)  # 104 bytes: Linux 2.6 to 3.14
    assert at["tcpi_max_pacing_rate"] == (112, 64)  # 120: 3.15
    assert at["tcpi_data_segs_out"] == (156, 32)  # 160: 4.6
    assert at["tcpi_sndbuf_limited"] == (184, 64)  # 192: 4.10
    assert at["tcpi_reord_seen"] == (220, 32)  # 224: 4.19
    assert at["tcpi_snd_wnd"] == (228, 32)  # 232: 5.4


def test_the_header_has_the_same_fields_in_the_same_order() -> None:
    path = INCLUDE / "linux" / "tcp.h"
    if not path.exists():
        pytest.skip(f"no {path}")
    body = path.read_text("utf-8").partition("struct tcp_info {")[2].partition("\n};")[0]
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
    fields = re.findall(r"\b(tcpi_\w+)", body)
    assert fields == list(OPTIONS.FIELDS)[: len(fields)]
    assert len(fields) > 50


def test_the_page_lists_them_all() -> None:
    page = (Path(__file__).parents[2] / "docs" / "options.md").read_text("utf-8")
    listed = re.findall(r"`((?:SO|TCP|IPV?6?|MCAST|SIOC|tcpi)_?\w+)`", page)
    assert [*OPTIONS.OPTIONS, *OPTIONS.FIELDS, *OPTIONS.IOCTLS] == listed
