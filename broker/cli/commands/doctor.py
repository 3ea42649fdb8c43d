"""`gpu-broker doctor`: settings, store, devices, and their problems."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import click

from agent_sdk.settings import Setting, sdk_settings_in_effect
from agent_sdk.state.snapshot import pool_id
from broker import __version__
from broker.cli.device_state import driver_state, pool_state
from broker.cli.finding import Diagnosis, Severity
from broker.cli.hooks import hook_state
from broker.cli.http_state import http_state
from broker.cli.key_state import key_state
from broker.cli.store import output_option, show
from broker.cli.store_state import store_state
from broker.text.screen import one_line
from broker.text.table import table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_sdk.state.snapshot import PoolStatus


@click.command()
@output_option()
def doctor(output: str) -> None:
    """Show settings with their origins, the store, the devices, and what is wrong.

    Secrets are masked. Each finding has a severity and a way out. NOTE: it may be as it is meant.
    WRONG: something does not work as it should. BROKEN: no lease can be had.

    The exit code is that of the worst finding: 0 nothing or notes alone, 1 wrong, 2 broken.

    \b
    Examples:
      gpu-broker doctor
      gpu-broker doctor -o json | jq -r '.findings[].problem'
    """
    settings, findings = _settings()
    store, pool, devices, store_findings = _stored()
    http, http_findings = http_state(pool_id(pool.epoch) if pool else "")
    keys, key_findings = key_state()
    hooks, hook_findings = hook_state() if pool else ("unknown", [])
    findings += [*store_findings, *driver_state(pool), *http_findings, *key_findings]
    findings += hook_findings
    facts = {**store, "http": http, "keys": keys, "hooks": hooks}
    text = "\n\n".join(
        [
            f"gpu-broker {__version__}",
            table(("SETTING", "VALUE", "FROM"), [(s.name, s.value, s.source) for s in settings]),
            _lines(f"{name}: {value}" for name, value in facts.items()),
            _lines(devices) or "no devices",
            _said(findings),
        ]
    )
    data: dict[str, Any] = {
        "version": __version__,
        "settings": [{"name": s.name, "value": s.value, "from": s.source} for s in settings],
        "store": store,
        "http": http,
        "keys": keys,
        "hooks": hooks,
        "devices": devices,
        "findings": [f.data for f in findings if f.severity > Severity.NOTE],
        "warnings": [f.data for f in findings if f.severity == Severity.NOTE],
    }
    show(output, text, data)
    sys.exit(_worst(findings))


def _stored() -> tuple[dict[str, str], PoolStatus | None, list[str], list[Diagnosis]]:
    """Look at the store and, where it serves, at its pool; give facts, pool, devices, findings."""
    try:
        store, findings = asyncio.run(store_state())
        if _worst(findings) == Severity.BROKEN:
            return store, None, [], findings
        pool, devices, more = pool_state()
    except ValueError as error:
        said = "REDIS_URL, GPU_BROKER_STATE_DIR or GPU_BROKER_POOL cannot be used"
        return {}, None, [], [Diagnosis(said, str(error), Severity.BROKEN)]
    return store, pool, devices, findings + more


def _worst(findings: Iterable[Diagnosis]) -> Severity:
    return max((finding.severity for finding in findings), default=Severity.NOTE)


def _said(findings: list[Diagnosis]) -> str:
    lines = [line for finding in sorted(findings, key=_weight) for line in finding.lines]
    if _worst(findings) == Severity.NOTE:
        lines.append("nothing is wrong")
    return _lines(lines)


def _weight(finding: Diagnosis) -> int:
    return -finding.severity


def _lines(texts: Iterable[str]) -> str:
    return "\n".join(map(one_line, texts))


def _settings() -> tuple[list[Setting], list[Diagnosis]]:
    """Return the SDK's settings, and the broker's where its extra is installed."""
    found = sdk_settings_in_effect()
    try:
        # Imported here, because the base install has none of them.
        from broker.devices import DeviceSourceError  # noqa: PLC0415 - see above
        from broker.reporter import source_of  # noqa: PLC0415 - see above
        from broker.settings import (  # noqa: PLC0415 - see above
            SettingsError,
            broker_settings_in_effect,
            load_settings,
        )
    except ModuleNotFoundError:
        return found, []  # the base install has no serve to set
    try:
        found += broker_settings_in_effect()
        source_of(load_settings()).close()
    except (SettingsError, DeviceSourceError) as error:
        return found, [Diagnosis(str(error), "correct it or unset it")]
    return found, []
