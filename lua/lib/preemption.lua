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
-- it has one such set at most.
--
-- A notice is a fact of the lease's record, `preempt_at_ms`: each renewal tells it, and from then
-- on the next one ends the lease (`preempted`); a holder that never asks has a minute more. Its
-- memory is free when its host or the grace of expiry says so, as after a revoke. If the head gets
-- what it asks another way, or leaves, notices that are still open are withdrawn.
--
--   preempting        hash: token of a lease that is noticed -> its team, and its MiB
--   evicted:<token>   how often the job of a lease that was preempted has been so; for a week, or
--                     until another goes on with it
--
-- That a head is within its quota is what makes an end of it: each such set lowers what teams
-- borrow.

local LATEST_MS = 60000                     -- for a holder that never asks, after its time
local DEVICES_READ, HOLDERS_READ, GROUPS_READ = 16, 16, 4   -- by one poll
local DOUBLINGS = 6                         -- protection grows to 64 times `min_runtime_s`
local A_WEEK_MS = 604800000

local preemption, queue = {}, broker.queue
broker.preemption = preemption

local function priority_of(request)
  return (string.match(request, '^[^|]*|[^|]*|[^|]*|[^|]*|[^|]*|(%d)|') or 0) + 0
end

-- A lease that may be noticed for w, or nil.
local function victim(w, token, d)
  local state, agent, owner, team, request, devices, granted_at_ms, preemptible, evictions,
    preempt_at_ms, revoked, expires_at_ms = unpack(call('HMGET', prefix .. 'record:' .. token,
    'state', 'agent', 'owner', 'team', 'request', 'devices', 'granted_at_ms', 'preemptible',
    'evictions', 'preempt_at_ms', 'revoked', 'expires_at_ms'))
  if state ~= 'active' or preempt_at_ms or revoked then return nil end
  local v = { token = token, agent = agent, owner = owner, team = team or DEFAULT_TEAM,
    priority = priority_of(request), granted_ms = granted_at_ms + 0, devices = devices, mb = 0,
    here_mb = 0, expires_at_ms = expires_at_ms + 0 }
  for uuid, mb in string.gmatch(devices, '([^,]+)=(%d+)') do
    v.mb = v.mb + mb
    if uuid == d.uuid then v.here_mb = mb + 0 end
  end
  local times = math.min(DOUBLINGS, (evictions or 0) + 0)
  local protected_ms = broker.policy_of('min_runtime_s') * 1000 * 2 ^ times
  local mature, lower = ctx.now >= v.granted_ms + protected_ms, v.team == w.team
    and w.q.priority > v.priority
  if preemptible == '1' then
    v.free, v.lower = w.own or lower, lower
    return v.free and v or nil
  end
  if not mature or ctx.pool.teams == 0 then return nil end
  if lower then
    v.free, v.lower = true, true
    return v
  end
  return w.own and v.team ~= w.team and v or nil
end

-- Is v the better one to go?
local function goes_first(a, b)
  if a.priority ~= b.priority then return a.priority < b.priority end
  if a.granted_ms ~= b.granted_ms then return a.granted_ms > b.granted_ms end
  return a.token < b.token
end

-- MiB of each team that are noticed already, for any waiter.
local function leaving()
  local rows, found = call('HGETALL', prefix .. 'preempting'), {}
  for i = 1, #rows, 2 do
    local team, mb = string.match(rows[i + 1], '^([^ ]+) (%d+)$')
    local state, at_ms = unpack(call('HMGET', prefix .. 'record:' .. rows[i], 'state',
      'preempt_at_ms'))
    if state == 'active' and at_ms then
      found[team] = (found[team] or 0) + mb
    else   -- it ended in another way
      call('HDEL', prefix .. 'preempting', rows[i])
    end
  end
  return found
end

-- What a team holds beyond its nominal quota, but for what is noticed or has been chosen.
local function beyond(w, over, v)
  if not over.mb[v.team] then
    local _, _, sums = broker.parties(v)
    w.leaving = w.leaving or leaving()
    over.mb[v.team] = sums.mb - (w.leaving[v.team] or 0) - broker.team_policy(v.team).nominal_mb
  end
  return over.mb[v.team]
