"""Why a sysctl can't be had."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import pytest

from labctl.backends import sysctls
from labctl.ground.errors import MissingHere, Refused
from tests.fake import FakeBackend, play

HERE = platform.release()


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A kernel that has four sysctls, one of which only tells something."""
    folder = tmp_path / "net" / "ipv4"
    folder.mkdir(parents=True)
    for name in ("tcp_fin_timeout", "tcp_of_all", "tcp_tells"):
        (folder / name).write_text("1")
    (folder / "conf" / "eth7").mkdir(parents=True)
    (folder / "conf" / "eth7" / "rp_filter").write_text("1")
    (folder / "tcp_tells").chmod(0o444)
    return tmp_path


@dataclass(frozen=True)
class Asked:
    """A sysctl on a kernel, in root's namespaces or not."""

    key: str
    kernel: str
    root: bool = True
    readable: bool = False


@pytest.mark.parametrize(
    ("asked", "kind", "reason"),
    [
        (Asked("net.ipv4.tcp_max_orphans", "5.10"), MissingHere,
         "net.ipv4.tcp_max_orphans belongs to the whole machine: no namespace has one of its own; "
         "run it in a guest, whose whole machine is the lab's: --kernel NAME"),
        (Asked("net.core.rmem_max", "6.18", readable=True), MissingHere, "whole machine"),
        (Asked("net.ipv4.route.max_size", "6.18", root=False), MissingHere, "whole machine"),
        (Asked("net.ipv4.tcp_of_all", HERE), MissingHere, "belongs to the whole machine"),
        (Asked("net.ipv4.tcp_of_all", HERE, root=False), MissingHere,
         "only namespaces of root's have net.ipv4.tcp_of_all; run as root, or run it in a guest"),
        (Asked("net.ipv4.tcp_of_all", "5.10-elsewhere"), MissingHere,
         "kernel 5.10-elsewhere has no net.ipv4.tcp_of_all; run it on another kernel"),
        (Asked("net.ipv4.tcp_tells", HERE, readable=True), Refused,
         "net.ipv4.tcp_tells can't be set: kernel .* only tells it; leave it out"),
        (Asked("net.ipv4.tcp_fin_timout", "5.10"), MissingHere,
         "run it on another kernel; did you mean net.ipv4.tcp_fin_timeout\\?$"),
        (Asked("net.ipv4.quite_new", "5.10"), MissingHere, "on another kernel$"),
        (Asked("net.ipv9.quite_new", "5.10"), MissingHere, "on another kernel$"),
        (Asked("net.ipv4.conf.eth7.rp_filter", HERE), Refused,
         "a host has no interface eth7; name eth0, lo, all or default"),
        (Asked("net.ipv4.conf.eth0.new", HERE, root=False), MissingHere,
         "has no net.ipv4.conf.eth0"),
    ],
)  # fmt: skip
def test_why_no_host_has_a_sysctl(proc: Path, asked: Asked, kind: type, reason: str) -> None:
    with pytest.raises(kind, match=reason):
        raise sysctls.refusal(asked.key, asked.kernel, asked.root, asked.readable, proc)


def test_where_the_whole_machine_is_the_labs_a_kernel_lacks_what_it_lacks() -> None:
    with pytest.raises(MissingHere, match=r"kernel 9 has no net\.ipv4\.tcp_low_latency"):
        raise sysctls.absence("net.ipv4.tcp_low_latency", "9", False)


class Machine(FakeBackend):
    """A lab whose machine is its own."""

    def sysctl(self, key: str, value: str, readable: bool) -> None:
        self.log.append(f"machine {key} {value}")


def test_a_machine_has_one_value_for_all_hosts(tmp_path: Path) -> None:
    text = """\
title: t
hosts:
  server: {sysctls: {net.ipv4.tcp_max_orphans: 1}}
  client: {sysctls: {net.ipv4.tcp_max_orphans: VALUE}}
steps: []
"""
    lacking = {"sysctl": {"missing": ["net.ipv4.tcp_max_orphans"]}}
    fake = Machine(answers=lacking)
    assert play(text.replace("VALUE", "1"), fake, tmp_path).result == "pass"
    assert fake.log.count("machine net.ipv4.tcp_max_orphans 1") == 2
    found = play(text.replace("VALUE", "2"), Machine(answers=lacking), tmp_path)
    assert (found.result, found.reason) == (
        "error",
        "lesson.yaml:4: client: net.ipv4.tcp_max_orphans belongs to the whole machine, and another "
        "host sets it to '1'",
    )
