"""`GPUOrchestratorClient`: the documented client of the HTTP service, which fails closed to CPU.

No call of it raises, none takes longer than two seconds, and without knowledge it always answers:
no GPU. A process that reaches Redis has `LeaseClient`, which tells errors apart and waits in the
queue.
"""

from __future__ import annotations

import copy
import ipaddress
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from agent_sdk.clock import local_now
from agent_sdk.errors import CODES, LeaseError, error_for
from agent_sdk.fork import OfOneProcess, identity
from agent_sdk.http_request import Unanswered, Web
from agent_sdk.orchestrator.http_lease import HttpLease
from agent_sdk.protocol.messages import new_token
from agent_sdk.renewal.http_transport import (
    OK,
    UNREADABLE,
    HttpTransport,
    code_of,
    granted,
    release_is_final,
    renew,
)
from agent_sdk.renewal.renewer import Renewer
from agent_sdk.request import TTL_S, local_grant
from agent_sdk.settings import own_hostname, read_orchestrator_settings, source_of

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from agent_sdk.http_request import Reply

log = logging.getLogger(__name__)

DECISION_S = 2.0
"""Most seconds that one call, or one decision, may take."""

DOWN_S = 1.0
"""Seconds after a failed call in which the service is not asked."""

SAID = {"unreachable"}
"""Messages of /gpu/info whose reason is in the log already."""

FALLBACK: dict[str, Any] = {
    "max_memory_per_agent_mb": 2048,
    "allow_fractional_shares": True,
    "kill_on_oom": False,
    "safe_mode_read_only": True,
    "_fallback": True,
}
"""Policy when it is unknown. Handed out in copies, and never cached as the truth."""


