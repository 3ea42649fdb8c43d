"""Reading of what a host tells of its leases' use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tests.attribution.worlds import GPU

if TYPE_CHECKING:
    from agent_sdk.state.holders import Holders
    from broker.attribution.processes import Program
    from broker.attribution.report import HostReport
    from broker.devices import DeviceSample
    from tests.attribution.worlds import Host


class Told(NamedTuple):
    """One interval of a lease; None: it is not known."""

    from_ms: int
    to_ms: int
    busy_ms: int | None
    peak_mb: int | None
    energy_mj: int | None

    @property
    def length_ms(self) -> int:
        """Its length."""
        return self.to_ms - self.from_ms


def intervals(reckoning: HostReport, uuid: str = GPU) -> dict[str, Told]:
    """Return what a report tells of each lease on a device."""
    text = reckoning.reports[uuid].get("use", "")
    found: dict[str, Told] = {}
    for entry in filter(None, text.split(",")):
        token, said = entry.split("=")
        assert token not in found, "the verb reads the state of a lease once"
        found[token] = Told(*(int(n) if n else None for n in said.split(":")))  # type: ignore[arg-type] # times are told
    return found


def look(
    host: Host,
    device: DeviceSample,
    held: Holders | None = None,
    programs: tuple[Program, ...] = (),
    *,
    taken: bool = True,
    **more: Any,
) -> dict[str, Told]:
    """Look once at one device; `taken`: the pool has the report."""
    reckoning = host.look((device,), held, programs, **more)
    if taken:
        host.reckoner.told()
    return intervals(reckoning, device.uuid)
