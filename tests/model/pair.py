"""A pool and its model side by side: after each call they must say and hold the same."""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy
from math import isclose
from typing import TYPE_CHECKING, Any, NamedTuple

from agent_sdk.keys import TOMBSTONE_SHARDS
from agent_sdk.protocol.messages import Answer
from agent_sdk.protocol.replies import DEVICE_WORDS, each_renewal
from agent_sdk.state import tombstones
from tests.audit import audit
from tests.model.entries import DONE_MS, Entry, Reply, demand
from tests.model.liveness import Watch
from tests.model.model import Model
from tests.model.usage import check_usage

if TYPE_CHECKING:
    from tests.pools import Pool

START_US = 1_800_057_560_000_000
"""The beginning of each run, by the frozen clock: 40 s before midnight, in UTC."""

RECORD = (
    "state", "agent", "devices", "fence", "expires_at_ms", "rank", "reserved", "revoked",
    "hold_until_ms", "owner", "reservation_mb", "reservation_until_ms", "capped", "team",
    "preempts", "preempt_at_ms", "preempt_for", "preemptible", "evictions", "yields", "wanted",
)  # fmt: skip
DEVICE = (
    "host", "model", "state", "drained", "total_mb", "system_mb", "leased_mb", "withheld_mb",
    "unleased_mb", "leases", "exclusive", "reserved_for",
)  # fmt: skip

LOOK = f"""#!lua flags=no-writes
local P, call, records, devices, keys = KEYS[1] .. ':', redis.call, {{}}, {{}}, {{}}
local ended = tonumber(string.sub(redis.sha1hex(ARGV[1]), 1, 4), 16) % {TOMBSTONE_SHARDS}
local deadlines = call('ZRANGE', P .. 'deadlines', 0, -1, 'WITHSCORES')
for i = 1, #deadlines, 2 do
  if string.sub(deadlines[i], 1, 5) ~= 'host:' then
    local v = call('HMGET', P .. 'record:' .. deadlines[i], {str(RECORD)[1:-1]})
    local member = deadlines[i]
    local by = v[{RECORD.index("capped") + 1}]
    local there = by and call('ZSCORE', P .. 'capped:' .. by, member) and 1 or 0
    records[#records + 1] = {{ deadlines[i], v, there }}
  end
end
for i = 3, #ARGV do
  devices[#devices + 1] = call('HMGET', P .. 'device:' .. ARGV[i], {str(DEVICE)[1:-1]})
end
for uuid in string.gmatch(call('HGET', P .. 'record:' .. ARGV[1], 'devices') or '', '([^,]+)=') do
  local key = P .. 'lease:' .. uuid .. ':' .. ARGV[1]
  keys[#keys + 1] = {{ call('GET', key), call('PTTL', key) }}
end
local events = call('XRANGE', P .. 'events', '(' .. ARGV[2], '+')
local pool = call('HMGET', P .. 'pool', 'fence', 'waiting', 'closed_until_ms', 'last_ms', 'lost_us',
  'window_until_ms', 'leap_from_ms', 'sweep_ms')
return {{ deadlines, records, devices, keys, call('HGETALL', P .. 'agents'),
  call('ZRANGE', P .. 'worklist', 0, -1), call('GET', P .. 'done:' .. ended), pool, events,
  call('ZRANGE', P .. 'drains', 0, -1) }}
"""
"""All that a pool holds, in one call: the named token and the devices are its arguments."""

SLACK_MS = 5000
"""Longest time of a step on a busy machine: lease keys live by the real clock."""


