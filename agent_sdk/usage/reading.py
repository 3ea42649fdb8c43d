"""Usage: what each party used in a period, exact at any moment.

What has ended is in the sums of its days, or still a line of `ended`; what runs is in its record.
A lease passes from its record to a line to the sums, while all of that is read in parts. So a part
is the sums of some days together with the lines that were left then, in one transaction: it tells
which of the leases that were known before were in the sums already. So each counts once.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agent_sdk.errors import error_for
from agent_sdk.policy import FIELDS
from agent_sdk.state.lists import in_states
from agent_sdk.state.readings import hash_in, list_in, read_atomically, read_now
from agent_sdk.state.snapshot import legible, records
from agent_sdk.usage.groups import Groups, Period
from agent_sdk.usage.lease_runs import active_run, ended_run, number, words_of
from agent_sdk.usage.period import DAY_MS, at_ms, day_of
from agent_sdk.usage.sums import prices_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence

    from agent_sdk.keys import Keys
    from agent_sdk.protocol.messages import Answer, Read
    from agent_sdk.usage.groups import Usage
    from agent_sdk.usage.lease_runs import LeaseRun
    from agent_sdk.usage.period import Instant

WHO: Final = ("day", "team", "agent", "model")
WHERE: Final = ("day", "host", "model")
"""Words that rows may be grouped by: of the holders, and of the places."""

DAYS: Final = 2
"""Days whose sums are read at once: an event loop is not held while they are parsed."""

PART: Final = 64
"""Devices that are read at once."""

TRIES: Final = 3
"""Readings before one is taken in which a lease ended, and was folded, between two parts."""

_DEVICE: Final = ("host", "model", "total_mb", "system_mb", "exclusive")

_POLICY: Final = ("usage_days", "price_per_gpu_hour")


class _Part(NamedTuple):
    """Part of a reading: the beginnings of some days, and the tokens of the lines left then."""

    days: list[int]
    left: frozenset[str]


def checked(by: Iterable[str]) -> tuple[str, ...]:
    """Return the words to group by, each once.

    Raises:
        BadRequest: there is no such word, or the sums are not kept by all of them together.
    """
    words = tuple(dict.fromkeys((by,) if isinstance(by, str) else by))
    if wrong := [word for word in words if word not in WHO and word not in WHERE]:
        raise error_for(
            "bad_request",
            f"use is not kept by {wrong[0]!r:.40}: by day, team, agent, host or model",
        )
    who = [word for word in words if word not in WHERE]
    if "host" in words and who:
        raise error_for(
            "bad_request",
            f"use is kept by who (team, agent) and by where (host), not by {who[0]} and host "
            "together; the history of finished leases has both",
        )
    return words


def read(
    keys: Keys,
    by: Iterable[str],
    since: Instant,
    until: Instant | None,
    *,
    daily: bool = False,
) -> Generator[Read, Answer, Usage]:
    """Read the use of a period.

    What has ended counts by whole days of UTC: from the day of `since` to that of `until`. What
    runs now counts exactly.

    Args:
        keys: of the pool.
        by: words to group by: `day`, `model`, and either `team` and `agent`, or `host`.
        since: the beginning; see `period.at_ms`.
        until: the end, and a day includes it; None: now.
        daily: rows have the GPU-time of each day too.

    Raises:
        BadRequest: the words or the period are wrong.
    """
    words = checked(by)
    for left in reversed(range(TRIES)):
        found = yield from _read_once(keys, words, since, until, daily=daily, last=not left)
        if found is not None:
            return found
    raise AssertionError("the last try takes what it finds")


def _read_once(
    keys: Keys,
    by: tuple[str, ...],
    since: Instant,
    until: Instant | None,
    *,
    daily: bool,
    last: bool,
) -> Generator[Read, Answer, Usage | None]:
    """Read once; None: it cannot be told whether a lease is in the sums that were read."""
    now_ms = yield from read_now(keys)
    facts, before = yield from read_atomically(
        ("HMGET", keys.pool, *_POLICY), ("LRANGE", keys.ended, 0, -1)
    )
    of = _period(now_ms, dict(zip(_POLICY, list_in(facts), strict=False)), since, until)
    active = yield from records(keys, ("active",))
    on = yield from _devices(keys, active)
    running = {
        run.token: run
        for run in legible(lambda token, row: active_run(token, row, on), active.items())
    }
    uses = yield from _uses(keys, [*running.values(), *_runs(_lines(before)).values()])

    groups = Groups(by, of, daily=daily)
    known, parts = dict(running), list[_Part]()
    for start in range(0, len(of.days), DAYS):
        days = of.days[start : start + DAYS]
        lines, *sums = yield from read_atomically(
            ("LRANGE", keys.ended, 0, -1), *(("HGETALL", _key(keys, by, day)) for day in days)
        )
        left = _lines(lines)
        if not parts:
            known |= _runs(left)
        parts.append(_Part(days, frozenset(left)))
        for day, rows in zip(days, sums, strict=True):
            groups.add_sums(day, hash_in(rows))

    unsure = yield from _unsure(keys, running, parts)
    if unsure and not last:
        return None
    for n, part in enumerate(parts):
        gone = unsure.union(*(past.left for past in parts[:n])) - part.left
        for token, run in known.items():
            if token not in gone:
                groups.add_run(run, uses.get(token, {}), part.days)
    return groups.result()


def _key(keys: Keys, by: tuple[str, ...], day_ms: int) -> str:
    day = day_of(day_ms)
    return keys.usage_of_hosts(day) if "host" in by else keys.usage(day)


def _period(
    now_ms: int, policy: Mapping[str, str | None], since: Instant, until: Instant | None
) -> Period:
    asked_ms = at_ms(since, now_ms)
    until_ms = now_ms if until is None else min(now_ms, at_ms(until, now_ms, to_the_end=True))
    if asked_ms >= until_ms:
        raise error_for("bad_request", "the period must begin before it ends, and before now")
    kept = FIELDS["usage_days"]
    days = min(number(policy.get("usage_days")) or int(kept.default), kept.most)
    oldest_ms = max(0, now_ms - now_ms % DAY_MS - days * DAY_MS)
    within_ms = until_ms if until_ms == now_ms else until_ms - 1  # what begins now is known now
    last_ms = within_ms - within_ms % DAY_MS
    since_ms = min(max(asked_ms, oldest_ms), until_ms)
    return Period(
        now_ms,
        since_ms,
        until_ms,
        first_ms=min(since_ms - since_ms % DAY_MS, last_ms),
        last_ms=last_ms,
        asked_ms=asked_ms,
        prices=prices_of(policy.get("price_per_gpu_hour") or ""),
    )


def _lines(raw: Any) -> dict[str, dict[str, str]]:
    """Return the words of the lines of `ended`, by token."""
    found = [words_of(line) for line in list_in(raw) if line]
    return {words["token"]: words for words in found if words.get("token")}


def _runs(lines: Mapping[str, dict[str, str]]) -> dict[str, LeaseRun]:
    return {run.token: run for run in legible(ended_run, lines.items())}


def _devices(
    keys: Keys, active: Mapping[str, Mapping[str, str]]
) -> Generator[Read, Answer, dict[str, dict[str, str]]]:
    """Read what is needed of the devices of active leases, by id; those that are registered."""
    named = (part for row in active.values() for part in row.get("devices", "").split(","))
    uuids = sorted({part.rpartition("=")[0] for part in named} - {""})
    found: dict[str, dict[str, str]] = {}
    for start in range(0, len(uuids), PART):
        page = uuids[start : start + PART]
        rows = yield from read_atomically(*(("HMGET", keys.device(x), *_DEVICE) for x in page))
        for uuid, row in zip(page, rows, strict=True):
            values = zip(_DEVICE, list_in(row), strict=False)
            if of := {name: value for name, value in values if value}:
                found[uuid] = of
    return found


def _uses(
    keys: Keys, runs: Sequence[LeaseRun]
) -> Generator[Read, Answer, dict[str, dict[str, dict[str, int]]]]:
    """Read what hosts have seen of these leases: token -> device -> numbers by name."""
    tokens: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        for uuid, _ in run.devices:
            tokens[uuid].append(run.token)
    found: dict[str, dict[str, dict[str, int]]] = defaultdict(dict)
    uuids = sorted(tokens)
    for start in range(0, len(uuids), PART):
        page = uuids[start : start + PART]
        asked = (("HMGET", keys.use(uuid), *tokens[uuid]) for uuid in page)
        for uuid, lines in zip(page, (yield from read_atomically(*asked)), strict=True):
            for token, line in zip(tokens[uuid], list_in(lines), strict=False):
                if line:
                    said = ((name, number(value)) for name, value in words_of(line).items())
                    found[token][uuid] = {name: n for name, n in said if n is not None}
    return found


def _unsure(
    keys: Keys, running: Mapping[str, LeaseRun], parts: Sequence[_Part]
) -> Generator[Read, Answer, set[str]]:
    """Read which of these leases ended, and left no line in any part nor now."""
    left = [token for token in running if not any(token in part.left for part in parts)]
    active = yield from in_states(keys, left, {"active"})
    gone = set(left) - set(active)
    if gone:
        (lines,) = yield from read_atomically(("LRANGE", keys.ended, 0, -1))
        gone -= _lines(lines).keys()
    return gone
