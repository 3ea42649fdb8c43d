"""The bodies of requests. Integers are strict: 2.0, "5" and true are not numbers of anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AliasChoices, Field

MOST = 2**53 - 1
"""Integers up to here are exact in every JSON reader."""

MOST_MB = 10**13 - 1
"""As many digits as the verbs read. What no device holds falls back or is refused like others."""

Agent = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:@/-]{1,128}$")]
Token = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{16,64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._ -]{1,64}$")]
Seconds = Annotated[float, Field(strict=True, ge=0, le=604800, allow_inf_nan=False)]
Memory = Annotated[int, Field(strict=True, ge=0, le=MOST_MB)]


@dataclass(frozen=True, slots=True)
class LeaseBody:
    """POST /lease.

    Attributes:
        min_memory_mb: MiB on each device, also as `memory_mb`; 0 or null = the policy's default.
        devices: several = whole idle devices of one host and model.
        host: null = this broker's own if it has devices, else any; "any" or a name.
        token: the idempotency key: repeating the request with it is safe.
        on_unavailable: `cpu`: a CPU lease when no GPU fits; `refuse`: 409.
    """

    agent: Agent
    min_memory_mb: Annotated[
        Memory | None, Field(validation_alias=AliasChoices("min_memory_mb", "memory_mb"))
    ] = None
    devices: Annotated[int, Field(strict=True, ge=1, le=64)] = 1
    exclusive: Annotated[bool, Field(strict=True)] = False
    ttl_s: Seconds | None = None
    priority: Annotated[int, Field(strict=True, ge=0, le=9)] = 0
    host: Name | None = None
    model: Name | None = None
    placement: Literal["spread", "pack"] = "spread"
    token: Token | None = None
    on_unavailable: Literal["cpu", "refuse"] = "cpu"


@dataclass(frozen=True, slots=True)
class RenewBody:
    """POST /renew.

    Attributes:
        ttl_s: from now; null = as at the grant.
        fence: compared when given.
    """

    token: Token
    ttl_s: Seconds | None = None
    fence: Annotated[int, Field(strict=True, ge=0, le=MOST)] | None = None


@dataclass(frozen=True, slots=True)
class ReleaseBody:
    """POST /release."""

    token: Token
