"""Write deploy/redis/users.acl: what each kind of user may do on the store.

A script's own commands are checked against the user who calls it, so they are taken from the Lua
sources. --check writes nothing, and exits with 1 when the file is not what it should be.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

TARGET = ROOT / "deploy" / "redis" / "users.acl"

KEYS = "gpu:{*"

READS = {
    "exec", "exists", "get", "hget", "hgetall", "hmget", "lrange", "multi", "pttl", "scard",
    "smembers", "time", "ttl", "type", "xinfo|stream", "xlen", "xrange", "xread",
    "xrevrange", "zcard", "zrange", "zrank", "zscore",
}  # fmt: skip
"""Commands that reading a pool takes, by the SDK or by hand; usage is read in transactions."""

HANDSHAKE = {"auth", "client|setname", "cluster|slots", "hello", "ping", "select"}
"""Commands that a client sends first; a Cluster is asked for the pool's node. redis-py adds CLIENT
SETINFO, which Redis 7.0 does not know, and takes no for an answer."""

BY_HAND = {
    "acl|whoami", "client|list", "config|get", "dbsize", "function|list", "info", "latency|latest",
    "memory|usage", "scan", "slowlog|get",
}  # fmt: skip
"""Commands of an operator beside those on the pool."""

INBOX = {"blmpop", "lmpop"}
"""Commands by which a waiting process hears of its offer."""

CALLS = {"evalsha", "fcall", "script|load", "script|exists"}

HOOKS = {"hsetnx", "unwatch", "watch"}
"""Commands that change webhooks and their progress beside the verbs, in transactions."""

LOADS = {"function|load"}
"""Commands that load functions: for a broker, to load its own, and for an operator."""


def of_the_verbs() -> set[str]:
    """Return every command that a script may call: all are joined with the same library."""
    text = "\n".join(
        re.sub(r"--.*", "", path.read_text()) for path in sorted((ROOT / "lua").rglob("*.lua"))
    )
    return {name.lower() for name in re.findall(r"\bp?call\('([A-Z]+)'", text)}


def users() -> dict[str, tuple[set[str], bool]]:
    """User -> commands, and whether its keys are for reading alone."""
    verbs = of_the_verbs() | CALLS
    return {
        "broker": (verbs | READS | HANDSHAKE | INBOX | HOOKS | LOADS, False),
        "agent": (verbs | READS | HANDSHAKE | INBOX, False),
        "operator": (
            verbs | READS | HANDSHAKE | INBOX | HOOKS | BY_HAND | LOADS | {"fcall_ro"},
            False,
        ),
        "viewer": (READS | HANDSHAKE | {"info", "scan"}, True),
    }


def text() -> str:
    """Return the file. A user without a password cannot log in: they are set by hand, and saved."""
    lines = ["user default off resetchannels -@all"]
    for name, (commands, reads_only) in users().items():
        keys = f"%R~{KEYS}" if reads_only else f"~{KEYS}"
        rights = " ".join(f"+{command}" for command in sorted(commands))
        lines.append(f"user {name} on resetchannels {keys} -@all {rights}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write or check the file; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if it would change")
    if parser.parse_args().check:
        if TARGET.read_text() == text():
            return 0
        print(f"{TARGET.name} is stale: python scripts/generate_acl.py", file=sys.stderr)
        return 1
    TARGET.write_text(text())
    print(f"wrote {TARGET.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
