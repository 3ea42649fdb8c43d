"""`gpu-broker status`: GPUs and the leases on them, straight from the store."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from agent_sdk.keys import DEFAULT_TEAM
from agent_sdk.state.devices import counted_once
from agent_sdk.state.findings import enforced, of_lease
from agent_sdk.state.part import Wanted
from broker.cli.filters import (
    MOST_GPUS,
    limited,
    of_agent,
    of_device_state,
    of_team,
    on_host,
    place_of,
)
from broker.cli.host_words import notes_on_hosts
from broker.cli.processes import FOUND, beneath, notes, unleased_rows
from broker.cli.store import as_json, output_option, pool_client, show
from broker.cli.watch import watch
from broker.text.screen import bare, one_line, paint, say
from broker.text.state_word import preempting, state_of
from broker.text.table import age, bar, gib, many, screen_width, table
from broker.text.units import Bounded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_sdk import LeaseClient
    from agent_sdk.state.devices import DeviceStatus
    from agent_sdk.state.pool_state import PoolState
    from agent_sdk.state.snapshot import LeaseStatus, PoolStatus

BUSY_PCT: Final = 50

BAR: Final = 16

NARROW_BAR: Final = 12

ROOMY: Final = 110
"""Columns of a terminal that has room for all; a narrower one shows fewer columns."""

DEFAULT: Final = "default"
"""Name of the pool that needs no mention."""

NOT_READY: Final = (
    "no host has reported to this pool: start gpu-broker serve on a machine with GPUs"
)

HEAD: Final = ("GPU", "NAME", "MEMORY", "LEASED", "FREE", "UTIL", "TEMP", "STATE")


@click.command()
@click.option(
    "-w",
    "--watch",
    "every_s",
    type=Bounded(0.2, 3600),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="Stay, and draw anew: after each event, and every so many seconds (2).",
)
@on_host
@of_agent
@of_team
@of_device_state
@limited(f"Default {MOST_GPUS} GPUs for people, all for programs.")
@output_option("wide", "name")
def status(every_s: float | None, output: str, **asked: Any) -> None:
    """Show GPUs and the leases on them. No running broker is needed.

    Each GPU has a line, and below it a line for each lease on it with its processes, then the
    processes without a lease (!). The bar shows leased (#), otherwise used (o), withheld (x) and
    free (·) memory. FREE is for the next request: none on a GPU that takes no new leases or is
    reserved. A finding about a lease (idle, overuse, degraded) stands in place of its age.

    \b
    Examples:
      gpu-broker status
      gpu-broker status -w                            live, until q or Ctrl-C
      gpu-broker status -o wide                       UUIDs, tokens, processes
      gpu-broker status -o json | jq '.devices[].free_mb'
      gpu-broker status -o name                       the GPUs, one a line
      gpu-broker status --host gpu-host-3 --agent analyst
      gpu-broker status --state drained -o name
    """
    with pool_client() as client:
        pool = client.keys.pool_name

        def picture() -> str:
            seen = look(client, output, **asked)
            if output == "json":
                return as_json(as_data(seen))
            return as_text(seen, output=output, pool=pool)

        if every_s is not None:
            watch(client, every_s, picture, lines=output in {"json", "name"})
            return
        seen = look(client, output, **asked)
    if output in {"text", "wide"}:
        say(as_text(seen, output=output, pool=pool))
    else:
        show(output, "", as_data(seen), seen.scene.devices)


class Seen(NamedTuple):
    """Part of the pool that is shown.

    Attributes:
        devices: all devices that match: those of the scene, and those beyond the limit.
        asked: the words of the filters, of which `state` is named where nothing matches.
        left_out: devices that match and are not in the scene.
        whole: all of the pool was read, the waiters too.
    """

    scene: PoolState
    devices: Sequence[DeviceStatus]
    waiting: int
    asked: dict[str, Any]
    left_out: int = 0
    whole: bool = False

    @property
    def filtered(self) -> bool:
        """True if devices or leases are left out by what they are."""
        return any(self.asked.values())


def look(client: LeaseClient, output: str, limit: int | None, **asked: Any) -> Seen:
    """Read the pool, or as much of it as is asked for."""
    if limit is None and output in {"text", "wide"}:
        limit = MOST_GPUS
    few = not limit or client.device_count() <= limit
    if few and not any(asked.values()):
        scene = client.scene()
        return Seen(scene, tuple(scene.devices.values()), len(scene.waiters), asked, whole=True)
    place = place_of(client, asked["host"])
    names = {name: asked[name] for name in ("agent", "team", "state")}
    wanted = Wanted(place.host, place.device, **names, most=limit or None)
    part = client.scene_part(wanted)
    return Seen(part.scene, part.matching, part.scene.pool.waiting, asked, part.left_out)


def as_data(seen: Seen) -> dict[str, Any]:
    """Return the pool's state for programs."""
    scene = seen.scene
    return {
        "pool": asdict(scene.pool),
        "devices": [
            asdict(d) | {"free_mb": scene.free_mb(d), "left_mb": d.left_mb}
            for d in scene.devices.values()
        ],
        "leases": [asdict(x) | {"memory_mb": x.memory_mb} for x in scene.leases.values()],
        "waiting": seen.waiting,
        "hosts": [asdict(host) for host in scene.hosts.values()],
        "left_out": seen.left_out,
    }


def as_text(seen: Seen, *, output: str = "text", pool: str = DEFAULT) -> str:
    """Return the pool's state for people: a summary, then a line for each GPU and each lease."""
    scene = seen.scene
    if output == "name":
        return "\n".join(map(one_line, scene.devices))
    if not scene.pool.ready:
        return NOT_READY
    wide = output == "wide"
    width = None if wide else screen_width()
    narrow = width is not None and width < ROOMY
    parts = [pool_line(seen, pool, width), *closing(scene.pool)]
    if seen.waiting and not seen.filtered:
        parts.append(f"{seen.waiting} waiting: gpu-broker queue")
    parts += notes_on_hosts(scene.hosts.values(), scene.pool.now_ms, width)
    if seen.filtered:
        parts += unmatched(seen)
    elif not scene.devices:
        parts.append("no devices: GPU_BROKER_DEVICES says where to look for them")
    head: tuple[str, ...] = (*HEAD, "") if wide else HEAD
    rows = _rows(scene, wide=wide, bar_width=NARROW_BAR if narrow else BAR)
    if narrow:
        head, rows = _without(head, "TEMP"), [_without(row, "TEMP") for row in rows]
    if rows:
        parts.append(table(head, rows, width=width, gives=(1, len(head) - 1, 0)))
    if seen.left_out:
        more = many(seen.left_out, "more GPU", "more GPUs")
        parts.append(f"{more}: --limit 0 shows all, --host, --agent, --state a part")
    cpu = [x for x in scene.leases.values() if not x.devices]
    parts += notes(scene, width)
    if cpu:
        named = [_cpu_row(x, scene, wide=wide) for x in cpu]
        parts.append(table(("CPU LEASES", "", "", ""), named, width=width, gives=(0,)))
    return "\n\n".join(parts)


def unmatched(seen: Seen) -> list[str]:
    """Say which filters nothing matches; no line where something does, as a lease on the CPU."""
    if not seen.filtered or seen.scene.devices or seen.scene.leases:
        return []
    words = (f"--{name} {value}" for name, value in seen.asked.items() if value)
    return [f"nothing matches {' '.join(words)}: gpu-broker status shows all"]


def pool_line(seen: Seen, pool: str, width: int | None) -> str:
    """Return the summary: what there is, what is free of it, and SAFE_MODE."""
    scene, devices = seen.scene, seen.devices
    free = sum(map(scene.free_mb, devices))
    total = sum(d.total_mb for d in counted_once(devices))
    parts = sum(bool(d.parent) for d in devices)
    safe = (
        paint("SAFE_MODE is ON: no GPU leases are given", "red")
        if scene.pool.safe_mode
        else "SAFE_MODE is off"
    )
    gpus = {d.parent or d.uuid for d in devices}
    counts = [(len(scene.hosts), "host"), (len(gpus), "GPU")]
    counts += [(parts, "part")] if parts else []
    leases = len(scene.leases) if seen.filtered else scene.pool.active_leases
    counts += [(leases, "lease")]
    said = ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts)
    name = "" if pool == DEFAULT else f"pool {pool}: "
    line = f"{name}{said}, {gib(free)} free of {gib(total)}."
    fits = width is None or len(bare(f"{line} {safe}")) <= width
    return f"{line} {safe}" if fits else f"{line}\n{safe}"


