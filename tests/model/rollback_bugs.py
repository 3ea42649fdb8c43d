"""Bugs of how data that went back are noticed, and of the clock."""

from __future__ import annotations

from tests.model.planted import Bug

ROLLBACK_BUGS = (
    Bug(
        "a backup of a clean stop opens at once",
        (
            (
                "if ctx.now - ctx.last > CLEAN_MS then",
                "if false then",
            ),
        ),
        often="lose",
    ),
    Bug(
        "a library forgets what it has seen",
        (
            (
                "if before then return broker.lost() end",
                "if before then return end",
            ),
        ),
        functions=True,
        often="lose",
        seed=543,
    ),
    Bug(
        "a holder is no witness",
        (
            (
                "if fence ~= '' and owner == '' and",
                "if false and",
            ),
        ),
        often="lose",
        seed=8028,
    ),
    Bug(
        "a broker or a reporter is no witness",
        (
            (
                "if seen_ms > ctx.last then",
                "if false then",
            ),
        ),
        often="lose",
    ),
    Bug(
        "a long silence is nothing",
        (
            (
                "if ctx.now - ctx.last > (call('HGET', POOL, 'silence_ms') or NEVER) + 0 then",
                "if false then",
            ),
        ),
        often="lose",
    ),
    Bug(
        "a second leap opens no window",
        (
            (
                "set_pool('window_until_ms', math.max(window_until_ms + 0, ctx.now + for_ms))",
                (
                    "set_pool('window_until_ms',\n"
                    " leaps > 1 and window_until_ms + 0 or ctx.now + for_ms)"
                ),
            ),
        ),
        often="lose",
    ),
    Bug(
        "a second leap cuts short who was late by the first",
        (
            (
                "leaps, from_ms = leaps_before + 1, math.min(leap_from_ms + 0, ctx.last)",
                "leaps, from_ms = leaps_before + 1, ctx.last",
            ),
        ),
        often="lose",
    ),
    Bug(
        "data went back, and what was renewed since is reaped",
        (
            (
                "  broker.pause(FAILOVER_MS)\n",
                "",
            ),
        ),
        often="lose",
    ),
    Bug(
        "an recovered lease's longest hold is by another clock",
        (
            (
                "local hold_until_ms = recovery.hold_ms > 0 and granted_ms + recovery.hold_ms",
                "local hold_until_ms = recovery.hold_ms > 0 and fence / 1000 + recovery.hold_ms",
            ),
        ),
        often="lose",
    ),
    Bug(
        "the older of two holders goes on believing",
        (
            (
                "ctx.now < closed_until_ms and not younger then",
                "ctx.now < closed_until_ms then",
            ),
        ),
        often="lose",
        seed=5874,
    ),
)
