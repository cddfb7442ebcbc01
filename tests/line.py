"""A line between two machines of one computer, with a delay, losses, a rate, and a plug that can be pulled.

Each end is a TUN device in a network namespace of its own; a thread hands the IP packets over. The kernel's own netem
does the same and better, where there is one. Linux, and the rights of root.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
MTU, QUEUE_BYTES = 1500, 60_000  # what waits for a slow line, as in a small router
TCP = 6


def why_not() -> str | None:
    """Why no namespace can be made here; None if one can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "network namespaces need the rights of root"
    if not shutil.which("ip"):
        return "there is no command ip (iproute2)"
    name = f"try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"ip netns add fails here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return None if Path("/dev/net/tun").exists() else "there is no /dev/net/tun"


def run_ip(*words: str, inside: str | None = None) -> None:
    subprocess.run(["ip", *(["-n", inside] if inside else []), *words], check=True, capture_output=True)


@contextlib.contextmanager
def namespace(name: str) -> Iterator[str]:
    """A network namespace with nothing but its own loopback."""
    run_ip("netns", "add", name)
    try:
        run_ip("link", "set", "lo", "up", inside=name)
        yield name
    finally:
        run_ip("netns", "del", name)


class Line:
    """Two namespaces, joined.

    Args:
        ends: the names of the namespaces; each gets a device `device` with its address, and the way to the other.
        delay: seconds that each packet is on its way, one way.
        loss: the fraction of the packets that get lost.
        rate: bytes a second, each way; 0: as fast as it goes.
    """

    def __init__(
        self,
        ends: tuple[str, str],
        addresses: tuple[str, str],
        device: str,
        *,
        delay: float = 0.0,
        loss: float = 0.0,
        rate: float = 0.0,
    ) -> None:
        self.device, self.delay, self.loss, self.rate = device, delay, loss, rate
        self.carried = [0, 0]  # bytes, from the first end and from the second
        self.lost = 0  # packets
        self._cut, self._blocked = threading.Event(), set()
        self._over = threading.Event()
        self._draw = random.Random(0)
        self._ends = [_open_tun(name, device) for name in ends]
        for name, own, other in zip(ends, addresses, reversed(addresses), strict=True):
            run_ip("addr", "add", own, "peer", other, "dev", device, inside=name)
            run_ip("link", "set", device, "mtu", str(MTU), "up", inside=name)
        self._threads = [threading.Thread(target=self._carry, args=way, daemon=True) for way in ((0, 1), (1, 0))]
        for thread in self._threads:
            thread.start()

    def cut(self) -> None:
        """Nothing gets through, and nobody is told."""
        self._cut.set()

    def join(self) -> None:
        """As before the cut."""
        self._cut.clear()

    def block(self, port: int) -> None:
        """Drop what goes to a TCP port or comes from it."""
        self._blocked.add(port)

    def unblock(self, port: int) -> None:
        self._blocked.discard(port)

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            os.close(end)

    def _carry(self, source: int, target: int) -> None:
        waiting: list[tuple[float, int, bytes]] = []  # when it arrives, its number, the packet
        free_at, number = 0.0, 0
        while not self._over.is_set():
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                self._deliver(heapq.heappop(waiting)[2], source, target)
            pause = min(0.05, max(0.0, waiting[0][0] - now)) if waiting else 0.05
            if not select.select([self._ends[source]], [], [], pause)[0]:
                continue
            packet, now, number = os.read(self._ends[source], 65536), time.monotonic(), number + 1
            free_at = max(free_at, now)
            full = self.rate and (free_at - now) * self.rate > QUEUE_BYTES
            if full or self._cut.is_set() or self._draw.random() < self.loss or _ports(packet) & self._blocked:
                self.lost += 1
                continue
            free_at += len(packet) / self.rate if self.rate else 0.0
            heapq.heappush(waiting, (free_at + self.delay, number, packet))

    def _deliver(self, packet: bytes, source: int, target: int) -> None:
        if self._cut.is_set():
            self.lost += 1
            return
        with contextlib.suppress(OSError):  # the device is down: the machine is gone
            os.write(self._ends[target], packet)
            self.carried[source] += len(packet)


def _ports(packet: bytes) -> set[int]:
    """From and to which TCP port an IPv4 packet goes."""
    if packet[0] >> 4 != 4 or packet[9] != TCP:
        return set()
    start = (packet[0] & 15) * 4
    return set(struct.unpack("!HH", packet[start : start + 4]))


def _open_tun(name: str, device: str) -> int:
    """A TUN device in a namespace: a thread enters it, for a namespace is a thread's."""
    found: list[int | BaseException] = []

    def enter() -> None:
        try:
            place = os.open(f"/run/netns/{name}", os.O_RDONLY)
            _set_namespace(place)
            os.close(place)
            end = os.open("/dev/net/tun", os.O_RDWR)
            fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))
            found.append(end)
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _set_namespace(place: int) -> None:
    if hasattr(os, "setns"):  # Python 3.12
        os.setns(place, CLONE_NEWNET)
        return
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(place, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