class Row(NamedTuple):
    """A record as the store has it."""

    state: str
    agent: str
    held: tuple[tuple[str, int], ...]
    fence: int
    expires_at_ms: int
    rank: int
    reserved: tuple[str, ...]
    revoked: bool
    hold_until_ms: int
    owner: str
    reservation: tuple[int, int]
    capped: str
    team: str
    preempts: tuple[str, ...]
    preempted: tuple[int, str]
    preemptible: bool
    evictions: int
    yields: bool
    wanted: str

    @classmethod
    def read(cls, token: str, row: list[str | None], listed: int) -> Row:
        state, agent, devices, fence, expires, rank, kept, revoked, hold, owner, *rest = row
        mb, until, capped, team, preempts, at_ms, whom, preemptible, evictions, *rest = rest
        demand((capped is not None) == (listed == 1), f"S2: {token} is not capped by {capped}")
        held, keeps = devices_of(devices or ""), sorted(filter(None, (kept or "").split(",")))
        return cls(
            state or "", agent or "", held, int(fence or 0), int(expires or 0), int(rank or 0),
            tuple(keeps), revoked is not None, int(hold or 0), owner or "",
            (int(mb or 0), int(until or 0)), capped or "", team or "default",
            tuple(filter(None, (preempts or "").split(","))), (int(at_ms or 0), whom or ""),
            preemptible == "1", int(evictions or 0), rest[0] == "1", rest[1] or "",
        )  # fmt: skip


def devices_of(text: str) -> tuple[tuple[str, int], ...]:
    """`uuid=mb,...` in order of the ids."""
    parts = (part.rpartition("=") for part in text.split(",") if part)
    return tuple(sorted((uuid, int(mb)) for uuid, _, mb in parts))


def fields(flat: list[str]) -> dict[str, str]:
    """Field and value in turn."""
    each = iter(flat)
    return dict(zip(each, each, strict=True))


ACTS = {"drained", "undrained", "policy", "teams", "driver_released", "driver_taken"}
"""Events of a verb itself that name no token: what comes before was handed on first."""


def names(event: dict[str, str], token: str) -> bool:
    """Is it of the verb that this token calls? Its notice is withdrawn by what another gets."""
    return event.get("token") == token and event["event"] != "preemption_withdrawn"


