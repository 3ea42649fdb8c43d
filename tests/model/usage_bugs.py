"""Bugs of the sums of use that the model must find."""

from __future__ import annotations

from tests.model.planted import Bug


def _bug(name: str, old: str, new: str, *, seed: int = 1, functions: bool = False) -> Bug:
    return Bug(name, ((old, new),), seed=seed, functions=functions)


USAGE_BUGS = (
    _bug(
        "a lease is folded twice",
        "call('LTRIM', prefix .. 'ended', text(folded), '-1')",
        "",
        seed=2439,
    ),
    _bug(
        "a lease counts until its end was noticed",
        "return r.ended_at_ms and r.ended_at_ms < ctx.now and r.ended_at_ms or ctx.now",
        "return ctx.now",
    ),
    _bug("an end is not noted", "broker.note_end(r, outcome, ended, r.gpus, r.where)", ""),
    _bug(
        "a fold forgets what was there before",
        "local n = (was and find(was, '^%d+$') and was or 0) + of[i]",
        "local n = of[i]",
        seed=7926,
    ),
    _bug(
        "hosts count as many devices as they have leases",
        "return (d.exclusive == token or mb + 0 >= total_mb) and 1 or mb / total_mb",
        "return 1",
    ),
    _bug("the days after the first are lost", "until to_ms == ended_ms", "until true", seed=795),
    _bug(
        "what a lease had before midnight is lost",
        "if from_ms < oldest_ms then from_ms = math.min(oldest_ms, ended_ms) end",
        "from_ms = math.max(from_ms, math.min(ended_ms - ended_ms % DAY_MS, ended_ms))",
        seed=8086,
    ),
    _bug(
        "the straight path notes no end",
        "broker.note_end(r, 'released', now, part, d.host .. '|' .. d.model)",
        "",
        functions=True,
    ),
)
