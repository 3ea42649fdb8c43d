"""Bugs that the model must find: each a small change of the scripts' text, and what it breaks.

The ten of the test plan, as far as there are such in these scripts, and some that this broker could
have: data loss, offers, what is withheld, what is reserved.
"""

from __future__ import annotations

from tests.model.kept_bugs import KEPT_BUGS
from tests.model.planted import Bug
from tests.model.renewal_bugs import RENEWAL_BUGS
from tests.model.report_bugs import REPORT_BUGS
from tests.model.reservation_bugs import RESERVATION_BUGS
from tests.model.rollback_bugs import ROLLBACK_BUGS
from tests.model.team_bugs import TEAM_BUGS
from tests.model.usage_bugs import USAGE_BUGS

GENERAL_BUGS = (
    Bug(
        "a repeat is a new request",
        (
            (
                "local known = call('EXISTS', record) == 1",
                "local known = false",
            ),
        ),
        seed=286130618,
    ),
    Bug(
        "the fence is not compared",
        (
            (
                "if fence ~= '' and fence ~= held then",
                "if false then",
            ),
        ),
        seed=6091,
    ),
    Bug(
        "over at its last moment",
        (
            (
                "if ctx.now <= at then return false end",
                "if ctx.now < at then return false end",
            ),
            (
                "if ctx.next_deadline < ctx.now then",
                "if ctx.next_deadline <= ctx.now then",
            ),
        ),
        seed=6238,
    ),
    Bug(
        "a release that comes first is forgotten",
        (
            (
                "if plant == 1 then broker.leave",
                "if false then broker.leave",
            ),
        ),
        seed=542671221,
    ),
    Bug(
        "the fence is a plain counter",
        (
            (
                "if ctx.now_us > fence then fence = ctx.now_us end",
                "",
            ),
        ),
        seed=756370300,
    ),
    Bug(
        "a renewal does not reach its deadline",
        (
            (
                "set_deadline(token, expires_at_ms)\nreturn reply('RENEWED'",
                "return reply('RENEWED'",
            ),
        ),
        seed=291299854,
    ),
    Bug(
        "a full device stays listed",
        (
            (
                "    call('ZREM', keys.free, uuid)\n",
                "",
            ),
        ),
        seed=980081774,
    ),
    Bug(
        "one MiB too much",
        (
            (
                "local room = d.total_mb",
                "local room = 1 + d.total_mb",
            ),
        ),
        seed=245934812,
    ),
    Bug(
        "a clock that steps back stretches leases",
        (
            (
                "set_pool('offset_ms', offset_ms + last - now)",
                "",
            ),
        ),
        seed=8908,
    ),
    Bug(
        "of several devices one has a key",
        (
            (
                "for _, d in ipairs(devices) do\n  call('SET'",
                "for _, d in ipairs({ devices[1] }) do\n  call('SET'",
            ),
        ),
        seed=1670,
    ),
    Bug(
        "a newcomer passes those who wait",
        (
            (
                "elseif pool.waiting > 0 and broker.offers.must_queue(q) then",
                "elseif false then",
            ),
        ),
        seed=9403,
    ),
    Bug(
        "a pool that lost data stays open",
        (
            (
                "elseif run_id_before ~= run_id or",
                "elseif",
            ),
        ),
        seed=4197,
    ),
    Bug(
        "recovered where there is no room",
        (
            (
                "return room < each.mb or",
                "return",
            ),
        ),
        seed=8684,
    ),
    Bug(
        "what cools is given back twice",
        (
            (
                "if d and r.ended_at_ms > (cooled_at_ms or 0) + 0 then",
                "if d then",
            ),
        ),
        seed=390558544,
    ),
    Bug(
        "what one cooling lease uses is another's",
        (
            (
                "if each.ended_ms <= cooled_at_ms or not call('ZSCORE', DEADLINES, each.token)",
                "if false",
            ),
        ),
        seed=7926,
    ),
    Bug(
        "what an older sample counted is counted again",
        (
            (
                "local known_mb = math.min(stays_mb, raised_mb)",
                "local known_mb = 0",
            ),
        ),
        seed=368754544,
    ),
    Bug(
        "a tombstone takes the place of another",
        (
            (
                "string.sub(list, first) .. entry",
                "entry",
            ),
            (
                "% SHARDS",
                "% 1",
            ),
        ),
        seed=1,
    ),
    Bug(
        "a device with a lease is forgotten",
        (
            (
                "return d.leases == 0 and d.withheld_mb == 0 and call('SCARD'",
                "return true or call('SCARD'",
            ),
        ),
        seed=1,
        often="vanish",
    ),
    Bug(
        "a drain goes with its device",
        (
            (
                "if d.drained == '1' and not with_host and not keep_drain(",
                "if false and not keep_drain(",
            ),
        ),
        seed=7465,
        often="vanish",
    ),
    Bug(
        "what came back is not scheduled",
        (
            (
                "if grew or whole or",
                "if",
            ),
        ),
        seed=8555,
    ),
    Bug(
        "an offer outlives a change of policy",
        (
            (
                "waiter.policy_version == pool.policy_version",
                "true",
            ),
        ),
        seed=2939,
        often="policy",
    ),
    Bug(
        "a drained device stays kept",
        (
            (
                "broker.reservations.cancel_on(d) end\n    d.drained",
                "end\n    d.drained",
            ),
        ),
        seed=996,
        often="standoff",
    ),
    Bug(
        "set_policy offers under two policies",
        (
            (
                "ctx.pool[field] = tonumber(value) or value",
                "",
            ),
        ),
        seed=7288,
        often="policy",
    ),
    Bug(
        "who was not recovered may ask again",
        (
            (
                "broker.bury(token, outcome)\n    return",
                "return",
            ),
        ),
        seed=5931,
    ),
    Bug(
        "an earlier end is not noted",
        (
            (
                "if at < ctx.next_deadline then ctx.next_deadline = at end",
                "",
            ),
        ),
        seed=1,
    ),
    Bug(
        "the worklist is scheduled device by device",
        (
            (
                "before(one, best) or not before(best, one) and entry < found",
                "entry < found",
            ),
        ),
        seed=9516,
    ),
)

BUGS = (
    *GENERAL_BUGS, *RENEWAL_BUGS, *REPORT_BUGS, *RESERVATION_BUGS, *ROLLBACK_BUGS, *KEPT_BUGS,
    *TEAM_BUGS,
    *USAGE_BUGS,
)  # fmt: skip