class Seen:
    """The scripts' choices, read from what they answered and left behind."""

    def __init__(self) -> None:
        self.backlog = self.again = self.waits = False
        self.pages = 0
        self.named = ""
        self.taken: tuple[str, ...] = ()
        self.early: list[str] = []
        self.offered: list[str] = []
        self.gave_up: set[str] = set()
        self.reserved: dict[str, tuple[str, ...]] = {}
        self.preempting: tuple[str, ...] = ()
        self.cleared: tuple[str, ...] = ()
        self.given: dict[str, tuple[str, ...]] = {}
        self.rows: dict[str, Row] = {}

    def look(
        self,
        named: str,
        reply: Reply,
        more: int,
        rows: dict[str, Row],
        events: list[dict[str, str]],
    ) -> None:
        """From now on the choices are those of this call, in the order in which it made them."""
        self.offered, self.given, own = [], {}, 0
        self.preempting = self.cleared = ()
        self.gave_up = {e["token"] for e in events if e["event"] == "reservation_ended"}
        kept = (e for e in events if e["event"] == "reserved")
        self.reserved = {e["token"]: tuple(e["devices"].split(",")) for e in kept}
        for number, event in enumerate(events):
            noticed = event["event"] == "preempting" and event["for"] == named
            if noticed:
                self.preempting = (*self.preempting, event["token"])
            elif event["event"] == "reserved" and event["token"] == named:
                self.cleared = tuple(event["devices"].split(","))
            if event["event"] == "offered":
                self.offered.append(event["token"])
                held = event["devices"].split(",")
                self.given[event["token"]] = tuple(part.rpartition("=")[0] for part in held)
            elif not own and (event["event"] in ACTS or names(event, named) or noticed):
                own, self.early = number + 1, list(self.offered)
        if not own:
            self.early = self.offered
        self.backlog, self.again = more == 1, reply[0] == "AGAIN"
        self.named, self.rows, self.waits = named, rows, reply[0] in {"WAITING", "AGAIN"}
        granted = reply[0] == "GRANTED"
        self.taken = tuple(uuid for uuid, _ in reply[5]) if granted else ()

    def grant(self, token: str, options: list[tuple[str, ...]]) -> tuple[str, ...] | None:
        if not self.taken:
            return None
        demand(self.taken in options, f"S1: {token} was granted {self.taken}, not of {options}")
        return self.taken

    def offer(self, model: Model) -> tuple[str, tuple[str, ...]] | None:
        if not any(e.state == "waiting" for e in model.entries.values()):
            return None
        for token in self.early:
            e, row = model.entries.get(token), self.rows.get(token)
            if token == self.named and self.waits:
                continue  # it was told to wait: what it has, it was offered afterwards
            if not e or e.state != "waiting":
                continue
            if row and row.state == "offered":
                devices = tuple(uuid for uuid, _ in row.held)
                return (token, devices) if model.may_offer(e, devices) else None
            if token == self.named and self.taken:  # offered and claimed by one script
                return (token, self.taken) if model.may_offer(e, self.taken) else None
            if token == self.named and not row:  # offered, and then left
                devices = self.given[token]
                return (token, devices) if model.may_offer(e, devices) else None
        return None

    def later(self, token: str) -> bool:
        return token == self.named and self.waits and token in self.offered

    def caps(self, token: str) -> bool:
        """Tell whether it was capped; one that gave up its reservation was so only after that."""
        capped = token in self.rows and self.rows[token].capped
        return bool(capped) and token not in self.gave_up

    def preempt(self, token: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        if token != self.named or not self.preempting:
            return None
        return self.preempting, self.cleared

    def keep(self, token: str, options: list[tuple[str, ...]]) -> tuple[str, ...]:
        if token not in self.rows or self.rows[token].state != "waiting":  # in the same script
            return self.reserved.get(token, ())
        return self.rows[token].reserved


class Pair:
    """One pool on the server and its model."""

    def __init__(self, pool: Pool, pages: int = 0) -> None:
        self.pool, self.seen, self.last_event, self.most_mb = pool, Seen(), "0", 0
        self.watch, self.seen.pages = Watch(), pages
        self.worklist: list[str] = []
        self.model = Model(self.seen, START_US, way=pool.way)
        self.look = pool.redis.script_load(LOOK)
        self.clock(START_US)

    def clock(self, raw_us: int) -> None:
        """Set the server's clock, as this pool's scripts see it."""
        self.model.raw_us = raw_us
        self.pool.redis.set(f"{self.pool.keys.base}:test_frozen_us", raw_us)

    def call(self, verb: str, wire: tuple[Any, ...], named: str = "", **args: Any) -> Reply:
        """Run a verb on both sides, compare what they say and what they hold; what it said."""
        model, uuids = self.model, sorted(self.model.devices)
        uuids = sorted({*uuids, *args.get("devices", ())} if verb == "report" else uuids)
        pipe = self.pool.redis.pipeline(transaction=False)
        pipe.execute_command(*self.pool.command(verb), 1, *wire)
        pipe.evalsha(self.look, 1, self.pool.keys.base, named, self.last_event, *uuids)
        raw, found = pipe.execute()
        reply = said(raw)
        if reply[0] == "REFUSED" and reply[1] in {"host_unknown", "device_unknown"}:
            reply[2] = ""  # which name is nearly so
        rows = {token: Row.read(token, row, listed) for token, row, listed in found[1]}
        before = {e.queue_id: e.token for e in model.heads()} if model.entries else {}
        load = {uuid: x.leased_mb for uuid, x in model.loads().items()}
        had_more = {party for e in model.entries.values() for party in e.parties
                    if model.holds(party, e.reservation_mb)}  # fmt: skip
        size = {uuid: d.total_mb - d.system_mb for uuid, d in model.devices.items()}
        self.most_mb = max(self.most_mb, sum(size.values()))
        had = model.entries[named].fence if named in model.entries else 0
        fresh = reply[0] == "GRANTED" and reply[1] != had
        events = [fields(flat) for _, flat in found[8]]
        self.last_event = found[8][-1][0] if found[8] else self.last_event
        self.seen.look(named, reply, raw[4], rows, events)
        ends = (at for at, _ in model.deadlines() if at < raw[1])
        over = any(raw[1] >= model.window_until_ms or at <= model.leap_from_ms for at in ends)
        if verb == "report" and not self.worklist and not over:
            self.seen.early = []  # nothing was left or over: what it handed on, it brought itself
        elif verb == "report" and self.seen.offered:
            self.seen.early = self._early(dict(zip(uuids, found[2], strict=True)), rows, args)
        self.worklist = found[5]
        expected = getattr(model, verb)(**args)
        self.seen.waits, self.seen.early = False, self.seen.offered
        model.schedule()
        same = reply == expected or (
            self.seen.backlog and reply[0] == expected[0] in {"WAITING", "REFUSED"}
        )
        if reply[0] == expected[0] == "WAITING":  # some may have been capped since
            same = same or expected[1] <= reply[1] <= expected[1] + model.capped_now
        demand(same, f"{verb} {args} said {reply}, not {expected}")
        self._capped(rows, had_more)
        if verb not in {"set_policy", "set_teams"}:
            for e in model.heads():
                if before.get(e.queue_id) != e.token:
                    e.blind = False
        early = reply[0] == "REFUSED" and (
            reply[1] == "not_ready"
            or verb in {"drain", "set_policy", "set_teams", "forget", "release_driver"}
        )
        if not early:
            self._frame(verb, raw, found[5])
            self._due_offers(set(found[5]))
        self._compare(found, rows, uuids, named, set_anew=reply[0] == "RENEWED" or fresh)
        for uuid, x in model.loads().items():
            d = model.devices[uuid]
            most = max(d.total_mb - d.system_mb, size.get(uuid, 0))  # a report may shrink it
            grew = x.leased_mb > load.get(uuid, 0)
            demand(not grew or x.leased_mb <= most, f"S1: {uuid} is over-full")
        self.watch.look(model)
        return reply

    def _early(
        self, devices: dict[str, list[str]], rows: dict[str, Row], args: dict[str, Any]
    ) -> list[str]:
        """Offers of a report that it made before it accepted its devices.

        Of several, one script may make some before that and some after it; no event says which.
        What is unleased and what a whole device holds differ, so it is read from them.
        """
        offered = self.seen.offered
        for number in range(len(offered), -1, -1):
            self.seen.early = offered[:number]
            trial = deepcopy(self.model)
            with suppress(AssertionError):
                trial.report(**args)
                trial.choose.early = offered
                trial.schedule()
                same = [
                    *(str(d.unleased_mb) == devices[uuid][8] for uuid, d in trial.devices.items()),
                    *(tuple(sorted(trial.entries[t].held)) == rows[t].held for t in offered),
                ]
                if all(same):
                    return self.seen.early
        return offered

    def _frame(self, verb: str, raw: list[Any], worklist: list[str]) -> None:
        model, ends = self.model, self.model.deadlines()
        demand(raw[1] == model.now, f"clock: now is {raw[1]}, not {model.now}")
        self._check_next_deadline(verb, raw, ends[0][0] if ends else "")
        demand(raw[3] == str(model.epoch), "the epoch is another")
        demand(raw[4] == 1 or not model.more, "more is over than was reaped, and nobody is told")
        waiting = any(e.state == "waiting" for e in model.entries.values())
        told = raw[4] == 1 or model.shut
        demand(told or not (worklist and waiting), "S11: work is left, and nobody is told")

    def _check_next_deadline(self, verb: str, raw: list[Any], first: int | str) -> None:
        """Nothing is due before; reap looks, so it says when the first is, if nobody waits."""
        model, said = self.model, raw[2]
        waiting = any(e.state in {"waiting", "offered"} for e in model.entries.values())
        exact = said == "" or (verb == "reap" and not waiting)
        earlier = not exact and (first == "" or said < first)
        demand(said == first or earlier, f"next_deadline_ms is {said}: {first}")
        looked = said == "" or said >= model.now or raw[4] == 1
        demand(looked or model.now < model.window_until_ms, f"L2: {said} is past, and none looked")

    def _capped(self, rows: dict[str, Row], had_more: set[str]) -> None:
        """Take over which waiters are capped: the scripts decide, within what it is for.

        One call may cap more waiters than come back at once when it ends what their agent had.
        """
        model = self.model
        for e in model.entries.values():
            row = rows.get(e.token)
            if e.state == "waiting" and row and row.capped != e.capped:
                demand(row.capped, f"{e.token} is capped no more, and its agent's sum did not fall")
                once = model.capped_once.get(e.token, set())  # scripts cap it at any such moment
                right = not e.capped or row.capped in once
                demand(right, f"L1: {e.token} is capped by {row.capped}, not {e.capped}")
                demand(row.capped in model.cap_names(e), f"L1: {e.token} is capped by {row.capped}")
                full = model.held_back(e, model.room_of(e)) or e.token in model.held_back_once
                more = model.has_more(e) or had_more & set(e.parties)
                demand(full and more, f"L1: {e.token} is capped under its cap")
                model.set_capped(e, row.capped)

    def _due_offers(self, worklist: set[str]) -> None:
        if not any(e.state == "waiting" for e in self.model.entries.values()):
            return
        for token, devices in self.model.due_offers():
            queued = f"queue:{self.model.entries[token].queue_id}" in worklist
            queued = queued or any(f"device:{uuid}" in worklist for uuid in devices)
            demand(queued, f"S11, L1: {token} is first, could be given {devices}, and waits")

    def _compare(
        self,
        found: list[Any],
        rows: dict[str, Row],
        uuids: list[str],
        named: str,
        *,
        set_anew: bool,
    ) -> None:
        """S2 and S4 and the rest: the store holds what the model holds."""
        model = self.model
        if not model.exists:
            demand(not rows, "a pool that is not there has leases")
            return
        ends = iter(found[0])
        deadlines = {member: int(at) for member, at in zip(ends, ends, strict=True)}
        expected = {member: at for at, member in model.deadlines()}
        demand(deadlines == expected, f"deadlines: {sorted(deadlines.items() ^ expected.items())}")
        for token, e in model.entries.items():
            self._compare_entry(rows[token], e)
        for uuid, row in zip(uuids, found[2], strict=True):
            self._compare_device(uuid, row)
        self._compare_parties(found[4])
        if named:
            self._compare_named(named, found, set_anew=set_anew)
        fence, waiting, closed_until_ms, last_ms, *lost, sweep_ms = (int(v or 0) for v in found[7])
        demand(fence == model.fence, f"S3: the fence is {fence}, not {model.fence}")
        waiters = sum(e.state == "waiting" for e in model.entries.values())
        demand(waiting == waiters, f"S2: {waiting} wait, not {waiters}")
        demand(closed_until_ms == model.closed_until_ms, f"closed until {closed_until_ms}")
        demand(last_ms == model.now, f"clock: {last_ms}, not {model.now}")
        mine = [model.lost_us, model.window_until_ms, model.leap_from_ms]
        demand(lost == mine, f"loss, and until when what is reaped: {lost}, not {mine}")
        drains = set(found[9])
        demand(sweep_ms == model.sweep_ms, f"the next look is at {sweep_ms}, not {model.sweep_ms}")
        demand(drains == model.drains, f"drains that are kept: {drains}, not {model.drains}")

    def _compare_parties(self, flat: list[str]) -> None:
        """S2, Q2: sums by party, and what teams have used."""
        model, theirs, mine = self.model, fields(flat), dict[str, str]()
        uses = {name: theirs.pop(name) for name in list(theirs) if name.endswith("#use")}
        for party in {party for e in model.entries.values() for party in e.parties}:
            mb, leases, waiters, reserved_mb = model.party(party)
            mine |= {party: str(mb), f"{party}#leases": str(leases)} if leases else {}
            mine |= {f"{party}#waiters": str(waiters)} if waiters else {}
            mine |= {f"{party}#reserved": str(reserved_mb)} if reserved_mb else {}
        for team, of in model.teams.items():
            for name, *_ in of.models:
                quota, party = model.quota(team, name), f"team {team}"
                mine |= {f"{party}#model {name}": str(quota.mb)} if quota.mb else {}
                mine |= (
                    {f"{party}#reserved {name}": str(quota.reserved_mb)}
                    if quota.reserved_mb
                    else {}
                )
        demand(theirs == mine, f"S2: parties: {sorted(theirs.items() ^ mine.items())}")
        names = {f"team {team}#use" for team in model.use}
        demand(names == uses.keys(), f"Q2: uses of {sorted(uses)}, not of {sorted(names)}")
        for team, (use, at_ms) in model.use.items():
            said, _, said_ms = uses[f"team {team}#use"].partition("@")
            same = isclose(float(said), use, rel_tol=1e-9, abs_tol=1e-6)
            same = same and int(said_ms) == at_ms
            demand(same, f"Q2: team {team} used {said}@{said_ms}, not {use}@{at_ms}")

    def _compare_entry(self, row: Row, e: Entry) -> None:
        held = tuple(sorted(e.held))
        mine = [e.state, e.ask.agent, e.ask.team, held, e.revoked, e.hold_until_ms, e.owner]
        theirs = [
            row.state, row.agent, row.team, row.held, row.revoked, row.hold_until_ms, row.owner
        ]  # fmt: skip
        if e.state in {"active", "cooling"}:
            mine += [e.fence, e.expires_at_ms, e.preemptible, e.evictions, e.yields, e.wanted]
            theirs += [row.fence, row.expires_at_ms, row.preemptible, row.evictions]
            theirs += [row.yields, row.wanted]
            mine += [(e.preempt_at_ms, e.preempt_for)]
            theirs += [row.preempted]
        elif e.state == "waiting":
            reservation = (e.reservation_mb, e.until_ms if e.reserved else 0)
            mine += [e.rank, tuple(sorted(e.reserved)), reservation, e.capped, e.preempts]
            theirs += [row.rank, row.reserved, row.reservation, row.capped, row.preempts]
        demand(mine == theirs, f"{e.token} is {theirs}, not {mine}")

    def _compare_device(self, uuid: str, row: list[str]) -> None:
        if uuid not in self.model.devices:
            return demand(not any(row), f"S2: {uuid} is forgotten, and there: {row}")
        demand(row[0] is not None, f"S2: {uuid} is forgotten, and should be there")
        d, x = self.model.devices[uuid], self.model.loads()[uuid]
        mine = (
            d.host, d.model, d.state, str(int(d.drained)), d.total_mb, d.system_mb, x.leased_mb,
            d.withheld_mb, d.unleased_mb, x.leases, x.exclusive, x.reserved_for,
        )  # fmt: skip
        theirs = (*row[:4], *(int(v) for v in row[4:10]), *row[10:])
        return demand(mine == theirs, f"S2: {uuid} is {theirs}, not {mine}")

    def compare_each(self, answers: dict[str, Reply]) -> None:
        """Look at the end and the lease keys of each token of a call that named several."""
        for named, answer in answers.items():
            found = self.pool.redis.evalsha(
                self.look, 1, self.pool.keys.base, named, self.last_event
            )
            self._compare_named(named, found, set_anew=answer[0] == "RENEWED")

    def _compare_named(self, named: str, found: list[Any], *, set_anew: bool) -> None:
        model = self.model
        done = model.ended(named) if named not in model.entries else ""
        over = tombstones.ended(found[6], named)
        there = over.outcome if over and model.now < over.at_ms + DONE_MS else ""
        demand(there == done, f"S4: {named} is told to be {there}, not {done}")
        self._compare_keys(named, found[3], set_anew=set_anew)

    def _compare_keys(self, named: str, keys: list[list[Any]], *, set_anew: bool) -> None:
        """S5, S7: each device's lease key has the fence, and lives as long as the lease."""
        e = self.model.entries.get(named)
        live = e is not None and e.state == "active"
        for value, ttl_ms in keys:
            demand(value is None or live, f"S4: {named} has a lease key")
            if not e or not live:
                continue
            demand(value in {None, str(e.fence)}, f"S5: {named} has a lease key of {value}")
            left_ms = e.expires_at_ms - self.model.now
            if set_anew and left_ms > 0:  # else it has lived on by the real clock
                demand(ttl_ms <= left_ms, f"S7: {named}'s key outlives it")
                demand(ttl_ms > left_ms - SLACK_MS, f"S5: {named}'s key ends before it")

    def audit(self) -> None:
        """All that one look at the whole key space shows."""
        if self.model.exists:
            audit(self.pool.redis, self.pool.keys, self.most_mb)
            check_usage(self.pool, self.model)


def said(raw: list[Any]) -> Reply:
    """A reply without its frame, as the model says it."""
    tag, rest = raw[0], raw[5:]
    if tag == "OUTCOMES":
        return [tag, *(row[:1] + row[5:] for row in each_renewal(Answer(raw, 0.0)))]
    if tag == "GRANTED":
        fence, expires_at_ms, left_ms, reason, *flat = rest
        held = sorted((flat[i], int(flat[i + 1])) for i in range(0, len(flat), DEVICE_WORDS))
        return [tag, int(fence), expires_at_ms, left_ms, reason, held]
    return [tag, *rest]
