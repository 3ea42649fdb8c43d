"""Messages to hooks: CloudEvents for programs, lines for people."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from agent_sdk.usage.period import LATEST_MS
from broker.serializers import lease_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_sdk.state.events import Event

TEST: Final = "test"
"""Word in place of an event's in a test."""

FIELDS: Final = (
    "agent", "finding", "pid", "xid", "action", "signal", "state", "policy", "hook", "by", "reason",
)  # fmt: skip
"""Fields of an event that people are told."""


@dataclass(frozen=True, slots=True)
class Message:
    """Message, the same at each try.

    Attributes:
        id: the same for an event at every try and by every sender.
        at_ms: the time of the event.
        data: it as `/events` shows it to a viewer.
    """

    pool: str
    event: str
    id: str
    at_ms: int
    data: dict[str, Any]

    def body(self) -> bytes:
        """Return it as a CloudEvent in JSON."""
        # Imported here, because an extra has it.
        from cloudevents.core.bindings.http import to_structured_event  # noqa: PLC0415 - see above
        from cloudevents.core.v1.event import CloudEvent  # noqa: PLC0415 - see above

        attributes = {
            "id": self.id,
            "source": f"urn:gpu-broker:{self.pool}",
            "type": f"gpu-broker.{self.event}",
            # A hand may write a time that no calendar has
            "time": datetime.fromtimestamp(min(self.at_ms, LATEST_MS) / 1000, UTC),
            "datacontenttype": "application/json",
        }
        return bytes(to_structured_event(CloudEvent(attributes, self.data)).body)

    @property
    def title(self) -> str:
        """The message in few words."""
        return f"GPU pool {self.pool}: {self.event}"

    @property
    def text(self) -> str:
        """The message in a line."""
        held = [_place(each) for each in self.data["devices"]]
        where = held or ([self.data["host"]] if "host" in self.data else [])
        told = [f"{name} {self.data[name]}" for name in FIELDS if self.data.get(name)]
        return " · ".join([", ".join(where) or self.event, *told])


def _place(device: Mapping[str, Any]) -> str:
    mb = device["memory_mb"]
    name = device["uuid"] if device["host"] is None else f"{device['host']}:{device['index']}"
    return f"{name} ({mb} MiB)" if mb else str(name)


def message_of(pool: str, event: Event, places: Mapping[str, tuple[str, int]]) -> Message:
    """Return the message of an event. A receiver is a viewer: tokens are masked."""
    data = lease_json.event(event, places, whole=False)
    return Message(pool, event.event, event.id, event.at_ms, data)


def message_of_test(pool: str, hook: str, test: str, now_ms: int) -> Message:
    """Return the message of a test, which is no event of the pool."""
    name = f"test-{test}"
    data = {"id": name, "event": TEST, "at": now_ms / 1000, "devices": [], "hook": hook}
    return Message(pool, TEST, name, now_ms, data)
