"""Bugs of what a function library keeps of a pool between its calls."""

from __future__ import annotations

from tests.model.planted import Bug

KEPT_BUGS = (
    Bug(
        "a straight call does not move the sequence",
        (
            (
                "if number <= k.number then number, stamp = k.number + 1, nil end",
                "number, stamp = k.number, nil",
            ),
        ),
        functions=True,
        often="mix",
        seed=8684,
    ),
    Bug(
        "a plain call does not move the sequence",
        (
            (
                "text(next_sequence(ctx.sequence, ctx.now_us))",
                "text(ctx.sequence)",
            ),
        ),
        functions=True,
        often="mix",
        seed=5002,
    ),
    Bug(
        "the straight path grants the same token twice",
        (
            (
                "if k.records[token] or broker.ended(token) then return nil end",
                "if broker.ended(token) then return nil end",
            ),
            (
                "if call('ZADD', DEADLINES, 'NX', expires_at, token) == 0 then return nil end",
                "call('ZADD', DEADLINES, expires_at, token)",
            ),
        ),
        functions=True,
        often="mix",
    ),
    Bug(
        "a straight renewal shortens a lease",
        (
            (
                "if expires_at_ms < r.expires_at_ms then expires_at_ms = r.expires_at_ms end",
                "",
            ),
        ),
        functions=True,
        often="renew",
        seed=475,
    ),
    Bug(
        "a straight release keeps the agent's sum",
        (
            (
                "count_lease(k, a, key, t, d, -mb, -1)",
                "count_lease(k, a, key, t, d, 0, -1)",
            ),
        ),
        functions=True,
        often="mix",
    ),
    Bug(
        "what is kept is believed whatever the sequence",
        (
            (
                "if not k.sequence or call('HGET', POOL, 'sequence') ~= k.sequence then",
                "if not k.sequence then",
            ),
        ),
        functions=True,
        often="mix",
    ),
    Bug(
        "a replica takes over, and what was kept before is believed",
        (
            (
                "if not k.sequence or call('HGET', POOL, 'sequence') ~= k.sequence then",
                "if not k.sequence then",
            ),
        ),
        functions=True,
        often="lose",
        seed=6091,
    ),
    Bug(
        "the sequence is a counter, which comes to the same values again",
        (
            (
                "if now_us > before then return now_us end",
                "",
            ),
            (
                "if number <= k.number then number, stamp = k.number + 1, nil end",
                "number, stamp = k.number + 1, nil",
            ),
        ),
        functions=True,
        often="lose",
        seed=7884,
    ),
)