class GPUOrchestratorClient(OfOneProcess):
    """Client of the HTTP service for an agent; safe to share between threads and across a fork.

    Args:
        base_url: default GPU_ORCHESTRATOR_URL, else http://localhost:8014.
        policy_ttl: seconds for which a policy is believed; default GPU_ORCHESTRATOR_POLICY_TTL.
        request_timeout: seconds for one call or one decision, at most 2.
        api_key: for a broker that has keys; default GPU_BROKER_API_KEY, else the content of
            GPU_BROKER_API_KEY_FILE.
        down_s: seconds after a missing answer in which calls fall back without asking.
    """

    def __init__(
        self,
        base_url: str | None = None,
        policy_ttl: float | None = None,
        request_timeout: float = DECISION_S,
        *,
        api_key: str | None = None,
        down_s: float = DOWN_S,
    ) -> None:
        settings = read_orchestrator_settings()
        self.base_url = base_url or settings.url
        self.policy_ttl = settings.policy_ttl_s if policy_ttl is None else policy_ttl
        self.request_timeout = min(request_timeout, DECISION_S)
        self._down_s = down_s
        self._down_until = 0.0
        self._policy: tuple[float, dict[str, Any]] = (0.0, {})
        self._said: set[str] = set()
        try:
            self._web: Web | None = Web(self.base_url, api_key or settings.api_key)
        except ValueError as error:
            self._say("no_orchestrator", str(error))
            self._web = None
        web, timeout_s = self._web, self.request_timeout  # not this client: see `PoolClient`
        self._keeper = Renewer(lambda: HttpTransport(web, timeout_s))
        self._keeper.end_with(self)

    def get_gpu_info(self) -> dict[str, Any]:
        """Return the devices: `GET /gpu/info`; `available` and `gpus` are always there."""
        return self._gpu_info(self._deadline())

    def get_policy(self, force_refresh: bool = False) -> dict[str, Any]:
        """Return the policy, at most `policy_ttl` s old; without an answer the fallback.

        The fallback has the field `_fallback`.
        """
        return self._policy_by(self._deadline(), force_refresh=force_refresh)

    def safe_mode_active(self) -> bool:
        """Return whether no agent may have a GPU; True when that is unknown."""
        return _safe(self.get_policy())

    def cpu_fallback_decision(self) -> dict[str, bool]:
        """Decide about initialising a GPU: ask once at the start, and lease before each use.

        Returns:
            use_gpu: the policy is known, SAFE_MODE is off and there is a GPU; safe_mode;
            gpu_available; policy_fallback: the policy is not known.
        """
        until = self._deadline()
        policy = self._policy_by(until)
        fallback = "_fallback" in policy
        info = {} if fallback else self._gpu_info(until)
        available = info.get("available") is True and bool(info["gpus"])
        if not fallback and _safe(policy):
            self._say("safe_mode", CODES["safe_mode"].says)
        elif not fallback and info.get("message") not in SAID and not available:
            self._say("no_gpus", str(info.get("message") or "the pool has no GPUs"))
        return {
            "use_gpu": available and not _safe(policy) and not fallback,
            "safe_mode": _safe(policy),
            "gpu_available": available,
            "policy_fallback": fallback,
        }

    def lease(
        self,
        agent: str,
        min_memory_mb: int | None = None,
        *,
        devices: int = 1,
        exclusive: bool = False,
        ttl_s: float = TTL_S,
        priority: int = 0,
        host: str | None = None,
        model: str | None = None,
        placement: Literal["spread", "pack"] = "spread",
    ) -> HttpLease:
        """Get a lease, on a GPU or marked as on the CPU; it is renewed until released.

        Args:
            agent: the agent that asks.
            min_memory_mb: MiB on each device; None = the policy's default.
            devices: several = whole idle devices of one host and model.
            exclusive: alone on the device.
            ttl_s: seconds that the lease outlives this process.
            priority: 0 to 9, 9 first.
            host: None = this machine; "any", or a name.
            model: the exact name, or None for any.
            placement: spread (most free first) or pack (best fit).
        """
        asked: dict[str, Any] = {
            "agent": agent,
            "token": new_token(),
            "min_memory_mb": min_memory_mb,
            "devices": devices,
            "exclusive": bool(exclusive),
            "ttl_s": ttl_s,
            "priority": priority,
            "host": self._host() if host is None else host,
            "model": model,
            "placement": placement,
        }
        process = identity()
        try:
            return self._obtain(asked)
        except BaseException:  # interrupted: it may have been granted all the same
            if process == identity():
                self._abandon(asked["token"])
            raise

    def _obtain(self, asked: dict[str, Any]) -> HttpLease:
        agent, token, sent_at = asked["agent"], asked["token"], local_now()
        try:
            reply = self._ask("POST", "/lease", asked, until=self._deadline())
        except Unanswered as error:
            if error.sent:  # it may have been granted all the same
                self._abandon(token)
            return self._without(agent, token, "store_unavailable")
        except (TypeError, ValueError):  # not JSON
            return self._without(agent, token, "bad_request")
        if reply.status != OK or reply.body.get("granted") is not True:
            return self._without(agent, token, code_of(reply))
        try:
            lease = HttpLease(self, granted(reply.body, agent, asked["ttl_s"], sent_at))
        except UNREADABLE:  # an unknown form: it cannot be used
            self._abandon(token)
            return self._without(agent, token, "protocol_mismatch")
        if lease.on_cpu:
            code = lease.reason or "no_capacity"
            self._say(code, CODES[code].says if code in CODES else code)
        else:
            self._said.clear()
        try:
            self._keeper.add(lease)
        except RuntimeError:  # no more threads: it would not be renewed
            self.release(lease)
            return self._without(agent, token, "store_unavailable")
        return lease

    def renew(self, lease: HttpLease, ttl_s: float | None = None) -> bool:
        """Renew a lease now; return False when it is lost, or without an answer (see `lease.lost`).

        In a forked child return False: the parent renews it.
        """
        if lease.local or lease.is_view:
            return lease.local
        until = self._deadline()
        try:
            lease.accept(renew(self._reachable(), lease, ttl_s, until))
            lease.raise_if_lost()
        except LeaseError as error:
            lease.lose_if_over(error)
        except Unanswered:
            if local_now() >= self._down_until:  # it was asked
                self._was_silent()
            lease.jeopardy = True
        except (TypeError, ValueError):  # the ttl is none
            pass
        else:
            return True
        return False

    def release(self, lease: HttpLease) -> bool:
        """Give a lease back; without an answer return False, and try again in the background.

        In a forked child the lease stays the parent's: return False, and send nothing.
        A call that is interrupted leaves no lease: it is given back in the background.
        """
        try:
            return self._release(lease)
        except BaseException:
            if not lease.is_view:
                self._abandon(lease.token)
            raise

    def _release(self, lease: HttpLease) -> bool:
        self._keeper.discard(lease)
        lease.end()
        if lease.local or lease.is_view:
            return lease.local
        try:
            reply = self._ask("POST", "/release", {"token": lease.token}, until=self._deadline())
        except Unanswered:
            self._abandon(lease.token)
            return False
        if not release_is_final(reply):
            self._abandon(lease.token)
        return reply.status == OK

    def abandon(self, lease: HttpLease) -> None:
        """Give a lease back in the background."""
        self._abandon(lease.token)

    def close(self) -> None:
        """Stop renewing; leases still held run on to their end."""
        self._keeper.close(self.request_timeout)

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop renewing."""
        self.close()

    def _abandon(self, token: str) -> None:
        """Give a token back in the background; without a thread its lease ends by its ttl."""
        with suppress(RuntimeError):
            self._keeper.abandon(token)

    def _deadline(self) -> float:
        return local_now() + self.request_timeout

    def _gpu_info(self, until: float) -> dict[str, Any]:
        try:
            reply = self._ask("GET", "/gpu/info", until=until)
        except Unanswered:
            return {"available": False, "gpus": [], "message": "unreachable"}
        if reply.status != OK:
            self._refused(reply)
            said = f"unexpected_status:{reply.status}"
            return {"available": False, "gpus": [], "message": said}
        gpus = reply.body.get("gpus")
        known = {"gpus": gpus if isinstance(gpus, list) else []}
        return {"available": False} | reply.body | known

    def _policy_by(self, until: float, *, force_refresh: bool = False) -> dict[str, Any]:
        believed_until, policy = self._policy
        if force_refresh or local_now() >= believed_until:
            try:
                reply = self._ask("GET", "/policy", until=until)
            except Unanswered:
                return dict(FALLBACK)
            if reply.status != OK or "safe_mode_read_only" not in reply.body:
                self._refused(reply)
                return dict(FALLBACK)
            policy = reply.body
            self._policy = (local_now() + self.policy_ttl, policy)
        return copy.deepcopy(policy)

    def _reachable(self) -> Web:
        """Return the connection to the service, unless it did not answer a moment ago."""
        if self._web is None:
            raise Unanswered("no orchestrator is configured")
        if local_now() < self._down_until:
            raise Unanswered("it did not answer a moment ago")
        return self._web

    def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, until: float
    ) -> Reply:
        web = self._reachable()
        try:
            return web.ask(method, path, body, until=until)
        except Unanswered as error:
            self._was_silent()
            self._say("unanswered", f"no answer: {error}")
            raise

    def _refused(self, reply: Reply) -> None:
        """Log an answer that is none of a broker that serves us."""
        detail = reply.body.get("detail", "what answers is no broker")
        self._say(f"status {reply.status}", f"status {reply.status}: {detail}")

    def _say(self, code: str, why: str) -> None:
        """Log why there is no GPU, once for each reason until a GPU was had."""
        if code not in self._said:
            self._said.add(code)
            log.warning("%s: no GPU, the CPU is used instead: %s", self.base_url, why)

    def _was_silent(self) -> None:
        self._down_until = local_now() + self._down_s
        self._policy = (0.0, {})  # its policy is not believed past its silence

    def _host(self) -> str | None:
        """Return this machine's name if the broker may be elsewhere; None: the broker knows it."""
        near = self._web is None or _loopback(self._web.hostname)
        named = source_of("GPU_BROKER_HOSTNAME") == "environment"
        return own_hostname() if named or not near else None

    def _without(self, agent: str, token: str, code: str) -> HttpLease:
        """Return a CPU lease that this client gives itself."""
        if code != "store_unavailable" or not self._said:
            self._say(code, CODES[code].says if code in CODES else code)
        return HttpLease(self, local_grant(agent, token, error_for(code)), local=True)


def _safe(policy: dict[str, Any]) -> bool:
    return policy.get("safe_mode_read_only") is not False


def _loopback(hostname: str) -> bool:
    if hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return False
