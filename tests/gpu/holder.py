"""Holds memory of the first visible GPU, as it is told on stdin; one answer to each order.

`lease MIB` gets a lease of the pool that the environment names and answers with its token;
`hold MIB` allocates so much more, and says so. What it has, it has until its stdin ends.
"""

from __future__ import annotations

import ctypes
import sys

from agent_sdk import LeaseClient


class Gpu:
    """A CUDA context, through the driver's own library alone."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcuda.so.1")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        self._call("cuCtxCreate_v2", ctypes.byref(context), ctypes.c_uint(0), device)

    def hold(self, mib: int) -> None:
        """Allocate so much more."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(mib << 20))

    def _call(self, function: str, *args: object) -> None:
        code = getattr(self._cuda, function)(*args)
        if code:
            sys.exit(f"{function} failed with {code}")


def main() -> None:
    """Obey until the orders end."""
    gpu: Gpu | None = None
    client = LeaseClient.from_env()
    for order in sys.stdin:
        what, mib = order.split()
        if what == "lease":
            answer = client.acquire("holder", memory_mb=int(mib), ttl_s=600).token
        else:
            gpu = gpu or Gpu()
            gpu.hold(int(mib))
            answer = "held"
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
