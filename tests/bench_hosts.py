"""Hosts, up and down in one process: programs that say how long that took without imports, and what
memory they took; and the memory of labs at once."""

from __future__ import annotations

import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

BY_LABCTL = """
import os, sys, tempfile, time
from pathlib import Path
from labctl.backends import BackendOptions, HostSpec
from labctl.backends.netns.backend import NetnsBackend
from labctl.lab.lab import Lab
from labctl.lab.spec import LabSpec
from labctl.record.history import History
from tests.bench_hosts import megabytes

with tempfile.TemporaryDirectory() as folder:
    spec = LabSpec([HostSpec(f"h{n}") for n in range(int(sys.argv[1]))], {})
    begin = time.monotonic()
    backend = NetnsBackend(BackendOptions("bench", "bench", Path(folder), "", print))
    with Lab(spec, backend, History(), lambda event: None, lambda host, records: None):
        up = time.monotonic() - begin
        taken = megabytes(os.getpid())
        begin = time.monotonic()
    print(taken, up + time.monotonic() - begin)
"""

# Mininet's own LinuxBridge does the same by brctl, which few machines still have.
BY_MININET = """
import sys, time
from mininet.net import Mininet
from mininet.node import Switch
from mininet.topo import SingleSwitchTopo

class Bridge(Switch):
    def start(self, controllers):
        self.cmd("ip link add", self, "type bridge")
        for port in self.intfList():
            if self.name in port.name:
                self.cmd("ip link set", port, "master", self)
        self.cmd("ip link set", self, "up")

    def stop(self, deleteIntfs=True):
        self.cmd("ip link delete", self)
        super().stop(deleteIntfs)

begin = time.monotonic()
net = Mininet(topo=SingleSwitchTopo(int(sys.argv[1])), switch=Bridge, controller=None)
net.start()
net.stop()
print(time.monotonic() - begin)
"""


def megabytes(pid: int) -> float:
    """The memory of a process and of all below it, of shared pages its part (proc(5), Pss)."""
    below: dict[str, list[str]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            below[stat.read_text().rpartition(")")[2].split()[1]].append(stat.parent.name)
    kilobytes, left = 0, [str(pid)]
    while left:
        each = left.pop()
        left += below[each]
        with suppress(OSError):
            words = Path(f"/proc/{each}/smaps_rollup").read_text().split()
            kilobytes += int(words[words.index("Pss:") + 1])
    return kilobytes / 1024


def peak(command: Sequence[str]) -> float:
    """The most of that while a command runs, as far as looks show it."""
    most = 0.0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        while running.poll() is None:
            most = max(most, megabytes(running.pid))
            time.sleep(0.05)
    return most