def closing(pool: PoolStatus) -> list[str]:
    """Say for how long the pool is closed, so that nothing is free; no line while it is open."""
    left_ms = pool.closed_until_ms - pool.now_ms
    if left_ms <= 0:
        return []
    return [f"closed for {age(left_ms)} more: it may have lost data, so nothing new is granted"]


def _rows(scene: PoolState, *, wide: bool, bar_width: int) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    held: dict[str, list[tuple[LeaseStatus, int]]] = {}
    for lease in scene.leases.values():
        for uuid, mb in lease.devices:
            held.setdefault(uuid, []).append((lease, mb))
    for uuid, device in scene.devices.items():
        rows.append(_device_row(device, scene, bar_width) + ((_all_of(device),) if wide else ()))
        for lease, mb in held.get(uuid, ()):
            rows.append(_lease_row(lease, scene, mb) + ((_whole(lease, scene),) if wide else ()))
            rows += beneath(device, lease, scene, wide=wide)
        rows += unleased_rows(device, scene, wide=wide)
    return rows


def _device_row(device: DeviceStatus, scene: PoolState, bar_width: int) -> tuple[str, ...]:
    busy, warm = device.telemetry["utilization_gpu_pct"], device.telemetry["temperature_c"]
    state, free_mb = state_of(device, scene.pool.now_ms), scene.free_mb(device)
    shares = (
        ("#", device.leased_mb), ("o", device.unleased_mb + device.system_mb),
        ("x", device.withheld_mb),
    )  # fmt: skip
    return (
        f"{device.host}:{device.index}",
        device.name,
        bar(shares, device.total_mb, bar_width),
        f"{device.leased_mb / 1024:.1f}/{gib(device.total_mb) if device.total_mb else '?'}",
        paint(gib(free_mb), "green" if free_mb else None),
        "-" if busy is None else paint(f"{busy:.0f} %", _busy_colour(busy)),
        "-" if warm is None else f"{warm:.0f} C",
        paint(state, _state_colour(device, state)),
    )


