-- offers: devices that waiters may claim.
--
--   inbox:<client>    tokens that were offered something: hints, one list for each process
--
-- A device is offered: taken from the ledger, told to the waiter's process, without fence or lease
-- key until the waiter claims it by asking again. lib/scheduler.lua decides the order. Without a
-- waiter no verb touches any of these keys.

local CLAIM_MS = 10000
local OFFER_WORK = 4   -- what a device offered is of a script's work; see lib/scheduler.lua
local RESERVED_READ = '64'
local HINTS, HINTS_MS = 1000, 60000   -- of one inbox

local offers, queue = {}, broker.queue
broker.offers = offers

-- Must a newcomer with this request queue behind others?
function offers.must_queue(q)
  return ctx.backlog or call('EXISTS', prefix .. 'queue:' .. queue.id(q)) == 1
end

-- As many whole devices of one group as w wants: of those that `held` has for it, then of the idle
-- ones.
local function whole_of(w, host, model, held, room_mb)
  local q, devices, has, sum = w.q, {}, {}, 0
  local function add(d)
    if not d or #devices == q.devices or has[d] or not broker.joins(q, d) then return end
    devices[#devices + 1], has[d], sum = d, true, sum + d.free_mb
  end
  for _, d in ipairs(held) do
    if d.empty and d.free_mb >= q.memory_mb and d.host == host and d.model == model then add(d) end
  end
  if #devices < q.devices then
    broker.flush()
    local ids = call('ZRANGE', prefix .. 'idle:' .. host .. '/' .. model, text(q.memory_mb), '+inf',
      'BYSCORE', 'LIMIT', '0',
      text(q.devices))
    for _, uuid in ipairs(ids) do add(broker.device(uuid)) end
  end
  if #devices < q.devices then return nil, 'no_capacity' end
  if sum > room_mb then return nil, 'agent_cap' end
  return devices
end

-- Choose for w device d, alone or with devices of its host and model that are idle or reserved for
-- w. Nil and why not.
local function fit_on(w, d, room_mb)
  if broker.whole(w.q) then
    return whole_of(w, d.host, d.model, { d, unpack(broker.reservations.devices(w)) }, room_mb)
  end
  if d.sharable and d.free_mb >= w.q.memory_mb and w.q.memory_mb <= room_mb then return { d } end
  return nil, 'no_capacity'
end

-- What w gets with device d, or anywhere. Nil and why not: its agent's cap, if that is all that is
-- in the way somewhere.
local function fit(w, d)
  local q, room_mb, party = w.q, broker.room(w, w.reservation_mb, nil, d and d.model)
  w.party = party   -- whose cap leaves least
  if q.memory_mb * q.devices > room_mb then return nil, 'agent_cap' end
  if d then return fit_on(w, d, room_mb) end
  local devices, why = broker.select(q, room_mb, w)
  if ctx.pool.models and not devices and not w.capped then
    broker.quotas.limit(q, w.queue_id)
  end
  if devices or w.reserved == '' then return devices, why end
  local kept = broker.device(string.match(w.reserved, '[^,]+'))
  if not kept then return nil, why end   -- a hand has removed it
  local reserved, cause = fit_on(w, kept, broker.room_on(w, kept.model, room_mb, w.reservation_mb))
  return reserved, why == 'agent_cap' and why or cause
end

local function offer(w, devices)
  queue.dequeue(w, not w.capped, true)
  local taken, sum = broker.allocate(w.q, devices)
  broker.add_to_parties(w, sum, 1)
  ctx.offered = true
  call('HSET', prefix .. 'record:' .. w.token, 'state', 'offered', 'devices', taken,
    'policy_version',
    text(broker.policy().policy_version))
  set_deadline(w.token, ctx.now + CLAIM_MS)
  if w.client ~= '' then
    local inbox = prefix .. 'inbox:' .. w.client
    if call('RPUSH', inbox, w.token) > HINTS then call('LTRIM', inbox, -HINTS, -1) end
    call('PEXPIRE', inbox, HINTS_MS)
  end
  if seen then
    if broker.offered_count == broker.most_offered then
      broker.offered_to, broker.offered_count = {}, 0
    end
    broker.offered_to[w.token], broker.offered_count = true, broker.offered_count + 1
  end
  broker.count('offered')
  broker.event('offered', 'token', w.token, 'agent', w.agent, 'devices', taken, team_of(w))
  return OFFER_WORK * #devices
end

-- Withdraw an offer that the policy has overtaken: its waiter is back in its queue, where it was.
function offers.withdraw(w)
  broker.deallocate(w, false)
  call('HSET', prefix .. 'record:' .. w.token, 'state', 'waiting', 'devices', '')
  w.state, w.devices = 'waiting', ''
  broker.event('withdrawn', 'token', w.token, 'agent', w.agent, team_of(w))
  queue.add(w)
end

-- Offer w what d is part of, or find that only its agent's cap is in the way. The work that it was,
-- or nil. `own`: elsewhere only what stays within its team's nominal quota of a model.
function offers.try(w, d, own)
  if not w then return nil end
  local elsewhere = broker.by_model(w.q)
  w.own_only = own and elsewhere
  local devices, why = fit(w, d)
  -- A smaller one may be within its cap, or one of another model
  if why == 'agent_cap' and d and (elsewhere or broker.whole(w.q)) then devices, why = fit(w) end
  if devices then return offer(w, devices) end
  -- One for which leases end waits for the rest of them
  if why ~= 'agent_cap' or w.preempts ~= '' or not broker.holds(w.party, w.reservation_mb) then
    return nil
  end
  queue.set_capped(w, w.party.name)
  return 1   -- its queue has another head
end

-- Choose for a request that ends by itself among devices reserved for others: it must be over
-- before the last lease that the reservation waits for ends, which is known where each of those has
-- a max_hold (EASY backfill). Nil: nothing. `w`: the waiter that it is.
function offers.backfill(q, room_mb, w)
  if ctx.backlog or q.memory_mb * q.devices > room_mb then return nil end
  local group, devices = {}, nil
  local ids = call('ZRANGE', prefix .. 'backfill', text(ctx.now + q.max_hold_ms), '+inf', 'BYSCORE',
    'LIMIT', '0', RESERVED_READ)
  for _, uuid in ipairs(ids) do
    local d = broker.device(uuid)
    local reserved = d and d.reserved_for ~= '' and d.reserved_for ~= q.token
    if reserved and (q.host == '*' or d.host == q.host) and (q.model == '*'
      or d.model == q.model) then
      group[#group + 1] = d
    end
  end
  for _, d in ipairs(group) do
    local here_mb = broker.room_on(w or q, d.model, room_mb, w and w.reservation_mb)
    if broker.whole(q) then
      devices = whole_of({ q = q }, d.host, d.model, group, here_mb)
    elseif d.sharable and d.free_mb >= q.memory_mb and q.memory_mb <= here_mb then
      devices = { d }
    end
    if devices then break end
  end
  q.backfills = devices ~= nil
  return devices
end

-- A waiter asks again. What it gets now; or nil, why not, and how many of its queue are ahead (-1:
-- capped). Only heads are tried, and only when nothing is left that may belong to others.
function offers.poll(w, open)
  local place = call('ZRANK', prefix .. 'queue:' .. w.queue_id, w.token)
  local capped = not place
  local is_next = place == 0 or capped and w.capped and call('ZRANK', prefix .. 'capped:'
    .. w.capped, w.token) == 0
  broker.reservations.check(w)
  if not open or not is_next or ctx.backlog then
    return nil, capped and 'agent_cap' or 'no_capacity', place or -1
  end
  local devices, why = fit(w)
  if devices then return devices end
  local held_back = why == 'agent_cap' and broker.holds(w.party, w.reservation_mb)
  if capped and not held_back then
    place = queue.clear_capped(w)
  elseif capped then
    -- By another policy, or another's use, another party's sum has to fall
    if w.party.name ~= w.capped then queue.hold_back(w, w.party.name) end
    broker.preemption.consider(w)   -- one of its own team may have to go
  elseif place == 0 and held_back and w.preempts == '' then
    queue.set_capped(w, w.party.name)
    place = -1
  elseif place == 0 and not broker.preemption.consider(w) then
    broker.reservations.consider(w)
  end
  return nil, why, place or -1
end
