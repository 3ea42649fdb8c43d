"""A line on which packets are late, overtake one another, or never arrive: a cable in user space.

Not every kernel has netem. A host's interface and a port of the switch are two TAP devices here,
and this process carries the frames from one to the other.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import threading
import time
from dataclasses import dataclass, field

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000

FRAME_BYTES = 2048
"""More than an Ethernet frame has; without offloads the kernel hands over no larger ones."""


def tap(name: str) -> int:
    """A TAP device of that name in this network namespace, as a file.

    Raises:
        OSError: this machine makes none.
    """
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return file


@dataclass
class Weather:
    """The fate of the frames between two ends; may be changed at any time.

    Attributes:
        delay_s: of each, in each direction.
        jitter_s: at most so much more, each of its own.
        loss: the share that vanishes.
        lost: how many did.
    """

    one: int
    other: int
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    carried: int = 0
    lost: int = 0
    _late: list[tuple[float, int, int, bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Carry them until this process ends."""
        threading.Thread(target=self._carry, daemon=True).start()

    def calm(self) -> None:
        """All arrive, at once."""
        self.delay_s = self.jitter_s = self.loss = 0.0

    def _carry(self) -> None:
        across = {self.one: self.other, self.other: self.one}
        poll = select.poll()
        for end in across:
            poll.register(end, select.POLLIN)
        while True:
            wait_s = max(0.0, self._late[0][0] - time.monotonic()) if self._late else 1.0
            for end, _ in poll.poll(wait_s * 1000):
                self._take(end, across[end])
            while self._late and self._late[0][0] <= time.monotonic():
                _, _, end, frame = heapq.heappop(self._late)
                os.write(end, frame)

    def _take(self, source: int, sink: int) -> None:
        frame = os.read(source, FRAME_BYTES)
        self.carried += 1
        if random.random() < self.loss:
            self.lost += 1
            return
        due = time.monotonic() + self.delay_s + random.uniform(0, self.jitter_s)
        heapq.heappush(self._late, (due, self.carried, sink, frame))
