"""One cycle of the SAFE_MODE demonstration: everything that a client asks, once, as it was seen."""

from __future__ import annotations

import time
from typing import Any

from demo.web import ask, metrics

AGENT = "safe-mode-demo"

MEMORY_MB = 1024

ACTIVE = "gpu_orchestrator_active_leases"


def run_cycle(url: str) -> dict[str, Any]:
    """Return the answers of an orchestrator: health, readiness, policy, a lease, metrics.

    Raises:
        Silent: nobody answered.
    """
    before = metrics(url)
    health, ready, policy = ask(f"{url}/health"), ask(f"{url}/ready"), ask(f"{url}/policy")
    change = {"max_memory_per_agent_mb": policy.body["max_memory_per_agent_mb"]}
    posted = ask(f"{url}/policy", change)
    lease = ask(f"{url}/lease", {"agent": AGENT, "min_memory_mb": MEMORY_MB})
    during = metrics(url)
    token = lease.body.get("token")
    released = ask(f"{url}/release", {"token": token}) if token else None
    return {
        "url": url,
        "at": time.time(),
        "safe_mode": health.body["safe_mode"],
        "health": health.body,
        "ready": {"status": ready.status, **ready.body},
        "policy": policy.body,
        "policy_post": {"status": posted.status, **posted.body},
        "lease": {"status": lease.status, **lease.body},
        "release": None if released is None else {"status": released.status, **released.body},
        "metrics": {"before": before, "during": during, "after": metrics(url)},
    }


def wrong_with(cycle: dict[str, Any], *, safe_mode: bool) -> list[str]:
    """Return all that is not as documented in this mode; nothing when all is."""
    lease, active = cycle["lease"], cycle["metrics"]["during"].get(ACTIVE)
    checks = {
        f"safe_mode is {cycle['safe_mode']}": cycle["safe_mode"] is safe_mode,
        f"/ready answered {cycle['ready']}": cycle["ready"].get("ready") is True,
    }
    if safe_mode:
        checks |= {
            f"the lease was not denied: {lease}": lease.get("granted") is False,
            "the denial has no note SAFE_MODE": lease.get("note") == "SAFE_MODE",
            "the denial names a gpu or a token": not lease.keys() & {"gpu", "token"},
            "POST /policy says nothing of read-only": "note" in cycle["policy_post"],
            f"{ACTIVE} is {active}": active == 0,
        }
    else:
        checks |= {
            f"no GPU was granted: {lease}": lease.get("granted") is True
            and isinstance(lease.get("gpu"), int),
            f"{ACTIVE} is {active} with a lease held": active == 1,
            "the release failed": (cycle["release"] or {}).get("released") is True,
            "a lease was left": cycle["metrics"]["after"].get(ACTIVE) == 0,
        }
    return [what for what, holds in checks.items() if not holds]
