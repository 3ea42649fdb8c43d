-- queue: the waiters, what each asks for, and its place.
--
-- A waiter is in one queue, with those that ask alike. The queue's id is
-- <host or *>/<model or *>/<size class>. Size class
-- m<n> is a share of more than 2^(n-1) and at most 2^n MiB; x<100 k + n> is more than 2^(k-1) and
-- at most 2^k whole devices of so much each. Waiters for a full host, or for large devices, so
-- never block those for what is free.
--
--   queue:<id>              token -> rank, the smaller first: µs of entry, less a minute for each
--                           step of priority
--   queues:<host>/<model>   queue id -> rank of its head
--   capped:<agent>          token -> rank, of waiters that only their agent's cap holds back
--
-- A device may be reserved for a waiter: lib/reservations.lua. The order, and what is on
-- `worklist`, is lib/scheduler.lua's.

local HEARTBEAT_MS, SLACK_MS = 10000, 1000
local PRIORITY_US = 60000000   -- a priority higher by one is worth having waited a minute longer
local BACK_AT_ONCE = 4      -- capped waiters that come back when their agent's sum falls
local POLICY = { 'safe_mode', 'closed_until_ms', 'max_memory_per_agent_mb',
  'allow_fractional_shares',
  'max_leases_per_agent', 'policy_version' }

-- Keep a waiter's place until its next poll. `wait_until_ms` only tells others, so it need not be
-- exact.
function broker.heartbeat(token, wait_ms, wait_until_ms)
  if ctx.now + wait_ms > (wait_until_ms or 0) + SLACK_MS then
    call('HSET', prefix .. 'record:' .. token, 'wait_until_ms', text(ctx.now + wait_ms))
  end
  set_deadline(token, ctx.now + HEARTBEAT_MS)
end

local queue = {}
broker.queue = queue

-- The policy as it is at this moment; what this script has changed counts.
function queue.policy()
  local pool = ctx.pool
  for _, field in ipairs(POLICY) do
    if not pool[field] then
      local values = call('HMGET', POOL, unpack(POLICY))
      for i, name in ipairs(POLICY) do pool[name] = pool[name] or tonumber(values[i]) end
      break
    end
  end
  return pool
end

-- The doublings of one that hold that much.
local function doublings(size)
  local n, top = 0, 1
  while top < size do n, top = n + 1, top * 2 end
  return n
end

function queue.id(q)
  local whole, mb = q.exclusive or q.devices > 1, doublings(q.memory_mb)
  return q.host .. '/' .. q.model .. '/' .. (whole and 'x' .. text(100 * doublings(q.devices) + mb)
    or 'm' .. mb)
end

