"""Operators' endpoints: policy, drain, forget, revoke, webhooks. The commands of the CLI."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response

from agent_sdk.errors import SafeMode, error_for
from broker.api_keys import Principal
from broker.hooks.hook import NAME
from broker.hooks.operators import new_hook, row_of, tested
from broker.http.auth import Operator, Viewer
from broker.http.document.models import (
    POLICY,
    AddedHook,
    Drained,
    Forgotten,
    HookList,
    HookRow,
    HookTest,
    RemovedHook,
    Revoked,
    Undrained,
)
from broker.http.etag import TAGGED, tagged
from broker.http.ignored import NamesIgnored
from broker.http.openapi import EVERYWHERE, MALFORMED, WITH_BODY, answers, errors
from broker.http.requests import DrainBody, HookBody, PolicyBody, RevokeBody
from broker.live.slices import dumped
from broker.logs import note
from broker.replica import At, Broker
from broker.serializers import lease_json

router = APIRouter(responses=EVERYWHERE, route_class=NamesIgnored, tags=["operators"])

NOT_ENACTED = "accepted but not enacted: SAFE_MODE is on and the policy is read-only"

HookName = Annotated[str, Path(pattern=f"^{NAME.pattern}$")]

UNKNOWN = MALFORMED | errors("hook_unknown")


@router.get("/orchestrator/gpu/policy", include_in_schema=False)
@router.get(
    "/policy",
    operation_id="getPolicy",
    summary="What may be leased?",
    responses=answers(POLICY, **TAGGED),
)
async def get_policy(request: Request, broker: At, _: Viewer) -> Response:
    """Return the pool's policy; `safe_mode_read_only` is the value in effect at this broker."""
    return tagged(request, dumped(await _policy(broker)).encode())


@router.post(
    "/policy",
    operation_id="setPolicy",
    summary="Change what may be leased.",
    response_model=POLICY,
    responses=WITH_BODY,
)
async def post_policy(body: PolicyBody, broker: At, who: Operator) -> dict[str, Any]:
    """Return the whole new policy. Under SAFE_MODE it stays unchanged, and a `note` tells so."""
    changes = body.changes()
    note(audit=True, **changes)
    if changes and not broker.settings.safe_mode:
        with suppress(SafeMode):
            await broker.client.set_policy(by=_by(who), **changes)
    policy = await _policy(broker)
    return policy | {"note": NOT_ENACTED} if policy["safe_mode_read_only"] else policy


async def _policy(broker: Broker) -> dict[str, Any]:
    pool = await broker.client.pool()
    if not pool.ready:
        raise error_for("not_ready")
    return lease_json.policy(pool, safe_mode=broker.safe_mode_of(pool.safe_mode))


@router.post(
    "/drain",
    operation_id="drain",
    summary="Stop new leases on a device or a host.",
    responses=WITH_BODY | errors("host_unknown", "device_unknown"),
)
async def drain(body: DrainBody, broker: At, who: Operator) -> Drained:
    """Stop new leases; running ones go on, and no report undoes it."""
    what, name = _one(body)
    note(audit=True, why=body.reason, **{what: name})
    return {"drained": await broker.client.drain(what, name, why=body.reason, by=_by(who))}


@router.post(
    "/undrain",
    operation_id="undrain",
    summary="Allow new leases there again.",
    responses=WITH_BODY | errors("host_unknown", "device_unknown"),
)
async def undrain(body: DrainBody, broker: At, who: Operator) -> Undrained:
    """Let a device, or a host with its devices, take leases again after `/drain`."""
    what, name = _one(body)
    note(audit=True, why=body.reason, **{what: name})
    return {"undrained": await broker.client.undrain(what, name, why=body.reason, by=_by(who))}


@router.post(
    "/forget",
    operation_id="forget",
    summary="Remove a device or a host from the pool.",
    responses=WITH_BODY | errors("host_unknown", "device_unknown", "in_use"),
)
async def forget(body: DrainBody, broker: At, who: Operator) -> Forgotten:
    """Forget a missing device or host; one that a host still lists returns with its next report."""
    what, name = _one(body)
    note(audit=True, why=body.reason, **{what: name})
    return {"forgotten": await broker.client.forget(what, name, why=body.reason, by=_by(who))}


