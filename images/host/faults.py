"""What the agent does to its host's traffic: it loses, delays, cuts off or injects segments.

A drop is an nftables table of its own. It counts the packets that it loses, and makes the kernel
report each (nfnetlink_log): captures can't show the loss, since packet(7) comes before the input
hook and after the output hook.

Standard library only, Python 3.6 or later.
"""

import base64
import fcntl
import re
import socket
import struct
import subprocess

import clocks

NETLINK_NETFILTER, NFNL_SUBSYS_ULOG = 12, 4
NFULNL_MSG_PACKET, NFULNL_MSG_CONFIG = 0, 1
NFULA_CFG_CMD, NFULA_CFG_MODE, NFULA_CFG_QTHRESH = 1, 2, 5
NFULNL_CFG_CMD_BIND, NFULNL_COPY_PACKET = 1, 2
NFULA_TIMESTAMP, NFULA_PAYLOAD, NFULA_PREFIX = 3, 9, 10
NLM_F_REQUEST_ACK, NLMSG_ERROR = 0x5, 2
ERROR_LENGTH = 20
TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

TABLE = "inet labctl_drop_%d"  # as labctl/lab/faults.py names them
LINK = "eth"
SIOCGIFHWADDR = 0x8927
ADDRESS = re.compile(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b")
OF_LINK = "/proc/sys/net/ipv6/conf/%s/%s"
COUNTED = re.compile(r"labctl_drop_(\d+) \{\s+counter lost \{\s+packets (\d+) ")


def run(command, text=""):
    """The output of a command. Raises OSError with its complaint."""
    try:
        done = subprocess.run(command, input=text.encode(), stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, check=False)  # fmt: skip
    except FileNotFoundError as exc:
        raise OSError("%s is not on the PATH" % command[0]) from exc
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        raise OSError("%s: %s" % (command[0], said[0].rstrip(".")))
    return done.stdout.decode("utf-8", "replace")


def links():
    """The names of the host's links: one, or one for each network of a project."""
    return [name for _, name in socket.if_nameindex() if name.startswith(LINK)]


def named(text):
    """The text, with the names of this host's interfaces for their hardware addresses: an engine
    knows no names."""
    if not ADDRESS.search(text):
        return text
    with socket.socket() as asking:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            packed = fcntl.ioctl(asking, SIOCGIFHWADDR, request)[18:24]
            text = text.replace(":".join("%02x" % byte for byte in packed), name)
    return text


def attribute(kind, data):
    """A netlink attribute (struct nlattr), padded."""
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def attributes(data, offset):
    """{type: value} of the attributes from an offset on."""
    found = {}
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        found[kind & TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


class Log:
    """The packets that a group of the kernel's log reports, each at once
    (include/uapi/linux/netfilter/nfnetlink_log.h). Raises OSError if the kernel has no such log."""

    def __init__(self, group):
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self.socket.bind((0, 0))
        body = struct.pack("!BBH", socket.AF_UNSPEC, 0, group)  # struct nfgenmsg
        body += attribute(NFULA_CFG_CMD, struct.pack("=B", NFULNL_CFG_CMD_BIND))
        body += attribute(NFULA_CFG_MODE, struct.pack("!IBx", 0xFFFF, NFULNL_COPY_PACKET))
        body += attribute(NFULA_CFG_QTHRESH, struct.pack("!I", 1))
        kind = NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_CONFIG
        header = struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST_ACK, 0, 0)
        self.socket.send(header + body)
        error = -struct.unpack_from("=i", self.socket.recv(4096), 16)[0]
        if error:
            self.socket.close()
            raise OSError(error, "the kernel has no log of packets (nfnetlink_log)")
        self.socket.setblocking(False)

    def fileno(self):
        return self.socket.fileno()

    def read(self):
        """(prefix, time by CLOCK_REALTIME or None, packet) of each since the last call."""
        found = []
        while True:
            try:
                data, offset = self.socket.recv(1 << 16), 0
            except BlockingIOError:
                return found
            except OSError:
                continue  # ENOBUFS: some were lost, as the counters will show
            while offset + ERROR_LENGTH <= len(data):
                length, kind = struct.unpack_from("=IH", data, offset)
                if kind == NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_PACKET:
                    values = attributes(data[: offset + length], offset + ERROR_LENGTH)
                    prefix = values.get(NFULA_PREFIX, b"").rstrip(b"\0").decode()
                    found.append((prefix, moment(values), values.get(NFULA_PAYLOAD, b"")))
                offset += (length + 3) & ~3


def moment(values):
    """When the kernel saw a packet; it has no time for most packets that leave."""
    if NFULA_TIMESTAMP not in values:
        return None
    seconds, micros = struct.unpack("!QQ", values[NFULA_TIMESTAMP])
    return seconds + micros / 1e6


class Faults:
    """The faults of this host now. `emit` takes events."""

    def __init__(self, emit):
        self.emit = emit
        self.log = None
        self.drops = []
        self.shaped = set()
        self.routes = []

    def report(self):
        """Reports the packets that were lost since the last time."""
        for prefix, at, packet in self.log.read() if self.log else ():
            t, wall = clocks.both()
            if at is not None:
                t -= wall - at
            data = base64.b64encode(packet).decode()
            self.emit(kind="loss", t=t, drop=int(prefix), data=data)

    def lost(self):
        """{drop: how many packets it has lost}, after all of these are reported."""
        found = COUNTED.findall(run(["nft", "list", "counters"])) if self.drops else ()
        self.report()
        return {number: int(count) for number, count in found}

    def drop(self, number, group, log, rules):
        """Begins to lose segments; says why it can't report which (`unlogged`), or null. `log` is
        the statement in the rules that reports them to a group."""
        unlogged = None
        try:
            self.log = self.log or Log(group)
            run(["nft", "-f", "-"], named(rules))
        except OSError as exc:
            unlogged = str(exc)
            run(["nft", "-f", "-"], named(rules.replace(log, "")))
        self.drops.append(number)
        return {"unlogged": unlogged}

    def heal(self, numbers):
        """Ends those of these drops that exist; says how many packets each has lost."""
        mine = [number for number in numbers if number in self.drops]
        nft("flush chain " + TABLE + " match", mine)  # What comes now is not lost any more.
        lost = self.lost() if mine else {}
        nft("delete table " + TABLE, mine)
        self.drops = [number for number in self.drops if number not in mine]
        return {"lost": lost}

    def link(self, up, device):
        """Takes the links up, or down, or one `device`; their addresses stay, and so do the ways
        through other hosts."""
        devices = [named(device)] if device else links()
        if not up:
            self.routes += [route for route in ways() if route[route.index("dev") + 1] in devices]
        for link in devices:
            if not up:
                for name, value in (("keep_addr_on_down", "1"), ("accept_dad", "0")):
                    try:
                        with open(OF_LINK % (link, name), "w") as file:
                            file.write(value)
                    except FileNotFoundError:
                        pass  # no IPv6 here, or an old kernel
            run(["ip", "link", "set", link, "up" if up else "down"])
        for route in self.routes if up else ():
            if route[route.index("dev") + 1] in devices:
                run(["ip", "route", "replace", *route])
        if up:
            self.routes = [r for r in self.routes if r[r.index("dev") + 1] not in devices]
        return {}

    def shape(self, netem, device):
        """Makes the queues of the links, or of one `device`, delay, lose or double what leaves, or
        ends that."""
        for link in [named(device)] if device else links():
            if netem:
                run(["tc", "qdisc", "replace", "dev", link, "root", "netem", *netem])
                self.shaped.add(link)
            elif link in self.shaped:
                run(["tc", "qdisc", "delete", "dev", link, "root"])
                self.shaped.remove(link)
        return {}

    def inject(self, data):
        """Sends an IP packet as it is."""
        packet = base64.b64decode(data)
        if packet[0] >> 4 == 6:
            family, target = socket.AF_INET6, socket.inet_ntop(socket.AF_INET6, packet[24:40])
        else:
            family, target = socket.AF_INET, socket.inet_ntoa(packet[16:20])
        sender = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
        sender.sendto(packet, (target, 0))
        sender.close()
        return {}

    def probe(self, what):
        """Says which of these are missing here, and why."""
        missing = {}
        for name in what:
            try:
                PROBES[name]()
            except OSError as exc:
                missing[name] = str(exc)
        return {"missing": missing}


def ways():
    """The routes through other hosts, as the words of ip(8)."""
    found = []
    for family in ("-4", "-6"):
        for line in run(["ip", family, "route", "show"]).splitlines():
            words = [word for word in line.split() if word not in ("linkdown", "dead")]
            if "via" in words:
                found.append(words)
    return found


def nft(command, numbers):
    """Does this to the tables of these drops. Raises OSError."""
    if numbers:
        run(["nft", "-f", "-"], "".join(command % number + "\n" for number in numbers))


def probe_nft():
    """Raises OSError if nftables is missing: in the kernel, or the program."""
    chain = "chain lose { type filter hook input priority 0; limit rate 1/day counter drop; }"
    run(["nft", "-c", "-f", "-"], "table inet labctl_probe {\n%s\n}\n" % chain)


def probe_nat():
    """Raises OSError if nftables can't translate addresses."""
    chain = "chain out { type nat hook postrouting priority 100; masquerade; }"
    run(["nft", "-c", "-f", "-"], "table inet labctl_probe {\n%s\n}\n" % chain)


def probe_netem():
    """Raises OSError if netem is missing: in the kernel, or the program."""
    run(["tc", "qdisc", "replace", "dev", "lo", "root", "netem", "delay", "1ms"])
    run(["tc", "qdisc", "delete", "dev", "lo", "root"])


PROBES = {"nft": probe_nft, "nat": probe_nat, "netem": probe_netem}
