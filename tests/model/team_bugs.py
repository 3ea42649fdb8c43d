"""Bugs of teams, their quotas and leases that end for others, that the model must find."""

from __future__ import annotations

from tests.model.planted import Bug


def _bug(
    name: str, old: str, new: str, often: str = "tug", *, seed: int = 1, functions: bool = False
) -> Bug:
    return Bug(name, ((old, new),), seed=seed, often=often, functions=functions)


TEAM_BUGS = (
    _bug("evictions do not protect", "* 1000 * 2 ^ times", "* 1000", often="relapse", seed=7742),
    _bug(
        "a renewal asks for more than its team may",
        "return asked_ms > 0 and asked_ms <= most_ms and asked_ms or most_ms",
        "return asked_ms",
        often="team",
        seed=262,
    ),
    _bug(
        "a team's sum stays after the end of a lease",
        "team.mb, team.leases, team.held = team.mb + mb,",
        "team.mb, team.leases, team.held = team.mb + math.max(0, mb),",
    ),
    _bug(
        "the cap of an API key is not counted",
        "if mb < least_mb then least_mb, party = mb, key end",
        "",
        often="team",
        seed=6166,
    ),
    _bug(
        "what is one's own comes by its share",
        "if not own then one.tier, one.share = 1, known.share end",
        "one.share = known.share",
    ),
    _bug(
        "shares are ignored",
        "if a.share ~= b.share then return a.share < b.share end",
        "",
        seed=3219,
    ),
    _bug(
        "use does not decay",
        "return use * left + mb *",
        "return use + mb *",
        often="team",
        seed=3530,
    ),
    _bug(
        "a team that comes back has all of its credit",
        "one[1].use = math.max(one[1].use, one[2] * floor)",
        "one[1].used = true",
        seed=8834,
    ),
    _bug(
        "the default team waits, and no other is behind it",
        "ipairs({ DEFAULT_TEAM, team })",
        "ipairs({ team })",
        often="upheaval",
        seed=5,
    ),
    _bug(
        "use of the default team begins with its next lease",
        "begin_at_zero(DEFAULT_TEAM)",
        "",
    ),
    _bug(
        "use of before there were policies counts",
        "if before == 0 or not teams[1] then",
        "if false then",
    ),
    _bug(
        "a half-life counts from a team's last change",
        "if fields.half_life_s and ctx.pool.teams > 0 then broker.accrue_all() end",
        "",
    ),
    _bug(
        "a team within its quota loses leases",
        "if goes or not only_free and beyond(w, over, v) >= v.quota_mb then",
        "if true then",
        seed=4031,
    ),
    _bug(
        "protection is ignored",
        "local mature, lower = ctx.now >= v.granted_ms + protected_ms,",
        "local mature, lower = true,",
        seed=8396,
    ),
    _bug(
        "equal priority ends leases of its own team",
        "and w.q.priority > v.priority",
        "and w.q.priority >= v.priority",
        seed=5917,
    ),
    _bug(
        "a head asks too early",
        "or ctx.now - w.enqueued_ms < after_ms then return false end",
        "then return false end",
        seed=4937,
    ),
    _bug(
        "a notice outlives its waiter",
        "if w.preempts and w.preempts ~= '' then broker.preemption.withdraw(w) end",
        "",
        seed=55,
    ),
    _bug(
        "a notice outlives the quotas that it was given under",
        "set_pool('team_lend_limits', lends and 1 or 0) broker.preemption.withdraw_all()",
        "set_pool('team_lend_limits', lends and 1 or 0)",
        seed=12,
    ),
    _bug(
        "a revoked lease has its time again when its notice is withdrawn",
        "if ends_ms and ends_ms > expires_at_ms + 0 and not revoked then",
        "if ends_ms and ends_ms > expires_at_ms + 0 then",
        often="upheaval",
        seed=13,
    ),
    _bug(
        "what comes free goes to another",
        "alone = nil, owner and owner.preempts ~= ''",
        "alone = nil, false",
        seed=5822,
    ),
    _bug(
        "a lease that was noticed goes on",
        "local over = revoked and 'revoked' or preempt_at_ms and preempt_at_ms + 0 <= ctx.now and"
        " 'preempted' if over then",
        "local over = revoked and 'revoked' if over then",
        seed=1508,
    ),
    _bug(
        "a victim that has ended stands in its asker's way",
        "if at_ms + 0 <= ctx.now then broker.end_lease(",
        "if false then broker.end_lease(",
        often="relapse",
        seed=765,
    ),
    _bug(
        "a holder that never asks keeps its lease",
        "end_at(v.token, v.devices, ends_ms)",
        "",
        seed=3219,
    ),
    _bug(
        "a recovered lease has no time limit of its team",
        "if not hold_until_ms and default_ms > 0 then",
        "if false then",
        often="forgotten_tenure",
    ),
    _bug(
        "a shorter time ends a lease sooner than its holder knows",
        "until_ms = math.max(until_ms, expires_at_ms + 0)",
        "",
        often="favour",
    ),
    _bug(
        "a holder moves its time beyond its team's",
        "if of.max_hold_ms > 0 and by == '' then",
        "if false then",
        often="favour",
    ),
    _bug(
        "a wish is told to a holder that does not yield",
        "if yields ~= '1' then return reply('DECLINED') end",
        "",
        often="favour",
        seed=9731,
    ),
    _bug(
        "a limit of priority is not looked at",
        "if q.priority > of.max_priority then",
        "if false then",
        often="team",
        seed=4031,
    ),
    _bug(
        "a limit of waiters is not looked at",
        "return team.waiters >= of_team.max_waiters and team.name",
        "return nil",
        often="team",
        seed=600,
    ),
    _bug(
        "the straight path forgets the limits of a team",
        "or k.pool.teams > 0 and not within_policy(k, asked, team, t, memory_mb) then",
        "then",
        often="team",
        functions=True,
        seed=5016,
    ),
    _bug(
        "a grant forgets what its team has of the model",
        "broker.model_sums.count(q, d.model, mb)",
        "",
        often="models",
    ),
    _bug(
        "a release gives back to another model",
        "broker.model_sums.count(r, d.model, -mb)",
        "broker.model_sums.count(r, 'm1', -mb)",
        often="models",
    ),
    _bug(
        "a straight grant forgets the model",
        "has.mb = has.mb + mb local field",
        "has.mb = has.mb + math.min(0, mb) local field",
        often="models",
        functions=True,
    ),
    _bug(
        "what is held stays with the model that a device was of",
        "sums.count(x, d.model, -x.mb) sums.count(x, model, x.mb)",
        "",
        often="models",
        seed=12,
    ),
    _bug(
        "what is held under the policy before is not counted by model",
        "if x then add(x.team, '#model ', model, x.mb) end",
        "",
        often="models",
    ),
    _bug(
        "a request for any model gets one that its team has no quota of",
        "rooms[model] = broker.room(x, w and w.reservation_mb, nil, model)",
        "rooms[model] = NEVER",
        often="models",
    ),
    _bug(
        "a request for any model borrows where it need not",
        "for _, own in ipairs({ true, false }) do",
        "for _, own in ipairs({ false }) do",
        often="models",
        seed=3,
    ),
    _bug(
        "heads that a quota of a model holds back are not checked when it is less used",
        "if same then ctx.work[entry] = rank end",
        "",
        often="models",
        seed=8,
    ),
    _bug(
        "a capped waiter stays with a cap that holds it back no more",
        "if w.party.name ~= w.capped then queue.hold_back(w, w.party.name) end",
        "",
        often="upheaval",
    ),
    _bug(
        "a team within its quota of a model loses leases",
        "v.quota = broker.quota(v.team, sums, d.model)",
        "v.quota = broker.quota(v.team, sums, '*')",
        often="models",
        seed=10,
    ),
)
