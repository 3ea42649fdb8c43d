"""A chooser that goes each way in turn, for the explorer."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

from tests.model.entries import Broken, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.model.model import Model


@dataclass
class Each:
    """A chooser that goes each way in turn: `script` says which, `widths` how many there were."""

    script: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    backlog: bool = False
    again: bool = False
    pages: int = 0
    model: Model | None = None

    def _one(self, options: list[Any]) -> Any:
        at = len(self.widths)
        self.widths.append(len(options))
        return options[self.script[at] if at < len(self.script) else 0]

    def grant(self, name: str, options: list[tuple[str, ...]]) -> tuple[str, ...] | None:
        return self._one(options) if options else None

    def offer(self, model: Model) -> tuple[str, tuple[str, ...]] | None:
        may = [(name, some) for name, some in model.due_offers()
               if model.may_offer(model.entries[name], some)]  # fmt: skip
        return self._one(may) if may else None

    def later(self, name: str) -> bool:
        return False

    def caps(self, name: str) -> bool:
        return True

    def preempt(self, name: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Each set of leases that may end for a head; none where no plain choice is there."""
        assert self.model is not None
        e = self.model.entries[name]
        options = [*self._sets(self.model, e)]
        none = [] if options and self.model.must_notice(e) else [None]
        return self._one(none + options) if options else None

    def _sets(self, model: Model, e: Entry) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Sets of leases, with the devices that they clear, that pass the model's own checks."""
        after_ms = model.policy["reclaim_after_s"] * 1000
        own = model.may_reclaim(e)
        late = bool(after_ms) and model.now - e.enqueued_ms >= after_ms and not e.preempts
        if not late or not (own or e.ask.priority):
            return
        held, e.reserved, held_mb, e.reservation_mb = e.reserved, (), e.reservation_mb, 0
        leases = sorted(v.token for v in model.entries.values() if v.state == "active")
        for devices in combinations(sorted(model.devices), e.ask.devices):
            for size in range(1, len(leases) + 1):
                for tokens in combinations(leases, size):
                    with suppress(Broken):
                        model.check_victims(e, tokens, devices)
                        yield tokens, devices
        e.reserved, e.reservation_mb = held, held_mb

    def keep(self, name: str, options: list[tuple[str, ...]]) -> tuple[str, ...]:
        return self._one(options) if options else ()
