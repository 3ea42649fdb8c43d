-- victims: the leases that end for a head which may ask that; the rules are preemption.lua's.

local HOLDERS_READ = 16                     -- of a device with more leases none ends
local DOUBLINGS = 6                         -- protection grows to 64 times `min_runtime_s`

local victims = {}
broker.victims = victims

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
  local _, _, sums = broker.parties(v)
  v.quota = broker.quota(v.team, sums, d.model)
  v.quota_mb = broker.model_sums.part_of(v.team, devices, d.model)
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

-- MiB of each quota that are noticed already, and MiB that are coming for its team's waiters so: by
-- the name of the quota.
local function noticed()
  local rows, leaving, coming = call('HGETALL', prefix .. 'preempting'), {}, {}
  local function add(to, team, uuid, mb)
    local name, models = 'team ' .. team, uuid and broker.team_policy(team).models
    local d = models and broker.device(uuid)
    if d and models[d.model] then name = name .. '#model ' .. d.model end
    to[name] = (to[name] or 0) + mb
  end
  for i = 1, #rows, 2 do
    local team, mb = string.match(rows[i + 1], '([^ ]+) (%d+)$')
    local state, at_ms, devices, reserved = unpack(call('HMGET', prefix .. 'record:' .. rows[i],
      'state', 'preempt_at_ms', 'devices', 'reserved'))
    if find(rows[i + 1], 'for ', 1, true) == 1 then
      add(coming, team, string.match(reserved or '', '[^,]+'), mb)
    else
      if state == 'active' and at_ms then
        for uuid, part_mb in string.gmatch(devices, '([^,]+)=(%d+)') do
          add(leaving, team, uuid, part_mb)
        end
      else   -- it ended in another way
        call('HDEL', prefix .. 'preempting', rows[i])
      end
    end
  end
  return leaving, coming
end

-- Does w stay within its team's nominal quota of a model with so many MiB, beside what is coming
-- for others?
local function within_nominal(w, mb, model)
  local _, _, team = broker.parties(w)
  local quota = broker.quota(w.team, team, model)
  return quota.mb + (w.coming[quota.name] or 0) + mb <= quota.nominal_mb
end

-- What a team holds beyond its nominal quota of a model, but for what is noticed or has been
-- chosen.
local function beyond(w, over, v)
  local quota = v.quota
  if not over.mb[quota.name] then
    over.mb[quota.name] = quota.mb - (w.leaving[quota.name] or 0) - quota.nominal_mb
  end
  return over.mb[quota.name]
end

-- A lease of several devices is chosen for each of them, and counts once.
local function choose_victim(w, set, over, v, sign)
  local times = (over.times[v.token] or 0) + sign
  if times == 0 or times == 1 and sign > 0 then
    over.mb[v.quota.name] = beyond(w, over, v) - sign * v.quota_mb
  end
  over.times[v.token] = times
  set.gone_mb, set.chosen[v.token] = set.gone_mb + sign * v.here_mb, sign > 0 and v or nil
end

-- The leases of d that end for w, few and the right ones, beside those that are `chosen` already;
-- nil: they cannot make room.
local function clear_device(w, d, over)
  local q, whole = w.q, broker.whole(w.q)
  if broker.by_model(q) then w.own = within_nominal(w, q.memory_mb * q.devices, d.model) end
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
      if goes or not only_free and beyond(w, over, v) >= v.quota_mb then choose(v) end
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
  local charge_mb, gone, seen, model = 0, {}, {}, sets[1].d.model
  for _, set in ipairs(sets) do
    charge_mb = charge_mb + broker.reservations.charge(w, set.d)
  end
  local within = ctx.pool.teams > 0 and within_nominal(w, charge_mb, model)
  for _, set in ipairs(sets) do
    for token, v in pairs(set.chosen) do
      if not within and not v.lower then return false end
      local agent, key = broker.parties(v)
      for i, a in ipairs(seen[token] and {} or { agent, v.quota, key }) do
        local sums, mb = gone[a.name] or { mb = 0, leases = 0 }, i == 2 and v.quota_mb or v.mb
        gone[a.name], sums.mb, sums.leases = sums, sums.mb + mb, sums.leases + 1
      end
      seen[token] = true
    end
  end
  return charge_mb <= broker.room(w, w.reservation_mb, gone, model)
end

local function nothing_chosen() return { mb = {}, times = {} } end

-- The devices of one host and model, or one device, that w gets by the fewest ends of leases.
function victims.best_of(w, ids)
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

-- May w ask for leases to end at all?
function victims.may_ask(w)
  w.leaving, w.coming = noticed()
  local any = ctx.pool.teams > 0 and broker.by_model(w.q)   -- the device decides
  w.own = any or ctx.pool.teams > 0 and within_nominal(w, w.q.memory_mb * w.q.devices, w.q.model)
  return w.own or w.q.priority > 0
end
