"""Names of a pool's keys, and their form; docs/reference/keys.md has their content."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Final

POOLS = "gpu:{*}:pool"
"""Pattern of every pool's own key."""

POOL = re.compile(r"[a-z0-9-]{1,32}")
TOKEN = re.compile(r"[A-Za-z0-9._-]{16,64}")
AGENT = re.compile(r"[A-Za-z0-9._:@/-]{1,128}")
HOST = MODEL = re.compile(r"[A-Za-z0-9._ -]{1,64}")
TEAM = re.compile(r"[A-Za-z0-9._-]{1,64}")
NAME_SHOWN = re.compile(r"(?=.*[A-Za-z0-9])[ -)+-~]{1,96}")
"""Name of a device as `status` shows it; `model_of` makes its model of it."""

EVENT_ID = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")
"""Id in a stream, as `1795607407688-0`; Redis refuses numbers of 64 bits and more."""

DEVICE = re.compile(r"[A-Za-z0-9._:/-]{1,80}")

DEFAULT_TEAM: Final = "default"
"""Team of a request that names none."""

KEY_PARTY, TEAM_PARTY = "key ", "team "
"""Beginnings of the names of parties that are no agents, in refusals and in the pool's sums."""

MODEL_SUM, RESERVED_SUM = "#model ", "#reserved "
"""Words between a team's party and a model, in the names of its sums by model."""

TOMBSTONE_SHARDS: Final = 8192
"""Keys that share the ends of leases, by the digest of the token."""

PART: Final = " MIG "
"""Word between a GPU's name and the profile of its part."""

_TAIL: Final = 24


def shortened(name: str, most: int) -> str:
    """Return a name in at most so many letters, without its middle.

    The end stays: there stands the profile of a part of a GPU, which tells its model from others.
    """
    if len(name) <= most:
        return name
    at = name.rfind(PART)
    tail = name[at:] if 0 <= len(name) - at < most // 2 and at >= 0 else name[-_TAIL:]
    return f"{name[: most - len(tail)].rstrip()}{tail}"


def model_of(name: str) -> str:
    """Return a device's name in the form that leases ask for: `MODEL`."""
    plain = " ".join(re.sub(r"[^A-Za-z0-9._ -]+", " ", name).split())
    return shortened(plain, 64).strip() or "unknown"


def token_digest(token: str) -> str:
    """Return the digest by which the tombstones know a token."""
    return sha1(token.encode(), usedforsecurity=False).hexdigest()


def shard_of(token: str) -> int:
    """Return the shard with the end of this token's lease."""
    return int(token_digest(token)[:4], 16) % TOMBSTONE_SHARDS


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of one pool. They share a hash tag: one Redis slot in every deployment.

    Raises:
        ValueError: the pool's name is not 1-32 of a-z, 0-9 and `-`.
    """

    pool_name: str
    base: str = field(init=False)

    def __post_init__(self) -> None:
        if not POOL.fullmatch(self.pool_name):
            raise ValueError(f"pool name {self.pool_name!r} is not 1-32 of a-z, 0-9 and '-'")
        object.__setattr__(self, "base", f"gpu:{{{self.pool_name}}}")

    @property
    def pool(self) -> str:
        """Hash: policy, schema, epoch, clock, fence."""
        return f"{self.base}:pool"

    @property
    def stats(self) -> str:
        """Hash: counters that every replica exports alike."""
        return f"{self.base}:stats"

    @property
    def deadlines(self) -> str:
        """Sorted set: token or `host:<h>` -> the end of its present state, in ms."""
        return f"{self.base}:deadlines"

    @property
    def agents(self) -> str:
        """Hash: leases and MiB of each agent, API key and team."""
        return f"{self.base}:agents"

    @property
    def backfill(self) -> str:
        """Sorted set: reserved device -> the time until which it is lent, in ms."""
        return f"{self.base}:backfill"

    @property
    def teams(self) -> str:
        """Hash: the policy of each team, as one line of words."""
        return f"{self.base}:teams"

    @property
    def events(self) -> str:
        """Stream: the pool's events."""
        return f"{self.base}:events"

    @property
    def hooks(self) -> str:
        """Set: the names of the webhooks."""
        return f"{self.base}:hooks"

    @property
    def ended(self) -> str:
        """List: a line for each lease that ended lately and is in no sum of use yet."""
        return f"{self.base}:ended"

    @property
    def history(self) -> str:
        """Stream: the last finished leases."""
        return f"{self.base}:history"

    @property
    def usage_total(self) -> str:
        """Hash: team -> its use since the pool began; and how full leases were at their peak."""
        return f"{self.base}:usage_total"

    def usage(self, day: str) -> str:
        """Return the hash: the use of a day, as `2026-11-30`, by team, agent and model."""
        return f"{self.base}:usage:{day}"

    def usage_of_hosts(self, day: str) -> str:
        """Return the hash: the use of a day by host and model."""
        return f"{self.base}:usage:{day}:hosts"

    def use(self, device: str) -> str:
        """Return the hash: token -> what the device's host has seen of the lease there."""
        return f"{self.base}:use:{device}"

    def hook(self, name: str) -> str:
        """Return the hash: a webhook, and how far its deliveries are."""
        return f"{self.base}:hook:{name}"

    @property
    def hooks_sender(self) -> str:
        """String with native TTL: the one process that delivers to webhooks."""
        return f"{self.base}:hooks_sender"

    def mcp(self, owner: str) -> str:
        """Return the sorted set: what a key has over MCP -> when it was named last, in ms."""
        return f"{self.base}:mcp:{owner}"

    @property
    def fits(self) -> str:
        """Sorted set: every registered device -> its capacity in MiB."""
        return f"{self.base}:fits:*"

    def fits_of(self, host: str, model: str) -> str:
        """Return the sorted set: the same for a host, a model, or a model on a host; `*` = any."""
        parts = (f"host/{host}" if host != "*" else "", model if model != "*" else "")
        if host == "*" and model != "*":
            parts = ("model", model)
        return f"{self.base}:fits:{'/'.join(filter(None, parts)) or '*'}"

    @property
    def hosts(self) -> str:
        """Set: the names of the hosts that ever reported."""
        return f"{self.base}:hosts"

    def queue(self, queue_id: str) -> str:
        """Return the sorted set: token of each waiter in this queue -> rank."""
        return f"{self.base}:queue:{queue_id}"

    def lease(self, device: str, token: str) -> str:
        """Return the string with native TTL: the public proof of a living lease, with its fence."""
        return f"{self.base}:lease:{device}:{token}"

    def record(self, token: str) -> str:
        """Return the hash: the ledger's record of a lease."""
        return f"{self.base}:record:{token}"

    def done(self, token: str) -> str:
        """Return the string of 15 minutes with the ends of leases in this token's shard."""
        return f"{self.base}:done:{shard_of(token)}"

    def device(self, uuid: str) -> str:
        """Return the hash: a device."""
        return f"{self.base}:device:{uuid}"

    def host(self, host: str) -> str:
        """Return the hash: a host's last report."""
        return f"{self.base}:host:{host}"

    def holders(self, device: str) -> str:
        """Return the set: the tokens with a lease on the device, or with withheld memory on it."""
        return f"{self.base}:holders:{device}"

    def devices(self, host: str) -> str:
        """Return the set: the ids of a host's devices."""
        return f"{self.base}:devices:{host}"
