"""Two hosts on one machine: network namespaces, joined by a link of a given rate and delay."""

import contextlib
import fcntl
import os
import select
import struct
import subprocess
import threading
import time
from collections import deque
from dataclasses import dataclass

NAMES, DEVICES, ADDRESSES = ("cdn-host-0", "cdn-host-1"), ("cdn-tun-0", "cdn-tun-1"), ("10.77.0.1", "10.77.0.2")
# Bytes of a packet. Large ones, so that the relay, which is Python, takes little of the processors.
PACKET = 60_000
# Linux: <linux/if_tun.h>
_SET_INTERFACE, _TUN, _NO_HEADER = 0x400454CA, 0x0001, 0x1000


@dataclass(frozen=True)
class Link:
    """A link, alike in both directions.

    Attributes:
        name: what the page calls it.
        rate: Mbit/s, None for what the machine gives.
        delay: milliseconds that a packet takes.
    """

    name: str
    rate: float | None = None
    delay: float = 0.0


def why_not():
    """Return why there can be no such hosts here, or None."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun"
    try:
        for command in ("ip", "tc"):
            subprocess.run([command, "-Version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"ip and tc of iproute2 are needed: {error}"
    return None


@contextlib.contextmanager
def hosts(link):
    """Make both hosts, and take them away at the end.

    ``tc`` limits the rate (a token bucket). The delay is that of a relay, which passes packets on between two devices
    of the kernel's TUN driver: kernels without netem delay nothing themselves.

    Yields:
        function(number of the host, words) that returns the command that runs a command there.
    """
    with contextlib.ExitStack() as stack:
        for name in NAMES:
            _run("ip", "netns", "add", name)
            stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True)
        ends = [stack.enter_context(contextlib.closing(_Device(device))) for device in DEVICES]
        for name, device, address in zip(NAMES, DEVICES, ADDRESSES):
            _run("ip", "link", "set", device, "netns", name)
            inside = "ip", "netns", "exec", name
            _run(*inside, "ip", "link", "set", "lo", "up")
            _run(*inside, "ip", "link", "set", device, "mtu", PACKET, "up")
            _run(*inside, "ip", "address", "add", f"{address}/24", "dev", device)
            if link.rate:
                bucket = "tbf", "rate", f"{link.rate:g}mbit", "burst", 4 * PACKET, "latency", "2s"
                _run(*inside, "tc", "qdisc", "add", "dev", device, "root", *bucket)
        relays = [_Relay(ends[0].file, ends[1].file, link.delay), _Relay(ends[1].file, ends[0].file, link.delay)]
        for relay in relays:
            relay.start()
            stack.callback(relay.stop)
        yield lambda host, words: ["ip", "netns", "exec", NAMES[host], *words]


class _Device:
    """A TUN device: what the kernel sends there is read from a file, and what is written to it arrives."""

    def __init__(self, name):
        self.file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self.file, _SET_INTERFACE, struct.pack("16sH22x", name.encode(), _TUN | _NO_HEADER))

    def close(self):
        os.close(self.file)


class _Relay(threading.Thread):
    """Pass on what comes from one file to another, after a delay."""

    def __init__(self, source, target, delay):
        super().__init__(daemon=True)
        self.source, self.target, self.delay = source, target, delay / 1e3
        self.waiting = deque()  # (when, packet)
        self.wake, self._other = os.pipe()

    def run(self):
        while True:
            left = self.waiting[0][0] - time.monotonic() if self.waiting else None
            readable, _, _ = select.select([self.source, self.wake], [], [], None if left is None else max(left, 0))
            if self.wake in readable:
                return
            if readable:
                with contextlib.suppress(BlockingIOError):  # another reader of the device was faster
                    self.waiting.append((time.monotonic() + self.delay, os.read(self.source, PACKET + 100)))
            while self.waiting and self.waiting[0][0] <= time.monotonic():
                with contextlib.suppress(OSError):  # lost, as on any link: a host that is gone, a full queue
                    os.write(self.target, self.waiting.popleft()[1])

    def stop(self):
        os.write(self._other, b".")
        self.join()
        os.close(self.wake)
        os.close(self._other)


def _run(*words):
    subprocess.run([str(word) for word in words], check=True, capture_output=True)