end

-- A lease of several devices is chosen for each of them, and counts once.
local function choose_victim(w, set, over, v, sign)
  local times = (over.times[v.token] or 0) + sign
  if times == 0 or times == 1 and sign > 0 then
    over.mb[v.team] = beyond(w, over, v) - sign * v.mb
  end
  over.times[v.token] = times
  set.gone_mb, set.chosen[v.token] = set.gone_mb + sign * v.here_mb, sign > 0 and v or nil
end

-- The leases of d that end for w, few and the right ones, beside those that are `chosen` already;
-- nil: they cannot make room.
local function clear_device(w, d, over)
  local q, whole = w.q, broker.whole(w.q)
  local tokens = call('SCARD', prefix .. 'holders:' .. d.uuid) <= HOLDERS_READ
    and call('SMEMBERS', prefix .. 'holders:' .. d.uuid) or {}
  local may, set = {}, { d = d, gone_mb = 0, chosen = {}, straddles = 0, mb = 0, count = 0,
    priority = -1, granted_ms = math.huge }
  for _, token in ipairs(tokens) do
    local v = victim(w, token, d)
    if v then may[#may + 1] = v end
  end
  table.sort(may, goes_first)
  local alone = whole or d.exclusive ~= '' or d.one_lease ~= ''
  local left = d.leases
  local function enough()
    if alone and left > 0 then return false end
    return d.free_mb + d.withheld_mb + set.gone_mb >= q.memory_mb
  end
  local order = {}
  local function choose(v)
    choose_victim(w, set, over, v, 1)
    order[#order + 1], left = v, left - 1
  end
  local function undo()
    for _, v in ipairs(order) do
      if set.chosen[v.token] then choose_victim(w, set, over, v, -1) end
    end
    order, left = {}, d.leases
  end
  local function add(only_free)
    for _, v in ipairs(may) do
      if enough() then return end
      local goes = v.free or over.times[v.token] == 1
      if goes or not only_free and beyond(w, over, v) >= v.mb then choose(v) end
    end
  end
  -- One lease across the line, if it is the last that is needed
  local function straddle()
    for _, v in ipairs(may) do
      if enough() then return end
      if not set.chosen[v.token] and beyond(w, over, v) > 0 then
        choose(v)
        if enough() then
          set.straddles = 1
        else
          choose_victim(w, set, over, v, -1)
          order[#order], left = nil, left + 1
        end
      end
    end
  end
  add(false)
  straddle()
  if not enough() then   -- what was chosen first may be what leaves no room for the one
    undo()
    add(true)
    straddle()
  end
  if not enough() then
    undo()
    return nil
  end
  for i = #order - 1, 1, -1 do   -- put back what was not needed, but for the last one
    local v = order[i]
    choose_victim(w, set, over, v, -1)
    left = left + 1
    if not enough() then
      choose_victim(w, set, over, v, 1)
      left = left - 1
    end
  end
  for _, v in pairs(set.chosen) do
    set.mb, set.count = set.mb + v.mb, set.count + 1
    set.priority = math.max(set.priority, v.priority)
    set.granted_ms = math.min(set.granted_ms, v.granted_ms)
  end
  set.undo = undo
  return set
end

local function cheaper(a, b)
  for _, by in ipairs({ 'straddles', 'priority', 'count', 'mb' }) do
    if a[by] ~= b[by] then return a[by] < b[by] end
  end
  if a.granted_ms ~= b.granted_ms then return a.granted_ms > b.granted_ms end   -- the youngest
  return a.d.uuid < b.d.uuid
end

-- May w have these devices once the leases that are chosen for them have ended? Whole devices count
-- as they are, and what ends leaves the caps of its own parties room.
local function acceptable(w, sets)
  local charge_mb, gone, seen = 0, {}, {}
  for _, set in ipairs(sets) do
    charge_mb = charge_mb + broker.reservations.charge(w, set.d)
  end
  local within = ctx.pool.teams > 0 and broker.within_nominal(w, charge_mb)
  for _, set in ipairs(sets) do
    for token, v in pairs(set.chosen) do
      if not within and not v.lower then return false end
      local agent, key, team = broker.parties(v)
      for _, a in ipairs(seen[token] and {} or { agent, team, key }) do
        local sums = gone[a.name] or { mb = 0, leases = 0 }
        gone[a.name], sums.mb, sums.leases = sums, sums.mb + v.mb, sums.leases + 1
      end
      seen[token] = true
    end
  end
  return charge_mb <= broker.room(w, w.reservation_mb, gone)
end

local function nothing_chosen() return { mb = {}, times = {} } end

-- The devices of one host and model, or one device, that w gets by the fewest ends of leases.
local function best_of(w, ids)
  local sets, chosen, over = {}, {}, nothing_chosen()
  for _, uuid in ipairs(ids) do
    local d = broker.device(uuid)
    if d and broker.reservations.charge(w, d) then
      local set = clear_device(w, d, over)
      if set then
        set.undo()
        sets[#sets + 1] = set
      end
    end
  end
  if #sets < w.q.devices then return nil end
  table.sort(sets, cheaper)
  for _, set in ipairs(sets) do   -- each by what the ones before it leave of a team's excess
    local anew = clear_device(w, set.d, over)
    if anew then chosen[#chosen + 1] = anew end
    if #chosen == w.q.devices then
      if acceptable(w, chosen) then return chosen end
      if w.q.devices > 1 then return nil end
      chosen, over = {}, nothing_chosen()
    end
  end
  return nil
end

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
  local pool, after_ms = broker.policy(), broker.policy_of('reclaim_after_s') * 1000
  if after_ms == 0 or w.preempts ~= '' or ctx.now - w.enqueued_ms < after_ms then return false end
  w.own = pool.teams > 0 and broker.within_nominal(w, w.q.memory_mb * w.q.devices)
  if not w.own and w.q.priority == 0 then return false end
  broker.flush()
  local pages, seen = page_of(w)
  if seen ~= w.preempt_seen then
    call('HSET', prefix .. 'record:' .. w.token, 'preempt_seen', text(seen))
  end
  local best, fewest
  for _, ids in ipairs(pages) do
    local chosen, count = best_of(w, ids), 0
    for _, set in ipairs(chosen or {}) do count = count + set.count end
    if count > 0 and (not best or count < fewest) then best, fewest = chosen, count end
  end
  if not best then return false end
  local devices, victims = {}, {}
  for i, set in ipairs(best) do
    devices[i] = set.d
    for token, v in pairs(set.chosen) do victims[token] = v end
  end
  if w.reserved ~= '' then broker.reservations.cancel(w) end
  local at_ms, names = ctx.now + broker.policy_of('preempt_grace_s') * 1000, {}
  for token, v in pairs(victims) do names[#names + 1] = token end
  table.sort(names)
  for _, token in ipairs(names) do notice(w, victims[token], at_ms) end
  w.preempts = table.concat(names, ',')
  call('HSET', prefix .. 'record:' .. w.token, 'preempts', w.preempts)
  broker.reservations.reserve(w, devices, at_ms + 2 * LATEST_MS
    + broker.policy_of('expiry_grace_s') * 1000)
  return true
end

-- Withdraw what is still noticed for a waiter: each lease has the time that it had before, too.
function preemption.withdraw(w)
  for token in string.gmatch(w.preempts, '[^,]+') do
    local record = prefix .. 'record:' .. token
    local state, of, agent, devices, expires_at_ms, ended_ms = unpack(call('HMGET', record, 'state',
      'preempt_for', 'agent', 'devices', 'expires_at_ms', 'preempt_ended_ms'))
    if state == 'active' and of == w.token then
      call('HDEL', record, 'preempt_at_ms', 'preempt_for', 'preempt_by', 'preempt_team',
        'preempt_ended_ms')
      call('HDEL', prefix .. 'preempting', token)
      if ended_ms and ended_ms + 0 > expires_at_ms + 0 then
        end_at(token, devices, ended_ms + 0)
      end
      broker.event('preemption_withdrawn', 'token', token, 'agent', agent, 'for', w.token)
    end
  end
  w.preempts = ''
  call('HDEL', prefix .. 'record:' .. w.token, 'preempts')
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