def _state_colour(device: DeviceStatus, state: str) -> str | None:
    if device.reservation and device.state == "ok" and not device.drained:
        return "yellow"
    if device.state == "mig":  # nothing is wrong with it
        return None
    return "green" if state == "ok" else "red"


def _busy_colour(busy: float) -> str | None:
    return "yellow" if busy >= BUSY_PCT else None


def _lease_row(lease: LeaseStatus, scene: PoolState, mb: int) -> tuple[str, ...]:
    ends, now_ms = lease.expires_at_ms, scene.pool.now_ms
    left = "no expiry" if ends is None else f"{age(ends - now_ms)} left"
    held = f"held {age(now_ms - lease.granted_at_ms)}"
    held += ", enforced" if enforced(lease, scene.devices) else ""
    if found := of_lease(lease, scene.devices):
        held = paint(found[0], FOUND[found[0]])
    if soon := preempting(lease, now_ms):
        held = paint(soon, "yellow")
    agent = f"{lease.agent}: {lease.note}" if lease.note else lease.agent
    agent += f" of team {lease.team}" if lease.team != DEFAULT_TEAM else ""
    return ("", f"└ {agent}", left, gib(mb), held, "", "", lease.token[:8])


def _cpu_row(lease: LeaseStatus, scene: PoolState, *, wide: bool) -> tuple[str, ...]:
    _, agent, left, _, held, *_, token = _lease_row(lease, scene, 0)
    return (agent, left, held, _whole(lease, scene) if wide else token)


def _all_of(device: DeviceStatus) -> str:
    """Return a device's details for `-o wide`: its UUID, its parent, its last error code."""
    said = [device.uuid, f"part of {device.parent}" if device.parent else ""]
    return " ".join(filter(None, [*said, f"XID {device.xid}" if device.xid else ""]))


def _whole(lease: LeaseStatus, scene: PoolState) -> str:
    """Return a lease's details for `-o wide`: its token, its client, all its findings."""
    said = [lease.note, lease.token, lease.client, f"pid {lease.pid.partition(':')[0]}"]
    said += [f"priority {lease.priority}"] if lease.priority else []
    said += [f"owner {lease.owner}"] if lease.owner else []
    said += ["enforced"] if enforced(lease, scene.devices) else []
    said += of_lease(lease, scene.devices)
    return " ".join(filter(None, said))


def _without(row: tuple[str, ...], column: str) -> tuple[str, ...]:
    at = HEAD.index(column)
    return row[:at] + row[at + 1 :]
