"""Hosts, up and down in one process: programs that say how long that took without imports."""

from __future__ import annotations

BY_LABCTL = """
import sys, tempfile, time
from pathlib import Path
from labctl.backends import BackendOptions, HostSpec
from labctl.backends.netns.backend import NetnsBackend
from labctl.lab.lab import Lab, LabSpec
from labctl.record.history import History

with tempfile.TemporaryDirectory() as folder:
    spec = LabSpec([HostSpec(f"h{n}") for n in range(int(sys.argv[1]))], {})
    begin = time.monotonic()
    backend = NetnsBackend(BackendOptions("bench", "bench", Path(folder), "", print))
    with Lab(spec, backend, History(), lambda event: None, lambda host, records: None):
        pass
    print(time.monotonic() - begin)
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