def _one(body: DrainBody) -> tuple[Literal["device", "host"], str]:
    """Return the kind and the name of the target."""
    if body.device is not None and body.host is None:
        return "device", body.device
    if body.host is not None and body.device is None:
        return "host", body.host
    raise error_for("bad_request", "name a device or a host, and not both")


def _by(who: Principal) -> str | None:
    """Return the name under which an act is logged; None: this replica's."""
    return who.name or None


@router.post(
    "/revoke",
    operation_id="revokeLeases",
    summary="End leases as an operator.",
    responses=WITH_BODY
    | errors("unknown_token", "expired", "released", "revoked", "cancelled", "timed_out"),
)
async def revoke(body: RevokeBody, broker: At, who: Operator) -> Revoked:
    """End leases: holders learn it at their next renewal, and within a minute it takes effect."""
    note(audit=True, why=body.reason, token=body.token, agent=body.agent, host=body.host,
         force=body.force)  # fmt: skip
    if body.token is None:
        tokens = await broker.client.revoke_where(
            agent=body.agent, host=body.host, force=body.force, why=body.reason, by=_by(who)
        )
        note(revoked=len(tokens))
        return {"revoked": list(tokens)}
    if body.agent is not None or body.host is not None:
        raise error_for("bad_request", "name a token, or an agent and a host, and not both")
    ends_ms = await broker.client.revoke(body.token, force=body.force, why=body.reason, by=_by(who))
    return {"revoked": [body.token], "expires_at": ends_ms / 1000}


@router.get(
    "/hooks", operation_id="listHooks", response_model=HookList, summary="Which webhooks are there?"
)
async def list_hooks(broker: At, _: Operator) -> dict[str, Any]:
    """Return every webhook with its progress; `served`: a broker delivers to them."""
    seen = await broker.hooks.seen()
    return {"hooks": [row_of(hook, seen.end) for hook in seen.hooks], "served": seen.served}


@router.post(
    "/hooks",
    operation_id="addHook",
    response_model=AddedHook,
    summary="Add a webhook.",
    responses=WITH_BODY | errors("conflict", "limit"),
)
async def add_hook(body: HookBody, broker: At, who: Operator) -> dict[str, Any]:
    """Add a webhook, from the next event on; its `secret` is in this answer and in no other."""
    hook = new_hook(body.url, name=body.name, on=body.on, secret=body.secret, by=who.name)
    note(audit=True, hook=hook.name, url=hook.shown)
    added = await broker.hooks.add(hook)
    seen = await broker.hooks.seen()
    return row_of(added, seen.end) | {"secret": added.secret or None}


@router.get(
    "/hooks/{name}",
    operation_id="getHook",
    response_model=HookRow,
    summary="How is this webhook?",
    responses=UNKNOWN,
)
async def show_hook(name: HookName, broker: At, _: Operator) -> dict[str, Any]:
    """Return one webhook with its progress."""
    hook = await broker.hooks.find(name)
    return row_of(hook, (await broker.hooks.seen()).end)


@router.delete(
    "/hooks/{name}",
    operation_id="removeHook",
    response_model=RemovedHook,
    summary="Remove a webhook.",
    responses=UNKNOWN,
)
async def remove_hook(name: HookName, broker: At, _: Operator) -> dict[str, Any]:
    """Remove a webhook: no delivery begins any more."""
    note(audit=True, hook=name)
    await broker.hooks.remove(name)
    return {"removed": name}


@router.post(
    "/hooks/{name}/enable",
    operation_id="enableHook",
    response_model=HookRow,
    summary="Try a webhook again now.",
    responses=UNKNOWN,
)
async def enable_hook(name: HookName, broker: At, _: Operator) -> dict[str, Any]:
    """Enable a disabled webhook, or end the pause of a failing one."""
    note(audit=True, hook=name)
    hook = await broker.hooks.enable(name)
    return row_of(hook, (await broker.hooks.seen()).end)


@router.post(
    "/hooks/{name}/test",
    operation_id="testHook",
    response_model=HookTest,
    summary="Send a test event.",
    responses=UNKNOWN,
)
async def try_hook(name: HookName, broker: At, _: Operator) -> dict[str, Any]:
    """Have the delivering broker send a test event, and return what it was answered."""
    note(audit=True, hook=name)
    return await tested(broker.hooks, name)
