"""Captures: the TCP packets of an interface, as the agent reads them (packet(7)).

Standard library only, Python 3.6 or later.
"""

import ctypes
import mmap
import os
import socket
import struct

ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_RX_RING, PACKET_STATISTICS, PACKET_VERSION = 5, 6, 10
TPACKET_V2 = 1
SO_ATTACH_FILTER = 26
TP_STATUS_KERNEL, TP_STATUS_USER = 0, 1

FRAME_SIZE = 256
BLOCK_SIZE = 1 << 16
BLOCKS, BLOCKS_MOST, BLOCKS_LEAST = 64, 256, 32
"""Of memory for a ring, 2 MiB to 16: room for what a busy link carries while a busy machine lets
the agent wait. The kernel clears all of it first, and that takes time."""
SNAP = 176
"""Bytes to keep of a packet: what a frame holds, enough for all headers and some payload."""

HEADER = struct.Struct("=IIIHHII")  # struct tpacket2_hdr: status, len, snaplen, mac, net, sec, nsec
RECORD = struct.Struct("=IIII")  # pcap-savefile(5), with nanoseconds

PACKET_OTHERHOST, PACKET_OUTGOING = 3, 4
INSIDE = "lo"

libc = ctypes.CDLL(None, use_errno=True)

YES, NO = "take", "leave out"
MOST_PORTS = 100
"""So many a jump of the program below can pass."""
KIND = 0xFFFFF004  # SKF_AD_PKTTYPE
IPV4, IPV6, TCP = 0x0800, 0x86DD, 6


def program(interface, ports=()):
    """IPv4 or IPv6 that carries TCP, of these ports only if there are any, as a classic BPF program
    (Documentation/networking/filter.rst).

    It leaves out packets that a bridge sends to all of its ports, and of the two times that the
    loopback interface shows each packet the first."""
    foreign = PACKET_OUTGOING if interface == INSIDE else PACKET_OTHERHOST
    of_ports = []
    for offset in (14, 16) if ports else ():  # of the source, and of the destination
        of_ports.append((0x48, 0, 0, offset))  # load what stands there, from X on
        of_ports += [(0x15, YES, 0, port) for port in ports]
    if ports:
        of_ports[-1] = (0x15, YES, NO, ports[-1])
    codes = [
        (0x30, 0, 0, KIND),
        (0x15, NO, 0, foreign),
        (0x28, 0, 0, 12),  # load the EtherType
        (0x15, 0, 4, IPV4),
        (0x30, 0, 0, 23),  # load its protocol
        (0x15, 0, NO, TCP),
        (0xB1, 0, 0, 14),  # X: the length of its header
        (0x05, 0, 0, 4),  # go to the ports
        (0x15, 0, NO, IPV6),
        (0x30, 0, 0, 20),  # load its next header
        (0x15, 0, NO, TCP),
        (0x01, 0, 0, 40),  # X: the length of its header
        *of_ports,
        (0x06, 0, 0, SNAP),
        (0x06, 0, 0, 0),
    ]
    ends = {YES: len(codes) - 2, NO: len(codes) - 1}

    def jump(where, at):
        return ends[where] - at - 1 if where in ends else where

    return [(c, jump(t, at), jump(f, at), k) for at, (c, t, f, k) in enumerate(codes)]


class Capture:
    """The TCP packets of an interface, in a memory ring (packet(7), PACKET_RX_RING).

    The kernel copies the first bytes of each into a ring of fixed size and counts those that found
    no room. So a flood costs little and no loss goes unnoticed. Raises OSError if it is forbidden.
    """

    def __init__(self, interface, blocks=BLOCKS, ports=()):
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        codes = program(interface, ports)
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *c) for c in codes))
        prog = struct.pack("HP", len(codes), ctypes.addressof(code))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, prog)
        self.socket.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
        self.frames = blocks * BLOCK_SIZE // FRAME_SIZE
        request = struct.pack("IIII", BLOCK_SIZE, blocks, FRAME_SIZE, self.frames)
        # Python's own setsockopt keeps its other threads waiting as long as the kernel does.
        at = self.socket.fileno(), SOL_PACKET, PACKET_RX_RING
        if libc.setsockopt(*at, request, len(request)):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self.ring = mmap.mmap(self.socket.fileno(), blocks * BLOCK_SIZE)
        self.frame = 0
        self.socket.bind((interface, ETH_P_ALL))

    def fileno(self):
        return self.socket.fileno()

    def read(self):
        """The packets that came since the last call: pairs of moment and pcap record."""
        records = []
        for _ in range(self.frames):
            offset = self.frame * FRAME_SIZE
            status, length, kept, mac, _, sec, nsec = HEADER.unpack_from(self.ring, offset)
            if not status & TP_STATUS_USER:
                break
            start = offset + mac
            record = RECORD.pack(sec, nsec, kept, length) + self.ring[start : start + kept]
            records.append(((sec, nsec), record))
            struct.pack_into("=I", self.ring, offset, TP_STATUS_KERNEL)
            self.frame = (self.frame + 1) % self.frames
        return records

    def revive(self):
        """Notes that the interface went down, if it did: until then the socket counts as readable.
        It goes on when the interface is up again."""
        self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def dropped(self):
        """How many packets found no room since the last call."""
        found = self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        return struct.unpack("II", found)[1]
