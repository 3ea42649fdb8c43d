"""A machine of `tests/hardware/NAME/`, and a real broker that reports it.

`smi.json` is what its `nvidia-smi` says (tests/fakes/smi/nvidia-smi explains it), `words` what its
NVML says (tests/fakes/nvml/nvml.c), `kernel.json` what the kernel says of AMD's GPUs
(tests/hardware/kernel_files.py). `later.json` and `later` are what they say afterwards.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from agent_sdk import LeaseClient, Store
from tests.api.brokers import BIN, GRANTING, PROGRAM, Broker, environment, eventually
from tests.hardware.kernel_files import unpack

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from tests.servers import Server

HERE = Path(__file__).parent

SMI = HERE.parent / "fakes" / "smi"
"""The folder of the stand-in for nvidia-smi, for PATH."""


class Reported:
    """A machine under a real `gpu-broker serve`, on host h1 and in a pool of its own.

    Attributes:
        broker: the process.
        settings: its environment; `run` and other commands get the same.
    """

    def __init__(
        self,
        name: str,
        server: Server,
        driver: Path,
        folder: Path,
        *,
        later: bool = False,
        **settings: str,
    ) -> None:
        """Start the broker; `later`: the machine says from the start what it says later."""
        self._from, self._folder = HERE / name, folder
        self._stack = ExitStack()
        self.settings = GRANTING | {
            "REDIS_URL": server.url,
            "GPU_BROKER_POOL": f"hw-{uuid4().hex[:8]}",
            "GPU_BROKER_REPORT_S": "0.3",
            "GPU_BROKER_DEVICES": "auto",
            "GPU_BROKER_AMD_ROOT": str(folder),
        }
        if (self._from / "smi.json").exists():
            self._say("smi.json", "smi.json")
            self.settings |= {
                "PATH": f"{SMI}:{BIN}:{os.environ['PATH']}",
                "FAKE_SMI_FILE": str(folder / "smi.json"),
            }
        if (self._from / "words").exists():
            self._say("words", "words")
            self.settings |= {
                "ENABLE_NVML": "true",
                "LD_LIBRARY_PATH": str(driver),
                "FAKE_NVML_FILE": str(folder / "words"),
            }
        if (self._from / "kernel.json").exists():
            self.settings |= unpack(name, folder)
        self.settings |= settings
        if later:
            self.later()
        self.broker = self._stack.enter_context(Broker(**self.settings))

    def _say(self, told: str, to: str) -> None:
        new = self._folder / "new"
        shutil.copy(self._from / told, new)
        new.rename(self._folder / to)

    def words(self, *words: str) -> None:
        """Let NVML say these words from now on."""
        new = self._folder / "new"
        new.write_text("\n".join(words))
        new.rename(self._folder / "words")

    def smi(self, **changes: Any) -> None:
        """Change what nvidia-smi says from now on: words of its machine file."""
        told, new = self._folder / "smi.json", self._folder / "new"
        new.write_text(json.dumps(json.loads(told.read_text()) | changes))
        new.rename(told)

    def restart(self) -> None:
        """Start a new broker in place of the one that has stopped."""
        self.broker = self._stack.enter_context(Broker(**self.settings)).wait()

    def later(self) -> None:
        """Let the machine say from now on what it says later."""
        for told, to in (("later.json", "smi.json"), ("later", "words")):
            if (self._from / told).exists():
                self._say(told, to)

    def host(self) -> dict[str, Any]:
        """Return the one host, as GET /hosts shows it."""
        [host] = self.broker.http.get("/hosts").json()["hosts"]
        return dict(host)

    def trouble(self, beginning: str, within_s: float = 10) -> str:
        """Return the host's trouble once it begins so; at first perhaps nothing answers yet."""
        return str(
            eventually(
                lambda: (said := str(self.host()["trouble"])).startswith(beginning) and said,
                within_s,
            )
        )

    def gpus(self) -> list[dict[str, Any]]:
        """List the rows of /gpu/info, by index and UUID."""
        rows = self.broker.http.get("/gpu/info").json()["gpus"]
        return sorted(rows, key=lambda row: (row["index"], row["uuid"]))

    def until(self, seen: Callable[[list[dict[str, Any]]], Any], within_s: float = 15) -> Any:
        """Return the rows once there are some of which this is true."""
        return eventually(lambda: (rows := self.gpus()) and seen(rows) and rows, within_s)

    def sdk(self) -> LeaseClient:
        """Return an agent's client on this host; it is closed with the machine."""
        store = Store(self.settings["REDIS_URL"])
        pool = self.settings["GPU_BROKER_POOL"]
        return self._stack.enter_context(LeaseClient(store, pool=pool, hostname="h1"))

    def command(
        self, *args: str, timeout_s: float = 30, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `gpu-broker` on this host."""
        return subprocess.run(
            [PROGRAM, *args],
            env=environment(**self.settings | more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def assert_slow(asked: str, warning: str) -> None:
    """Check the warning of a host whose driver is slow: how slow, and what would help."""
    assert re.fullmatch(
        asked + r" takes \d\.\d s to answer, and persistence mode is off: turn it on "
        r"\(nvidia-persistenced\)", warning
    )  # fmt: skip
