-- preemption: leases that must end for a head that has a right to their memory.
--
-- Of a head that has waited `reclaim_after_s` (0 = nothing is ever taken back), and that stays
-- within its team's nominal quota with what it asks, the pool notices leases of teams that hold
-- more than theirs. Leases of its own team with a lower priority go too, and those that were taken
-- as preemptible. No lease is noticed within `min_runtime_s` of its grant, twice as long for each
-- time that its job was preempted before, but a preemptible one.
--
-- Which: on actual devices, as few as make room, none if they do not; of lowest priority first,
-- then the youngest; of a team only what it holds beyond its quota, and one lease across that line
-- if there is no other way. The devices are reserved for the head: what comes free is its own, and
-- it has one such set at most, by the quotas that stand.
--
-- A notice is a fact of the lease's record, `preempt_at_ms`: each renewal tells it, and from then
-- on the next one ends the lease (`preempted`); a holder that never asks has a minute more. Its
-- memory is free when its host or the grace of expiry says so, as after a revoke. If the head gets
-- what it asks another way, or leaves, notices that are still open are withdrawn.
--
--   preempting        token of a lease that is noticed -> its team, and its MiB; of the waiter ->
--                     `for`, its team, and the MiB that come for it
--   evicted:<token>   how often the job of a lease that was preempted has been so; for a week, or
--                     until another goes on with it
--
-- That a head is within its quota is what makes an end of it: each such set lowers what teams
-- borrow. What is coming for another waiter of its team counts as the team's already.
--
-- lib/victims.lua chooses.

local LATEST_MS = 60000                     -- for a holder that never asks, after its time
local DEVICES_READ, GROUPS_READ = 16, 4      -- by one poll
local A_WEEK_MS = 604800000

local preemption = {}
broker.preemption = preemption

-- The next page of groups of devices that w may look at, and where the one after it begins.
local function page_of(w)
  local q, at = w.q, w.preempt_seen
  if q.devices > 1 then
    local groups = broker.reservations.groups_from(q, at, GROUPS_READ)
    local found = {}
    for i, group in ipairs(groups) do
      found[i] = call('ZRANGE', prefix .. 'fits:host/' .. group, text(q.memory_mb), '+inf',
        'BYSCORE', 'LIMIT', '0', text(DEVICES_READ))
    end
    return found, #groups == GROUPS_READ and at + GROUPS_READ or 0
  end
  local of = q.host ~= '*' and q.model ~= '*' and 'host/' .. q.host .. '/' .. q.model
    or broker.selector(q)
  local ids = call('ZRANGE', prefix .. 'fits:' .. of, text(q.memory_mb), '+inf', 'BYSCORE',
    'LIMIT', text(at), text(DEVICES_READ))
  return { ids }, #ids == DEVICES_READ and at + DEVICES_READ or 0
end

-- Sets of leases, one for each device that w would get; nil: it may not ask, or none make room.
local function choose(w)
  if not broker.victims.may_ask(w) then return nil end
  broker.flush()
  local pages, seen = page_of(w)
  if seen ~= w.preempt_seen then
    call('HSET', prefix .. 'record:' .. w.token, 'preempt_seen', text(seen))
  end
  local best, fewest
  for _, ids in ipairs(pages) do
    local chosen, count = broker.victims.best_of(w, ids), 0
    for _, set in ipairs(chosen or {}) do count = count + set.count end
    if count > 0 and (not best or count < fewest) then best, fewest = chosen, count end
  end
  return best
end

local function end_at(token, devices, ends_ms)
  call('HSET', prefix .. 'record:' .. token, 'expires_at_ms', text(ends_ms))
  set_deadline(token, ends_ms)
  for uuid in string.gmatch(devices, '([^,]+)=') do
    call('PEXPIRE', prefix .. 'lease:' .. uuid .. ':' .. token, text(ends_ms - ctx.now))
  end
end

local function notice(w, v, at_ms)
  local record = prefix .. 'record:' .. v.token
  local ends_ms = math.min(v.expires_at_ms, math.max(at_ms, ctx.now) + LATEST_MS)
  call('HSET', record, 'preempt_at_ms', text(at_ms), 'preempt_for', w.token, 'preempt_by', w.agent,
    'preempt_team', w.team)
  if ends_ms < v.expires_at_ms then
    call('HSET', record, 'preempt_ended_ms', text(v.expires_at_ms))
    end_at(v.token, v.devices, ends_ms)
  end
  call('HSET', prefix .. 'preempting', v.token, v.team .. ' ' .. text(v.mb))
  broker.count('noticed')
  broker.event('preempting', 'token', v.token, 'agent', v.agent, 'devices', v.devices, 'team',
    v.team, 'for', w.token, 'for_agent', w.agent, 'for_team', w.team, 'at_ms', text(at_ms),
    'reason', v.free and v.team == w.team and 'priority' or v.free and 'preemptible' or 'quota')
end

