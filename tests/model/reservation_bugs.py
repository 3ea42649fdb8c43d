"""Bugs of reservations, and a way to look at few devices at a time that is none."""

from __future__ import annotations

from tests.model.planted import Bug

SMALL_PAGES = (
    ("local DEVICES_READ, GROUPS_READ = 64, 8", "local DEVICES_READ, GROUPS_READ = 2, 1"),
    ("local FREEST, MODELS_READ = 8, 64", "local FREEST, MODELS_READ = 1, 64"),
)
"""With these a head looks at two devices, or one group, at a poll: the pools have more of them."""

PAGES = 24

IN_PAGES = Bug("nothing: a head looks at all in turn", SMALL_PAGES, pages=PAGES, often="standoff")
"""No bug: the model must find nothing in it."""


def _bug(name: str, old: str, new: str, seed: int = 1, often: str = "standoff") -> Bug:
    return Bug(name, ((old, new),), seed=seed, often=often)


RESERVATION_BUGS = (
    _bug(
        "a reservation has no horizon",
        "if ctx.now > w.reservation_until_ms then",
        "if false then",
        seed=8740,
    ),
    _bug(
        "a reservation is beyond the cap",
        "return sum <= room_mb and devices",
        "return devices",
        seed=6,
    ),
    _bug(
        "a reservation counts against nobody",
        "  broker.count_reserved(w, sum, devices[1].model)\n",
        "",
    ),
    _bug(
        "what strangers use is reserved",
        "d.system_mb - d.unleased_mb, broker.wh",
        "d.system_mb, broker.wh",
        seed=5730,
    ),
    _bug(
        "a whole device is reserved beside a stranger",
        "if whole and d.unleased_mb >",
        "if 0 >",
        seed=7464,
    ),
    _bug("the end of a younger lease is progress", "fence + 0 <= at_fence + 0", "true", seed=4857),
    _bug("a device does not rest", "d.reservable_ms <= ctx.now and", "", seed=2021),
    _bug("a head does not rest", "or ctx.now < w.reserves_ms or", "or", seed=7027),
    _bug(
        "what is reserved is lent for too long",
        "text(ctx.now + q.max_hold_ms)",
        "text(ctx.now)",
        seed=3431,
    ),
    _bug(
        "what is reserved is lent until an end that was moved",
        "if ctx.pool.waiting > 0 then broker.reservations.end_moved(devices) end",
        "",
        seed=4,
        often="upheaval",
    ),
    _bug(
        "a whole device above the cap is waited for",
        "if least then why =",
        "if false then why =",
        often="policy",
        seed=3520,
    ),
    _bug(
        "a device of one lease takes another",
        "(d.one_lease == '' or unheld)",
        "true",
        often="terms",
    ),
    _bug(
        "a device of one lease that cools takes another",
        "local unheld = d.leases == 0 and d.withheld_mb == 0",
        "local unheld = d.leases == 0",
        often="terms",
    ),
    _bug(
        "whole devices are lent beside as much use as ever",
        "d.unleased_mb <= d.idle_unleased_mb\n  d.shared",
        "d.unleased_mb <= IDLE_UNLEASED_MB\n  d.shared",
        often="terms",
    ),
)
