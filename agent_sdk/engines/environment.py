"""Environment of a process that uses a lease."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_sdk.engines.share import decimal, share_of
from agent_sdk.engines.table import ENGINES, EngineSettings
from agent_sdk.engines.visible import variables, without_number
from agent_sdk.errors import error_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent_sdk.engines.table import Engine
    from agent_sdk.engines.visible import Visible
    from agent_sdk.protocol.messages import Device


def environment(
    lease: Mapping[str, str],
    devices: Sequence[Device],
    engine: str | None = None,
    visible: Visible | None = None,
) -> dict[str, str]:
    """Return a lease's own variables, those of its GPUs, and those of an engine.

    Raises:
        BadRequest: the engine is unknown, or numbers are asked for and not certain.
    """
    form: Visible = visible or "uuid"
    more: dict[str, str] = {}
    if (share := share_of(devices)) is not None:
        more["GPU_LEASE_MEMORY_FRACTION"] = decimal(share.of_total)
    if engine is not None:
        if visible is None and engine_of(engine).numbers and not without_number(devices):
            form = "index"
        settings = settings_of(engine, devices)
        more |= settings.env
        if settings.flag:
            more["GPU_LEASE_ENGINE_ARGS"] = " ".join(settings.flag)
    return variables(devices, form) | dict(lease) | more


def engine_of(name: str) -> Engine:
    """Return an engine by its name.

    Raises:
        BadRequest: it is unknown.
    """
    if name not in ENGINES:
        raise error_for("bad_request", f"{name!r} is none of the engines {', '.join(ENGINES)}")
    return ENGINES[name]


def settings_of(engine: str, devices: Sequence[Device]) -> EngineSettings:
    """Return an engine's settings for a lease of these GPUs; none where their size is unknown.

    Raises:
        BadRequest: the engine is unknown.
    """
    known, share = engine_of(engine), share_of(devices)
    return EngineSettings() if share is None else known.settings(share)