-- A head that fits nowhere: notice what must end for it. Was it done?
function preemption.consider(w)
  local after_ms = broker.policy_of('reclaim_after_s') * 1000
  if after_ms == 0 or w.preempts ~= '' or ctx.now - w.enqueued_ms < after_ms then return false end
  local best = choose(w)
  if not best then return false end
  local devices, victims = {}, {}
  for i, set in ipairs(best) do
    devices[i] = set.d
    for token, v in pairs(set.chosen) do victims[token] = v end
  end
  if w.reserved ~= '' then broker.reservations.cancel(w) end
  set_pool('noticed_ms', ctx.now)   -- keepers look at it: those of victims renew, and are told
  local at_ms, names = ctx.now + broker.policy_of('preempt_grace_s') * 1000, {}
  for token, v in pairs(victims) do names[#names + 1] = token end
  table.sort(names)
  for _, token in ipairs(names) do notice(w, victims[token], at_ms) end
  w.preempts = table.concat(names, ',')
  call('HSET', prefix .. 'record:' .. w.token, 'preempts', w.preempts)
  broker.reservations.reserve(w, devices, at_ms + 2 * LATEST_MS
    + broker.policy_of('expiry_grace_s') * 1000)
  call('HSET', prefix .. 'preempting', w.token, 'for ' .. w.team .. ' ' .. text(w.reservation_mb))
  return true
end

-- Withdraw what is still noticed for a waiter: each lease has the time that it had before, too, but
-- for what an operator has taken of it meanwhile.
function preemption.withdraw(w)
  for token in string.gmatch(w.preempts, '[^,]+') do
    local record = prefix .. 'record:' .. token
    local state, of, agent, devices, expires_at_ms, ended_ms, revoked, hold_until_ms, team =
      unpack(call('HMGET', record, 'state', 'preempt_for', 'agent', 'devices', 'expires_at_ms',
      'preempt_ended_ms', 'revoked', 'hold_until_ms', 'team'))
    if state == 'active' and of == w.token then
      call('HDEL', record, 'preempt_at_ms', 'preempt_for', 'preempt_by', 'preempt_team',
        'preempt_ended_ms')
      call('HDEL', prefix .. 'preempting', token)
      local ends_ms = ended_ms and math.min(ended_ms + 0, (hold_until_ms or NEVER) + 0)
      if ends_ms and ends_ms > expires_at_ms + 0 and not revoked then
        end_at(token, devices, ends_ms)
      end
      broker.count('notices_withdrawn')
      broker.event('preemption_withdrawn', 'token', token, 'agent', agent, 'for', w.token,
        team_of({ team = team }))
    elseif state ~= 'active' then   -- it ended in another way than by its notice
      call('HDEL', prefix .. 'preempting', token)
    end
  end
  w.preempts = ''
  call('HDEL', prefix .. 'record:' .. w.token, 'preempts')
  call('HDEL', prefix .. 'preempting', w.token)
end

-- Quotas have changed, or nothing is taken back any more: what was noticed by the rules before is
-- withdrawn. A head with a right by the new ones asks anew at its next poll.
function preemption.withdraw_all()
  local rows = call('HGETALL', prefix .. 'preempting')
  for i = 1, #rows, 2 do
    local w = find(rows[i + 1], 'for ', 1, true) == 1 and broker.queue.read(rows[i])
    if w then broker.reservations.cancel(w) end
  end
end

-- The holder that recovers w's grant was given what its victims had, and the pool forgot their ends
-- with the grant. Of those in its way on d, end the ones whose notice is over. Is there one that
-- still has time?
function preemption.give_way(w, d, granted_us)
  local pending = false
  for token in string.gmatch(w.preempts, '[^,]+') do
    local state, of, at_ms, agent, owner, team, devices, fence, granted_at_ms, enqueued_ms =
      unpack(call('HMGET', prefix .. 'record:' .. token, 'state', 'preempt_for', 'preempt_at_ms',
      'agent', 'owner', 'team', 'devices', 'fence', 'granted_at_ms', 'enqueued_ms'))
    if state == 'active' and of == w.token and fence + 0 < granted_us
      and find(devices, d.uuid .. '=', 1, true) then
      if at_ms + 0 <= ctx.now then
        broker.end_lease({ token = token, agent = agent, owner = owner, team = team,
          devices = devices, fence = fence, granted_at_ms = granted_at_ms,
          enqueued_ms = enqueued_ms, ended_at_ms = at_ms + 0 }, 'preempted')
      else
        pending = true
      end
    end
  end
  return pending
end

-- Sums fell: check the heads for which leases end; of many those whose turn it is. No cap takes
-- them out of their queues, so what they have no room for may be free.
function preemption.recheck()
  local rows, heads = call('HGETALL', prefix .. 'preempting'), {}
  for i = 1, #rows, 2 do
    if find(rows[i + 1], 'for ', 1, true) == 1 then heads[#heads + 1] = rows[i] end
  end
  for _, token in ipairs(broker.some_of(heads)) do
    local id, rank = unpack(call('HMGET', prefix .. 'record:' .. token, 'queue_id', 'rank'))
    if id and broker.queue.ids(string.match(id, '^[^/]*/[^/]*'))[id] == rank + 0 then
      ctx.work['queue:' .. id] = rank + 0
    end
  end
end

-- A lease ends by its notice: remember that its job has been preempted once more.
function preemption.remember(token)
  local evictions = (call('HGET', prefix .. 'record:' .. token, 'evictions') or 0) + 1
  call('HDEL', prefix .. 'preempting', token)
  call('SET', prefix .. 'evicted:' .. token, text(evictions), 'PX', text(A_WEEK_MS))
end

-- A lease goes on with the job of one that was preempted, as one only may: it is protected for
-- longer.
function preemption.go_on(record, after)
  local evictions = call('GETDEL', prefix .. 'evicted:' .. after)
  if evictions then call('HSET', record, 'evictions', evictions) end
end
