-- line: what those who wait get.
--
--   inbox:<client>    tokens that were offered something: hints, one list for each process
--
-- A device is offered: taken from the ledger, told to the waiter's process, without fence or lease key until the waiter
-- claims it by asking again. Whose turn that is, lib/serving.lua says. With nobody waiting no verb touches any of these keys.

local CLAIM_MS, KEEP_AFTER_MS = 10000, 30000
local OFFER_WORK = 4   -- what a device handed out is of a script's work; see lib/serving.lua
local LOOKED_AT, HINTS, HINTS_MS = 4, 1000, 60000   -- devices, or groups of them, that may be kept; hints of one inbox

local line, waiters = {}, B.waiters
B.line = line

-- Does somebody come before a newcomer who asks for this?
function line.comes_first(q)
  return S.backlog or call('EXISTS', P .. 'line:' .. waiters.want(q)) == 1
end

-- As many whole devices of one group as w wants: of those that `held` has for it, then of the idle ones.
local function whole_of(w, host, model, held, room_mb)
  local q, devices, has, sum = w.q, {}, {}, 0
  local function add(d)
    if #devices == q.devices or has[d] then return end
    devices[#devices + 1], has[d], sum = d, true, sum + d.free_mb
  end
  for _, d in ipairs(held) do
    if d.empty and d.free_mb >= q.memory_mb and d.host == host and d.model == model then add(d) end
  end
  if #devices < q.devices then
    B.flush()
    local ids = call('ZRANGE', P .. 'idle:' .. host .. '/' .. model, text(q.memory_mb), '+inf', 'BYSCORE', 'LIMIT', '0',
      text(q.devices))
    for _, uuid in ipairs(ids) do add(B.device(uuid)) end
  end
  if #devices < q.devices then return nil, 'no_capacity' end
  if sum > room_mb then return nil, 'agent_cap' end
  return devices
end

local function kept_devices(w)
  local held = {}
  for uuid in string.gmatch(w.kept, '[^,]+') do held[#held + 1] = B.device(uuid) end
  return held
end

-- What w gets of device d, alone or with what is kept for it, or idle, of the same host and model. Nil and why not.
local function fit_on(w, d, room_mb)
  if B.whole(w.q) then return whole_of(w, d.host, d.model, { d, unpack(kept_devices(w)) }, room_mb) end
  if d.sharable and d.free_mb >= w.q.memory_mb then return { d } end
  return nil, 'no_capacity'
end

-- What w gets with device d, or anywhere. Nil and why not: its agent's cap, if that is all that is in the way somewhere.
local function fit(w, d)
  local q, room_mb = w.q, waiters.room(w.agent)
  if q.memory_mb * q.devices > room_mb then return nil, 'agent_cap' end
  if d then return fit_on(w, d, room_mb) end
  local devices, why = B.pick(q, room_mb)
  if devices or w.kept == '' then return devices, why end
  local kept, cause = fit_on(w, B.device(string.match(w.kept, '[^,]+')), room_mb)
  return kept, why == 'agent_cap' and why or cause
end

local function offer(w, devices)
  waiters.leave(w, true)
  local taken, sum = B.take(w.q, devices)
  B.add_to_agent(w.agent, sum, 1)
  call('HSET', P .. 'record:' .. w.token, 'state', 'offered', 'devices', taken, 'policy_version',
    text(waiters.policy().policy_version))
  schedule(w.token, S.now + CLAIM_MS)
  if w.client ~= '' then
    local inbox = P .. 'inbox:' .. w.client
    if call('RPUSH', inbox, w.token) > HINTS then call('LTRIM', inbox, -HINTS, -1) end
    call('PEXPIRE', inbox, HINTS_MS)
  end
  B.count('offered')
  B.event('offered', 'token', w.token, 'agent', w.agent, 'devices', taken)
  return OFFER_WORK * #devices
end

-- An offer that the policy has overtaken: its waiter stands again where it stood.
function line.withdraw(w)
  B.give_back(w, false)
  call('HSET', P .. 'record:' .. w.token, 'state', 'waiting', 'devices', '')
  w.state, w.devices = 'waiting', ''
  B.event('withdrawn', 'token', w.token, 'agent', w.agent)
  waiters.stand(w)
end

-- Offer w what d is part of, or find that only its agent's cap is in the way. The work that it was, or nil.
function line.try(w, d)
  if not w then return nil end
  local devices, why = fit(w, d)
  if why == 'agent_cap' and d and B.whole(w.q) then devices, why = fit(w) end   -- a smaller one may be within its cap
  if devices then return offer(w, devices) end
  if why ~= 'agent_cap' or B.agent(w.agent).leases == 0 then return nil end
  waiters.park(w)
  return 1   -- its want has another first
end

-- Which devices to keep for a first that has waited long: one that could hold it, most free first, or as many of one host.
local function keepable(w)
  local q = w.q
  B.flush()
  local function fits(uuid)
    local d = B.device(uuid)
    local up = d and d.state == 'ok' and d.drained ~= '1' and d.kept_for == ''
    local suits_q = up and (q.model == '*' or d.model == q.model) and (q.host == '*' or d.host == q.host)
    return suits_q and d.total_mb - d.reserve_mb >= q.memory_mb and d
  end
  if q.devices == 1 then
    for _, key in ipairs({ 'free:', 'fits:' }) do
      for _, uuid in ipairs(call('ZRANGE', P .. key .. B.selector(q), '0', LOOKED_AT - 1, 'REV')) do
        local d = fits(uuid)
        if d then return { d } end
      end
    end
    return nil
  end
  for i, group in ipairs(B.whole_devices.groups(q, 'hosts:')) do
    local devices = {}
    if i > LOOKED_AT then break end
    for _, uuid in ipairs(call('ZRANGE', P .. 'fits:host/' .. group, q.memory_mb, '+inf', 'BYSCORE')) do
      devices[#devices + 1] = #devices < q.devices and fits(uuid) or nil
    end
    if #devices == q.devices then return devices end
  end
  return nil
end

-- A waiter asks again. What it gets now; or nil, why not, and how many of its want are ahead (-1: parked). Only firsts are
-- tried, and only when nothing is left that may belong to others.
function line.poll(w, open)
  local place = call('ZRANK', P .. 'line:' .. w.want, w.token)
  local parked = not place
  local turn = place == 0 or parked and call('ZRANK', P .. 'parked:' .. w.agent, w.token) == 0
  if not open or not turn or S.backlog then return nil, parked and 'agent_cap' or 'no_capacity', place or -1 end
  local devices, why = fit(w)
  if devices then return devices end
  if parked and why ~= 'agent_cap' then
    place = waiters.unparked(w)
  elseif place == 0 and why == 'agent_cap' and B.agent(w.agent).leases > 0 then
    waiters.park(w)
    place = -1
  elseif place == 0 and S.now - w.joined_ms >= KEEP_AFTER_MS then
    for _, d in ipairs(kept_devices(w)) do
      if d.total_mb - d.reserve_mb < w.q.memory_mb then waiters.unkeep(w) end   -- it shrank: kept in vain
    end
    local found = w.kept == '' and keepable(w)
    if found then waiters.keep(w, found) end
  end
  return nil, why, place or -1
end
