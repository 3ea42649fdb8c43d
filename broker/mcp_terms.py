"""Terms of an MCP server: its limits, and the names of their settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

INSTALL: Final = "pip install 'gpu-lease-broker[mcp]'"
"""Install line of the extra."""

IDLE_RELEASE_S: Final = 600
"""Default seconds of silence after which a lease over HTTP, or a wait, is given up."""

TTL_S: Final = 30.0
"""Default seconds for which a lease over stdio outlives a crash of its server."""

ALONE_GPUS: Final = 1
"""Default for the most GPUs that an agent takes without a person's word."""

MOST_WAIT_S: Final = 15.0
"""Most seconds that one call waits for a lease.

Hosts cut calls off after 30 or 60 s. With the other requests of a call it stays below 20 s.
"""

CALL_S: Final = 19.0
"""Most seconds of a tool's own work, whatever happens."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Limits for the agents of one server.

    Attributes:
        idle_release_s: seconds of silence after which a lease over HTTP, or a wait, is given up.
        alone_gpus: more GPUs than this need a person's word.
        alone_mb: more MiB than this on all GPUs together need it; 0: no limit.
        may_run: `gpu_run` runs commands.
        ttl_s: seconds after the last renewal at which a lease over stdio ends.
    """

    idle_release_s: float = IDLE_RELEASE_S
    alone_gpus: int = ALONE_GPUS
    alone_mb: int = 0
    may_run: bool = False
    ttl_s: float = TTL_S

    def too_large(self, gpus: int, memory_mb: int) -> str:
        """Return the limit that a request passes, as a sentence; empty: an agent may take it."""
        if gpus > self.alone_gpus:
            return f"{gpus} GPUs are more than the {self.alone_gpus} that an agent takes alone"
        all_mb = gpus * memory_mb
        if self.alone_mb and all_mb > self.alone_mb:
            return f"{all_mb} MiB are more than the {self.alone_mb} that an agent takes alone"
        return ""