-- The waiter of a token: what it asks for as `q`, and what the queue knows of it. `devices` is what
-- it was offered.
function queue.read(token)
  local agent, request, memory_mb, queue_id, rank, enqueued_ms, client, reserved, devices, state,
    policy_version, reservation_mb, reservation_until_ms, reservations, reserves_ms,
    reservation_seen = unpack(call('HMGET', prefix .. 'record:' .. token, 'agent', 'request',
    'memory_mb', 'queue_id', 'rank', 'enqueued_ms', 'client', 'reserved', 'devices', 'state',
    'policy_version', 'reservation_mb', 'reservation_until_ms', 'reservations', 'reserves_ms',
    'reservation_seen'))
  if not agent then return nil end
  local asked = {}
  for part in string.gmatch(request, '[^|]+') do asked[#asked + 1] = part end
  local q = {
    token = token, agent = agent, memory_mb = tonumber(memory_mb), devices = tonumber(asked[2]),
    exclusive = asked[3] == '1',
    max_hold_ms = asked[5] + 0, host = asked[7], model = asked[8], placement = asked[9],
  }
  return {
    token = token, agent = agent, q = q, queue_id = queue_id, rank = rank,
    enqueued_ms = tonumber(enqueued_ms), client = client, reserved = reserved or '',
    devices = devices, state = state, policy_version = tonumber(policy_version),
    reservation_mb = reserved and (reservation_mb or 0) + 0 or 0,
    reservation_until_ms = tonumber(reservation_until_ms), reservations = (reservations or 0) + 0,
    reserves_ms = (reserves_ms or 0) + 0, reservation_seen = (reservation_seen or 0) + 0,
  }
end

-- The queues of a selector, <host or *>/<model or *>: id -> rank of the head.
function queue.ids(of)
  if not ctx.queues[of] then
    ctx.queues[of] = {}
    local ids = call('ZRANGE', prefix .. 'queues:' .. of, '0', '-1', 'WITHSCORES')
    for i = 1, #ids, 2 do ctx.queues[of][ids[i]] = ids[i + 1] + 0 end
  end
  return ctx.queues[of]
end

-- Write down the head of a queue, or that it has none. `check`: it is not known whether something
-- fits this head.
local function set_head(id, rank, check)
  local of, entry = string.match(id, '^(.*)/'), 'queue:' .. id
  if ctx.queues[of] then ctx.queues[of][id] = rank and rank + 0 end
  if rank then
    call('ZADD', prefix .. 'queues:' .. of, rank, id)
    if check then ctx.work[entry] = rank + 0 end
    return
  end
  call('ZREM', prefix .. 'queues:' .. of, id)
  ctx.work[entry] = nil
  if ctx.stored[entry] then call('ZREM', prefix .. 'worklist', entry) end
  ctx.stored[entry] = nil
end

-- Insert a waiter into its queue. Returns how many are ahead; `tried`: it is known that nothing
-- fits.
local function insert(w, tried)
  call('ZADD', prefix .. 'queue:' .. w.queue_id, w.rank, w.token)
  local place = call('ZRANK', prefix .. 'queue:' .. w.queue_id, w.token)
  if place == 0 then set_head(w.queue_id, w.rank, not tried) end
  return place
end

-- Remove a waiter from its queue; a new head is checked.
local function remove(id, token)
  local two = call('ZRANGE', prefix .. 'queue:' .. id, '0', '1', 'WITHSCORES')
  call('ZREM', prefix .. 'queue:' .. id, token)
  if two[1] == token then set_head(id, two[4], true) end
end

-- Count the waiters of the whole pool. Once nothing waits there is no worklist.
local function count_waiting(by)
  set_pool('waiting', ctx.pool.waiting + by)
  if ctx.pool.waiting > 0 then return end
  ctx.work = {}
  if next(ctx.stored) or not ctx.caught_up then call('DEL', prefix .. 'worklist') end
  ctx.stored = {}
end

local function count_waiters(agent, by)
  local a = broker.agent(agent)
  -- An older version may have left something there
  if a.waiters == 0 then a.reserved_mb, a.reserved = 0, true end
  a.waiters, a.waited = a.waiters + by, true
  count_waiting(by)
end

-- Dequeue a waiter, whatever comes next. `in_queue`: it is known not to be capped. `satisfied`: it
-- gets what it asked.
function queue.dequeue(w, in_queue, satisfied)
  if in_queue or call('ZREM', prefix .. 'capped:' .. w.agent, w.token) == 0 then
    remove(w.queue_id, w.token)
  end
  broker.reservations.cancel(w, satisfied)
  count_waiters(w.agent, -1)
end

-- Add a waiter to its queue, again or for the first time.
function queue.add(w, tried)
  count_waiters(w.agent, 1)
  return insert(w, tried)
end

-- The pool's time in µs: a later call has the larger, also within a millisecond.
local function rank_now() return ctx.now * 1000 + ctx.now_us % 1000 end

-- Enqueue a new waiter; `fields`: of its record, field and value in turn. Returns how many are
-- ahead, -1: capped.
function queue.enqueue(q, tried, fields, priority, at_cap)
  local w = { token = q.token, agent = q.agent, queue_id = queue.id(q),
    rank = text(rank_now() - priority * PRIORITY_US) }
  call('HSET', prefix .. 'record:' .. q.token, 'state', 'waiting', 'devices', '', 'memory_mb',
    text(q.memory_mb), 'queue_id', w.queue_id,
    'rank', w.rank, 'enqueued_ms', text(ctx.now), unpack(fields))
  broker.count('enqueued')
  broker.event('waiting', 'token', q.token, 'agent', q.agent, 'queue_id', w.queue_id)
  if not at_cap then return queue.add(w, tried) end
  count_waiters(q.agent, 1)
  call('ZADD', prefix .. 'capped:' .. q.agent, w.rank, q.token)
  return -1
end

-- Does the agent have as many waiters as it may?
function queue.full(agent)
  return broker.agent(agent).waiters >= tonumber(call('HGET', POOL, 'max_waiters_per_agent'))
end

-- End a wait: cancelled, timed_out or revoked. What it was offered comes back. `refused`: no
-- tombstone, since asking again is asking anew. Returns the devices touched.
function queue.end_wait(token, how, refused)
  local w, touched = queue.read(token), 0
  if w.state == 'offered' then touched = broker.deallocate(w, false) else queue.dequeue(w) end
  clear_deadline(token)
  if refused then call('DEL', prefix .. 'record:' .. token) else broker.bury(token, how) end
  broker.count(how == 'timed_out' and 'timed_out' or 'cancelled')
  broker.event(how, 'token', token, 'agent', w.agent, 'devices', w.devices)
  return touched
end

-- The head of a queue; one whose record is gone (removed by hand) loses its place.
function queue.head(id)
  while true do
    local token = call('ZRANGE', prefix .. 'queue:' .. id, '0', '0')[1]
    local w = token and queue.read(token)
    if w or not token then return w end
    remove(id, token)
    count_waiting(-1)
  end
end

function queue.set_capped(w)
  remove(w.queue_id, w.token)
  broker.reservations.cancel(w)
  call('ZADD', prefix .. 'capped:' .. w.agent, w.rank, w.token)
end

-- MiB that the agent's cap leaves it beside what it holds and what is reserved for it, but for
-- `own_mb` of that; none when it has as many leases as it may.
function queue.room(agent, own_mb)
  local pool = queue.policy()
  local a = broker.agent(agent)
  if a.leases >= pool.max_leases_per_agent then return 0 end
  return pool.max_memory_per_agent_mb - a.mb - a.reserved_mb + (own_mb or 0)
end

-- Does the agent have anything, but for `own_mb` of a reservation, whose end would leave its cap
-- more room?
function queue.holds(agent, own_mb)
  local a = broker.agent(agent)
  return a.leases > 0 or a.reserved_mb > (own_mb or 0)
end

-- Take a capped waiter back into its queue, where it was.
function queue.clear_capped(w)
  call('ZREM', prefix .. 'capped:' .. w.agent, w.token)
  return insert(w)
end

-- An agent's sum fell: take back those that fit under its cap, where they were.
function queue.recheck_capped(agent)
  local room_mb
  for _ = 1, BACK_AT_ONCE do
    local token = call('ZRANGE', prefix .. 'capped:' .. agent, '0', '0')[1]
    if not token then return end
    local w = queue.read(token)
    if w then
      room_mb = (room_mb or queue.room(agent)) - w.q.memory_mb * w.q.devices
      if room_mb < 0 then return end
      queue.clear_capped(w)
    else   -- its record was removed by hand
      call('ZREM', prefix .. 'capped:' .. agent, token)
      count_waiting(-1)
    end
  end
end
