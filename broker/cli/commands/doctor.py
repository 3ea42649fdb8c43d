"""`gpu-broker doctor`: what is set, what is there, and what is wrong."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import click
from redis.exceptions import NoPermissionError, ResponseError

from agent_sdk import LeaseClient
from agent_sdk.errors import LeaseError
from agent_sdk.keys import Keys
from agent_sdk.scripts.library import own_library
from agent_sdk.settings import Setting, read_settings, sdk_settings_in_effect
from agent_sdk.store.store import Store
from broker import __version__
from broker.cli import FAILED
from broker.cli.commands.status import state_of
from broker.cli.contests import contests
from broker.cli.finding import Diagnosis
from broker.cli.key_state import key_state
from broker.cli.store import output_option, show
from broker.text.screen import one_line
from broker.text.table import table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis.asyncio import Redis


@click.command()
@output_option()
def doctor(output: str) -> None:
    """Say which settings are in effect and why, what the store and the devices are, what is wrong.

    Secrets are masked. The exit code is 1 when something is wrong. What may be wrong and cannot
    be told from here is said too, as MAYBE, and does not count: a version of the store with known
    holes, which a distribution may have mended.

    \b
    Example:
      gpu-broker doctor
    """
    settings, findings = _settings()
    try:
        store, store_findings = asyncio.run(_store())
        devices, device_findings = ([], []) if any(f.sure for f in store_findings) else _pool()
    except ValueError as error:
        store, devices, device_findings = {}, [], []
        store_findings = [
            Diagnosis(
                "REDIS_URL, GPU_BROKER_STATE_DIR or GPU_BROKER_POOL cannot be used", str(error)
            )
        ]
    keys, key_findings = key_state()
    findings += store_findings + device_findings + key_findings
    text = "\n\n".join(
        [
            f"gpu-broker {__version__}",
            table(("SETTING", "VALUE", "FROM"), [(s.name, s.value, s.source) for s in settings]),
            _lines(f"{name}: {value}" for name, value in {**store, "keys": keys}.items()),
            _lines(devices) or "no devices",
            _said(findings),
        ]
    )
    data: dict[str, Any] = {
        "version": __version__,
        "settings": [{"name": s.name, "value": s.value, "from": s.source} for s in settings],
        "store": store,
        "keys": keys,
        "devices": devices,
        "findings": [{"problem": f.problem, "remedy": f.remedy} for f in findings if f.sure],
        "warnings": [{"problem": f.problem, "remedy": f.remedy} for f in findings if not f.sure],
    }
    show(output, text, data)
    sys.exit(FAILED if any(f.sure for f in findings) else 0)


def _said(findings: list[Diagnosis]) -> str:
    lines = [line for finding in findings for line in finding.lines]
    if not any(finding.sure for finding in findings):
        lines.append("nothing is wrong")
    return _lines(lines)


def _lines(texts: Iterable[str]) -> str:
    return "\n".join(map(one_line, texts))


def _settings() -> tuple[list[Setting], list[Diagnosis]]:
    """Return the SDK's settings, and the broker's where its extra is installed."""
    found = sdk_settings_in_effect()
    try:
        # Here, because the base install has none of them.
        from broker.devices import DeviceSourceError  # noqa: PLC0415 - see above
        from broker.reporter import source_of  # noqa: PLC0415 - see above
        from broker.settings import (  # noqa: PLC0415 - see above
            SettingsError,
            broker_settings_in_effect,
            load_settings,
        )
    except ModuleNotFoundError:
        return found, []  # the base install: there is no serve to set
    try:
        found += broker_settings_in_effect()
        source_of(load_settings()).close()
    except (SettingsError, DeviceSourceError) as error:
        return found, [Diagnosis(str(error), "correct it or unset it")]
    return found, []


async def _verbs(redis: Redis, base: str) -> str:
    """How calls of this version reach the server; its key leads to a Cluster's node of the pool."""
    library = own_library()
    try:
        await redis.fcall(library.function("version"), 1, base)
    except NoPermissionError:
        return "scripts; this user may call no functions"
    except ResponseError:
        return "scripts; a serve or host of this version loads functions, which cost less"
    return f"functions, {library.name}"


