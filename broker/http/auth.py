"""Authentication and authorization of requests.

The key is checked before any of the request's body is read. A route names the role that it needs
by FastAPI's security classes, so that the OpenAPI document shows it.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from agent_sdk.errors import LeaseError, error_for
from broker.address_rate import Rate
from broker.api_keys import ANYBODY, UNUSABLE, Principal, Role, owns
from broker.http.problems import problem
from broker.path_prefix import path_of
from broker.serializers import lease_json

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import Scope

    from agent_sdk.state.queue import WaiterStatus
    from agent_sdk.state.snapshot import LeaseStatus
    from agent_sdk.usage.history import FinishedLease
    from broker.api_keys import Keyring

OPEN = {"/", "/health", "/ready", "/openapi.json", "/docs", "/docs/init.js"}
"""Paths for gates, probes and browsers without a key: they tell nothing private."""

ASSETS = ("/docs/static/", "/static/")

SCHEME = b"bearer "


BURST, PER_S = 200, 50
"""Requests without a key from one address: so many at once, then so many a second."""

HASTY = "too many requests without a key from this address: slow down"

HOST = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9.-]+))(?::[0-9]{1,5})?")

ELSEWHERE = (
    "this broker has no API keys and answers to this machine alone: ask it as localhost or "
    "127.0.0.1, or make a key with gpu-broker keys new"
)


class KeyCheck:
    """Check of the keys: without a known one a request gets no further than the open paths.

    A broker without keys that listens on loopback answers to loopback's names alone: otherwise a
    foreign page, with a name that is made to point here, would be an operator.

    Args:
        keys: the key ring; while it is not locked every client is an operator.
        loopback: True if it listens on a port that this machine alone reaches.
    """

    def __init__(self, keys: Keyring, *, loopback: bool) -> None:
        self._keys = keys
        self._loopback = loopback
        self._rate = Rate(BURST, PER_S)

    def refusal(self, scope: Scope) -> Response | None:
        """Put the principal into the scope, or return the refusal."""
        locked = self._keys.locked
        principal = self._principal(scope) if locked else ANYBODY
        elsewhere = not locked and self._loopback and not _is_local(scope)
        barred: LeaseError | None = None
        if principal is None or elsewhere:
            barred = self._barred(scope, elsewhere=elsewhere)
        elif not _admit(scope, principal, shared=locked):
            barred = error_for("busy")
        if barred is None:
            scope["principal"] = principal
            return None
        answer = problem(barred, scope)
        answer.headers["Connection"] = "close"
        return answer

    def _barred(self, scope: Scope, *, elsewhere: bool) -> LeaseError | None:
        """Return the refusal of a request without a known key; None: it is for an open path."""
        if not self._rate.allows(scope["client"][0] if scope["client"] else ""):
            return error_for("busy", HASTY)
        path = path_of(scope)
        if path in OPEN or path.startswith(ASSETS):
            return None
        if elsewhere:
            return error_for("forbidden", ELSEWHERE)
        return error_for("unauthorized", UNUSABLE if self._keys.trouble else None)

    def _principal(self, scope: Scope) -> Principal | None:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1 or given[0][: len(SCHEME)].lower() != SCHEME:
            return None
        return self._keys.find(given[0][len(SCHEME) :].decode("latin-1").strip())


def _admit(scope: Scope, principal: Principal, *, shared: bool) -> bool:
    """Tell whether a connection has room among those with a key."""
    admit = scope.get("extensions", {}).get("admit")
    return admit is None or bool(admit(principal.name, shared=shared))


def _is_local(scope: Scope) -> bool:
    """Tell whether the request names an address, or a name that is always this machine's.

    Every browser sends a Host header; a probe of HTTP/1.0 may not.
    """
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    if not hosts:
        return True
    found = HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if not found:
        return False
    name = (found["ipv6"] or found["name"]).lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).version == (6 if found["ipv6"] else 4)
    except ValueError:
        return False


bearer = HTTPBearer(
    auto_error=False,
    bearerFormat="gbk_...",
    description="A key of `gpu-broker keys new`. Not needed where the broker has no keys.",
)


Shown = Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]
"""Declaration for the OpenAPI document; `KeyCheck` has read the key."""


class AtLeast:
    """Dependency that gives the principal, if its role reaches this one.

    Attributes:
        role: the least one.
    """

    def __init__(self, role: Role) -> None:
        self.role = role

    def admits(self, principal: Principal) -> bool:
        """Tell whether a principal's role is enough."""
        return principal.is_at_least(self.role)

    async def __call__(self, request: Request, _: Shown) -> Principal:
        """Return the principal.

        Raises:
            Denied: a key of a lesser role.
        """
        found: Principal = request.scope["principal"]
        if not self.admits(found):
            raise error_for("forbidden", f"a key of the role {found.role} may not do that")
        return found


Viewer = Annotated[Principal, Depends(AtLeast("viewer"))]
AgentKey = Annotated[Principal, Depends(AtLeast("agent"))]
Operator = Annotated[Principal, Depends(AtLeast("operator"))]
"""Parameter of a route: the principal, with at least that role."""


def token_for(who: Principal, what: LeaseStatus | WaiterStatus | FinishedLease) -> dict[str, str]:
    """Return the token, or as much of it as tells it from others."""
    if owns(who, what):
        return {"token": what.token}
    return {"token": lease_json.name_of(what)}
