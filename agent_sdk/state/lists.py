"""Lists of a large pool: what there is, by little of each, so that a part can be read whole.

Each reading is of few keys, so that an event loop does other work between two of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from agent_sdk.protocol.messages import Answer, Read
from agent_sdk.protocol.replies import of_known_form
from agent_sdk.state.readings import names, names_each, numbers, read_known, text, text_or_none

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Generator, Sequence

    from agent_sdk.keys import Keys

    Matches = Callable[[str, str, str, str], bool]

PAGE: Final = 500
"""Names that are read at once."""

PART: Final = 64
"""Hashes of which a few fields are read at once."""

HOST: Final = "host:"
"""Beginning of the names of hosts among those with a deadline."""


class LeaseEntry(NamedTuple):
    """Living lease in a list; the order is that of the grants."""

    fence: int
    token: str


class DeviceEntry(NamedTuple):
    """Device in a list; the order is that of hosts and of the numbers on them."""

    host: str
    number: int
    uuid: str
    state: str


def tokens_due(
    keys: Keys, due_by_ms: int | None = None
) -> Generator[Read, Answer, dict[str, None]]:
    """Read the tokens that have a deadline, each once, the earliest first.

    A renewal only ever moves a deadline on, so that no living lease is passed by meanwhile.

    Args:
        keys: of the pool.
        due_by_ms: only deadlines that are not after it, on the pool's clock; None: all.
    """
    found: dict[str, None] = {}
    end: str | int = "+inf" if due_by_ms is None else due_by_ms
    begin, skip = "-inf", 0
    while True:
        answer = yield from read_known(
            keys,
            ("ZRANGE", keys.deadlines, begin, end, "BYSCORE", "LIMIT", skip, PAGE, "WITHSCORES"),
        )
        page = scored(answer.raw[0])
        found |= {name: None for name, _ in page if not name.startswith(HOST)}
        if len(page) < PAGE:
            return found
        last = page[-1][1]
        skip = skip + PAGE if last == begin else PAGE if page[0][1] == last else 0
        begin = last


def in_states(
    keys: Keys, tokens: Sequence[str], states: Container[str]
) -> Generator[Read, Answer, list[str]]:
    """Read which of these tokens have a record in one of these states, in this order."""
    found: list[str] = []
    for start in range(0, len(tokens), PART):
        part = tokens[start : start + PART]
        answer = yield Read(tuple(("HGET", keys.record(token), "state") for token in part))
        found += [t for t, state in zip(part, answer.raw, strict=True) if state in states]
    return found


def hooks(keys: Keys) -> Generator[Read, Answer, list[str]]:
    """Read which webhooks there are, by name."""
    answer = yield Read((("SMEMBERS", keys.hooks),))
    return sorted(answer.raw[0])


def hosts(keys: Keys) -> Generator[Read, Answer, list[str]]:
    """Read which hosts the pool knows, by name."""
    answer = yield from read_known(keys, ("SMEMBERS", keys.hosts))
    return sorted(names(answer))


def living(
    keys: Keys,
    agent: str | None = None,
    host: str | None = None,
    kind: str | None = None,
    matches: Matches | None = None,
) -> Generator[Read, Answer, tuple[list[LeaseEntry], ...]]:
    """Read which leases live, as lists that are each in the order of the grants.

    Args:
        keys: of the pool.
        agent: only its leases.
        host: only those on this host.
        kind: `active`, on a GPU; `cpu`; None: both.
        matches: tells by token, agent, devices and fence whether a lease is listed; None: all are.
    """
    if host is None:
        tokens = list((yield from tokens_due(keys)))
    else:
        tokens = yield from _holding(keys, host)
    lists = []
    for start in range(0, len(tokens), PART):
        part = tokens[start : start + PART]
        answer = yield Read(
            tuple(("HMGET", keys.record(t), "state", "agent", "devices", "fence") for t in part)
        )
        found = _entries(part, answer, agent, kind, matches)
        if found:
            lists.append(sorted(found))
    return tuple(lists)


def device_count(keys: Keys) -> Generator[Read, Answer, int]:
    """Read how many devices there are."""
    answer = yield from read_known(keys, ("ZCARD", keys.fits))
    return numbers(answer)[0] or 0


def devices(
    keys: Keys, host: str | None = None, state: str | None = None
) -> Generator[Read, Answer, list[DeviceEntry]]:
    """Read which devices there are, in their order.

    Args:
        keys: of the pool.
        host: only its devices.
        state: only those in this state, as `shown_state` names it.
    """
    listing = ("ZRANGE", keys.fits, 0, -1) if host is None else ("SMEMBERS", keys.devices(host))
    answer = yield from read_known(keys, listing)
    uuids, found = names(answer), []
    for start in range(0, len(uuids), PART):
        part = uuids[start : start + PART]
        answer = yield Read(
            tuple(("HMGET", keys.device(u), "host", "index", "state", "drained") for u in part)
        )
        found += [
            each
            for each in _device_entries(part, answer)
            if (host is None or each.host == host) and (state is None or each.state == state)
        ]
    return sorted(found)


ShownState = Literal[
    "ok", "drained", "away", "stopping", "lost", "error", "quarantined", "dirty", "mig",
    "prohibited"
]  # fmt: skip
"""Words for a device's state, as lists can be limited to one."""


def shown_state(state: str, *, drained: bool) -> str:
    """Return the word for a device's state: drained is one where nothing worse is."""
    return "drained" if drained and state == "ok" else state


def _holding(keys: Keys, host: str) -> Generator[Read, Answer, list[str]]:
    """Read the tokens with something on a host's devices."""
    answer = yield from read_known(keys, ("SMEMBERS", keys.devices(host)))
    return (yield from holding(keys, sorted(names(answer))))


def holding(keys: Keys, uuids: Sequence[str]) -> Generator[Read, Answer, list[str]]:
    """Read the tokens with something on these devices."""
    found = set[str]()
    for start in range(0, len(uuids), PART):
        answer = yield Read(tuple(("SMEMBERS", keys.holders(u)) for u in uuids[start:][:PART]))
        found.update(*names_each(answer))
    return sorted(found)


@of_known_form
def scored(part: Any) -> list[tuple[str, str]]:
    """Return each member and its score as it was written; RESP2 and RESP3 differ."""
    flat = [each for pair in part for each in pair] if part and _paired(part[0]) else part
    return [
        (text(name), str(int(float(score))))
        for name, score in zip(flat[::2], flat[1::2], strict=True)
    ]


def _paired(part: Any) -> bool:
    return isinstance(part, list | tuple)


@of_known_form
def _entries(
    tokens: Sequence[str],
    answer: Answer,
    agent: str | None,
    kind: str | None,
    matches: Matches | None,
) -> list[LeaseEntry]:
    found = []
    for token, (state, of, held, fence) in zip(tokens, answer.raw, strict=True):
        if state != "active" or (agent is not None and of != agent):
            continue
        if kind is not None and kind != ("active" if held else "cpu"):
            continue
        if matches is None or matches(token, text(of), text(held), text(fence)):
            found.append(LeaseEntry(int(fence), token))
    return found


@of_known_form
def _device_entries(uuids: Sequence[str], answer: Answer) -> list[DeviceEntry]:
    found = []
    for uuid, (host, index, state, drained) in zip(uuids, answer.raw, strict=True):
        if text_or_none(host) is not None:
            shown = shown_state(text(state), drained=drained == "1")
            found.append(DeviceEntry(host, int(index), uuid, shown))
    return found