async def _store() -> tuple[dict[str, str], list[Diagnosis]]:
    """Return what answers at the store's address."""
    from broker.maintenance.advisories import advisory  # noqa: PLC0415 - quick --help
    from broker.maintenance.store_check import problem_of  # noqa: PLC0415 - quick --help

    settings = read_settings()
    settings.check_state_dir()
    redis = Store(settings.store_url, key=Keys(settings.pool).base).connect_async()
    try:
        problem = await problem_of(redis)
        if problem:
            remedy = "start gpu-broker serve, or name a server that suits in REDIS_URL"
            return {"store": settings.masked_url}, [Diagnosis(problem, remedy)]
        info, denied = await _told(redis)
        verbs = await _verbs(redis, Keys(settings.pool).base)
    finally:
        await redis.aclose()
    nameless = [] if info.get("run_id") else [NAMELESS]
    if denied:
        told = {"store": settings.masked_url, "server": f"not told: {denied}", "verbs": verbs}
        return told, nameless
    return {
        "store": settings.masked_url,
        "server": _server(info),
        "verbs": verbs,
        "memory": f"{info.get('used_memory_human')}, policy {info.get('maxmemory_policy')}",
        "persistence": "AOF on" if info.get("aof_enabled") else "AOF off: a restart forgets all",
    }, nameless + _holes(advisory(info))


NAMELESS = Diagnosis(
    "INFO does not tell which server this is, so data that went back may be noticed late: where the"
    " verbs run as scripts, the pool grants nothing for 10 s after each silence of 1.5 s",
    "allow it to every user of the pool (ACL SETUSER NAME +info|server; no rename-command INFO),"
    " and keep one gpu-broker serve running",
)
"""The finding for a server that says no run_id, or not to us."""


async def _told(redis: Redis) -> tuple[dict[str, Any], str]:
    """Ask the server for its INFO; give the reply, and the reason if it is not whole."""
    try:
        return await redis.info(), ""
    except ResponseError as error:
        denied = str(error)
    try:
        return await redis.info("server"), denied  # all that the scripts need
    except ResponseError:
        return {}, denied


def _holes(known: str | None) -> list[Diagnosis]:
    if known is None:
        return []
    remedy = "upgrade it, unless your distribution has mended it: SECURITY.md says more"
    return [Diagnosis(known, remedy, sure=False)]


def _server(info: dict[str, Any]) -> str:
    """Return which one it is; by Sentinels or a Cluster it may be another tomorrow."""
    name = "Valkey" if info.get("valkey_version") else "Redis"
    version = info.get("valkey_version") or info.get("redis_version")
    port = f", port {info['tcp_port']}" if info.get("tcp_port") else ""
    return f"{name} {version}{port}, replicas: {info.get('connected_slaves', 0)}"


def _pool() -> tuple[list[str], list[Diagnosis]]:
    """Return the pool's devices and hosts, and what is wrong with them."""
    try:
        with LeaseClient.from_env() as client:
            pool, devices, hosts = client.pool(), client.devices(), client.hosts()
    except LeaseError as error:
        return [], [Diagnosis(str(error), "start gpu-broker serve")]
    findings = []
    if not pool.ready:
        findings.append(
            Diagnosis("no host has reported to this pool", "start gpu-broker serve, or host")
        )
    findings += [
        Diagnosis(
            f"host {host.host} has been silent since its deadline",
            "start gpu-broker host or serve there",
        )
        for host in hosts
        if pool.now_ms - host.reported_ms > host.deadline_ms
    ]
    findings += contests(pool, devices, hosts)
    findings += [
        Diagnosis(
            f"{d.host}:{d.index} is {state_of(d, pool.now_ms)}",
            "nvidia-smi on that host tells more",
        )
        for d in devices
        if d.state not in {"ok", "away"}
    ]
    mode = "SAFE_MODE is on: gpu-broker policy set safe_mode=false switches it off"
    rows = [mode if pool.safe_mode else "SAFE_MODE is off"]
    rows += [f"{d.host}:{d.index}  {d.uuid}  {d.name}  {state_of(d, pool.now_ms)}" for d in devices]
    return rows, findings
