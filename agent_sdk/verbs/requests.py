"""Verbs that change a pool, and those that read it from `reading`."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal, TypeVar

from agent_sdk.errors import LeaseError
from agent_sdk.lazy import later
from agent_sdk.protocol import lease as protocol
from agent_sdk.protocol import validation
from agent_sdk.verbs.reading import ReadingVerbs
from agent_sdk.verbs.steps import Verb

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Unpack

    from agent_sdk import bulk_revoke
    from agent_sdk.leases.lease import HeldLease
    from agent_sdk.policy import Policy
    from agent_sdk.protocol import operator, report
    from agent_sdk.protocol.messages import Moment, Renewal
    from agent_sdk.request import Acquisition
    from agent_sdk.scripts.packed import Packed
    from agent_sdk.teams.policy import TeamPolicy
    from agent_sdk.verbs.steps import Steps
else:
    bulk_revoke, operator, report = later("bulk_revoke", "protocol.operator", "protocol.report")

R = TypeVar("R")


class Verbs(ReadingVerbs[R]):
    """Requests to a pool, except acquiring. `LeaseClient` and `AsyncLeaseClient` run them."""

    def keep(self, lease: HeldLease) -> None:
        """Renew the lease in the background from now on, until it is released or lost.

        Raises:
            LeaseLost: it was released already.
            BadRequest: it is a forked parent's: see `adopt`.
            RuntimeError: no thread can be had for it.
        """
        self._keeper.add(lease)

    @Verb
    def renew(
        self,
        lease: HeldLease | str,
        ttl_s: float | None = None,
        *,
        fence: int | None = None,
        owner: str = "",
    ) -> Steps[Renewal]:
        """Renew a lease now, to at least ttl_s seconds from now; None = as at the grant.

        A token renews a lease of another process; `fence` is then compared if given. With an owner
        another principal's lease counts as unknown.

        Raises:
            LeaseLost: it has ended for good.
            UnknownToken: the token is unknown.
            BadRequest: it is a forked parent's: see `adopt`.
        """
        ttl_ms = None if ttl_s is None else validation.ttl_milliseconds(ttl_s, "ttl_s")
        fence = None if fence is None else validation.check_whole(fence, "fence")
        if isinstance(lease, str):
            token = validation.check_name(lease, "token")
            return (yield from protocol.renew(token, fence, ttl_ms, owner))
        lease.require_own()
        try:
            renewal = yield from protocol.renew(
                lease.token, lease.fence, ttl_ms, owner, lease.claim
            )
        except LeaseError as error:
            lease.lose_if_over(error)
            raise
        lease.accept(renewal)
        return renewal

    @Verb
    def reap(self, seen_ms: int = 0) -> Steps[Moment]:
        """Take ended leases back, about 16 devices' at a time; `more`: there are others.

        seen_ms: `now_ms` of the last reply; a pool behind it has lost data, and closes.
        """
        return protocol.reap(seen_ms)

    @Verb
    def report(
        self, host: str, devices: tuple[report.Report, ...], **about: Unpack[report.About]
    ) -> Steps[report.Reported]:
        """Report a host's devices, and that it lives; see `protocol.report.report`."""
        return report.report(host, devices, **about)

    @Verb
    def revoke(
        self, token: str, *, force: bool = False, why: str = "", by: str | None = None
    ) -> Steps[int]:
        """End a lease as an operator; see `protocol.operator.revoke`.

        `by`: the actor; default this client.
        """
        token = validation.check_name(token, "token")
        return operator.revoke(token, force=force, by=by or self.by, why=why)

    @Verb
    def revoke_where(
        self,
        *,
        agent: str | None = None,
        host: str | None = None,
        device: str | None = None,
        force: bool = False,
        why: str = "",
        by: str | None = None,
    ) -> Steps[tuple[str, ...]]:
        """Revoke every lease of an agent, on a host, on a device; return their tokens."""
        return bulk_revoke.revoke_where(
            self.keys, agent=agent, host=host, device=device, force=force, by=by or self.by, why=why
        )

    @Verb
    def drain(
        self, what: Literal["device", "host"], name: str, *, why: str = "", by: str | None = None
    ) -> Steps[int]:
        """Stop new leases on a device, or on a host's devices; return the number of devices."""
        return operator.drain(what, name, drained=True, by=by or self.by, why=why)

    @Verb
    def undrain(
        self, what: Literal["device", "host"], name: str, *, why: str = "", by: str | None = None
    ) -> Steps[int]:
        """Allow new leases on a device, or on a host's devices, again."""
        return operator.drain(what, name, drained=False, by=by or self.by, why=why)

    @Verb
    def forget(
        self, what: Literal["device", "host"], name: str, *, why: str = "", by: str | None = None
    ) -> Steps[int]:
        """Remove a device, or a host with all its devices, from the pool; return their number."""
        return operator.forget(what, name, by=by or self.by, why=why)

    @Verb
    def release_driver(
        self, host: str, *, for_s: float = 600.0, why: str = "", by: str | None = None
    ) -> Steps[int]:
        """Make a host's reporter let go of its driver, so that its GPUs can be reset.

        Its devices take no new leases meanwhile, and none of their readings is told.

        Args:
            host: the host.
            for_s: seconds until it takes the driver again by itself, at most a day; 0: now.
            why: for the log.
            by: the operator, if it is not this client.

        Returns:
            The time until which it is let go, ms on Redis's clock; 0: it is not.
        """
        return operator.release_driver(host, for_ms=int(for_s * 1000), by=by or self.by, why=why)

    @Verb
    def set_policy(self, *, by: str | None = None, **policy: Unpack[Policy]) -> Steps[int]:
        """Change the named fields of the policy, all or none; return its new version."""
        return operator.set_policy(by or self.by, **policy)

    @Verb
    def set_teams(
        self,
        teams: Mapping[str, TeamPolicy | Mapping[str, object]],
        *,
        by: str | None = None,
        version: int | None = None,
    ) -> Steps[int]:
        """Set the policies of all teams, all or none; see `protocol.operator.set_teams`.

        `version`: that of the policy that they were written against, else they are refused.
        """
        return operator.set_teams(teams, by=by or self.by, version=version)

    @Verb
    def apply_policy(
        self,
        policy: Policy,
        teams: Mapping[str, TeamPolicy | Mapping[str, object]] | None = None,
        *,
        by: str | None = None,
        version: int | None = None,
    ) -> Steps[int]:
        """Set fields and all teams as one version; see `protocol.operator.apply_policy`."""
        return operator.apply_policy(policy, teams, by=by or self.by, version=version)

    @Verb
    def extend_hold(
        self, token: str, seconds: float | None, *, by: str = "", owner: str = ""
    ) -> Steps[int | None]:
        """Set how long a lease may be held from now on; see `protocol.operator.extend_hold`.

        Args:
            token: the lease's.
            seconds: from now; None: without limit.
            by: the operator that does it; empty: its holder, within the limit of its team.
            owner: the principal whose it must be, else it is unknown; empty: any.
        """
        token = validation.check_name(token, "token")
        hold_ms = 0 if seconds is None else max(1, validation.milliseconds(seconds, "seconds"))
        return operator.extend_hold(token, hold_ms, by=by, owner=owner)

    @Verb
    def request_yield(self, token: str, waiter_token: str, *, owner: str = "") -> Steps[bool]:
        """Ask a lease's holder to give it up for a waiter; see `protocol.operator.request_yield`.

        Return False if its holder takes no such requests.
        """
        token = validation.check_name(token, "token")
        waiter_token = validation.check_name(waiter_token, "token")
        return operator.request_yield(token, waiter_token, owner=owner)

    def _releasing(self, lease: HeldLease | str, *, refuse_late: bool, owner: str) -> Steps[bool]:
        """Give a lease back; return False if it had ended before."""
        token = self._ended(lease)
        if not token:
            return not isinstance(lease, str) and lease.local
        answer = yield protocol.release_call(token, plant=refuse_late, owner=owner)
        return protocol.released(answer, token).by_this_call

    def _ended(self, lease: HeldLease | str) -> str:
        """End a lease here; return the token whose release is to be sent. Empty: none is."""
        if isinstance(lease, str):
            return validation.check_name(lease, "token")
        self._keeper.discard(lease)
        lease.end()
        return "" if lease.local or lease.is_view else lease.token

    def _send_release(self, lease: HeldLease | str) -> bool:
        """Give a lease back without waiting for the answer."""
        token = self._ended(lease)
        if not token:
            return not isinstance(lease, str) and lease.local
        self._keeper.expect(token)
        self._post_release(token, self.wording.packed(protocol.release_call(token)))
        return True

    @abstractmethod
    def _post_release(self, token: str, packed: Packed) -> None:
        """Send a release; tell the keeper of its answer, or at once that it cannot be sent."""

    def _waits(self, wait: bool | None, *, refuse_late: bool, owner: str) -> bool:
        """Return whether a release waits for its answer: always where it could not be repeated."""
        return bool(owner) or not refuse_late or (self.wait_release if wait is None else wait)

    def _after_failed_release(
        self, error: BaseException, lease: HeldLease | str, *, refuse_late: bool, owner: str
    ) -> None:
        """Have a lease given back in the background if its release was interrupted.

        Not a local one, and in a forked child none of its parent's.
        """
        if isinstance(error, LeaseError) or not refuse_late or owner:
            return
        if isinstance(lease, str):
            self._keeper.abandon(lease)
        elif not (lease.local or lease.is_view):
            self._keeper.abandon(lease.token)

    def _tries_again(self, error: BaseException, wait: Acquisition) -> bool:
        """Return whether a failed acquire is to be tried again, with another token."""
        self._after_failed_acquire(error, wait)
        return wait.again(error)

    def _after_failed_acquire(self, error: BaseException, wait: Acquisition) -> None:
        """Have the possible lease of a failed acquire given back in the background."""
        if wait.leaves_something(error):
            self._keeper.abandon(wait.request.token)

    def _after_failed_exchange(self, error: BaseException, wait: Acquisition) -> None:
        """Have both leases of a failed exchange given back in the background."""
        self._give_old(wait)
        self._after_failed_acquire(error, wait)
