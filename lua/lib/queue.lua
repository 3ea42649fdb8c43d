-- queue: the waiters, what each asks for, and its place.
--
-- A waiter is in one queue, with those that ask alike. The queue's id is
-- <host or *>/<model or *>/<size class>, with /<team> behind it for another team than `default`.
-- Size class m<n> is a share of more than 2^(n-1) and at most 2^n MiB; x<100 k + n> is more than
-- 2^(k-1) and at most 2^k whole devices of so much each. Waiters for a full host, or for large
-- devices, so never block those for what is free.
--
--   queue:<id>              token -> rank, the smaller first: µs of entry, less a minute for each
--                           step of priority
--   queues:<host>/<model>   queue id -> rank of its head
--   capped:<party>          token -> rank, of waiters that only a cap of their agent, their API
--                           key or their team holds back
--
-- A device may be reserved for a waiter: lib/reservations.lua. The order, and what is on
-- `worklist`, is lib/scheduler.lua's.

local HEARTBEAT_MS, SLACK_MS = 10000, 1000
local PRIORITY_US = 60000000   -- a priority higher by one is worth having waited a minute longer
local BACK_AT_ONCE, LAST_BACK = 4, 64   -- capped waiters that come back when a sum falls; to 0

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

-- The doublings of one that hold that much.
local function doublings(size)
  local n, top = 0, 1
  while top < size do n, top = n + 1, top * 2 end
  return n
end

function queue.id(q)
  local whole, mb = q.exclusive or q.devices > 1, doublings(q.memory_mb)
  local id = q.host .. '/' .. q.model .. '/' .. (whole and 'x' .. text(100 * doublings(q.devices)
    + mb) or 'm' .. mb)
  return q.team ~= DEFAULT_TEAM and id .. '/' .. q.team or id
end

-- The waiter of a token: what it asks for as `q`, and what the queue knows of it. `devices` is what
-- it was offered.
function queue.read(token)
  local agent, request, memory_mb, queue_id, rank, enqueued_ms, client, reserved, devices, state,
    policy_version, reservation_mb, reservation_until_ms, reservations, reserves_ms,
    reservation_seen, owner, team, capped, preempts, preempt_seen = unpack(call('HMGET',
    prefix .. 'record:' .. token, 'agent', 'request', 'memory_mb', 'queue_id', 'rank',
    'enqueued_ms', 'client', 'reserved', 'devices', 'state', 'policy_version', 'reservation_mb',
    'reservation_until_ms', 'reservations', 'reserves_ms', 'reservation_seen', 'owner', 'team',
    'capped', 'preempts', 'preempt_seen'))
  if not agent then return nil end
  local asked = {}
  for part in string.gmatch(request, '[^|]+') do asked[#asked + 1] = part end
  local q = {
    token = token, agent = agent, memory_mb = tonumber(memory_mb), devices = tonumber(asked[2]),
    exclusive = asked[3] == '1', owner = owner or '', team = team or DEFAULT_TEAM,
    priority = asked[6] + 0,
    max_hold_ms = asked[5] + 0, host = asked[7], model = asked[8], placement = asked[9],
  }
  return {
    token = token, agent = agent, owner = q.owner, team = q.team, q = q, queue_id = queue_id,
    rank = rank, capped = capped, preempts = preempts or '',
    preempt_seen = (preempt_seen or 0) + 0,
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
  local of, entry = string.match(id, '^[^/]*/[^/]*'), 'queue:' .. id
  if ctx.queues[of] then ctx.queues[of][id] = rank and rank + 0 end
  if rank then
    call('ZADD', prefix .. 'queues:' .. of, rank, id)
    if check then ctx.work[entry] = rank + 0 end
    return
  end
  call('ZREM', prefix .. 'queues:' .. of, id)
  if ctx.pool.models then broker.quotas.unlimit(id) end
  ctx.work[entry] = nil
  if ctx.stored[entry] then call('ZREM', prefix .. 'worklist', entry) end
  ctx.stored[entry] = nil
end

-- Insert a waiter into its queue; how many are ahead. `tried`: it is known that nothing fits.
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

local function count_waiters(x, by)
  local agent, key, team = broker.parties(x)
  for _, a in ipairs({ agent, team, key }) do
    -- An older version may have left something there
    if a.waiters == 0 then a.reserved_mb, a.reserved = 0, true end
    a.waiters, a.waited = a.waiters + by, true
  end
  count_waiting(by)
end

-- Dequeue a waiter, whatever comes next. `in_queue`: it is known not to be capped. `satisfied`: it
-- gets what it asked.
function queue.dequeue(w, in_queue, satisfied)
  if in_queue or not w.capped or call('ZREM', prefix .. 'capped:' .. w.capped, w.token) == 0 then
    remove(w.queue_id, w.token)
  else
    call('HDEL', prefix .. 'record:' .. w.token, 'capped')
  end
  broker.reservations.cancel(w, satisfied)
  count_waiters(w, -1)
end

-- Add a waiter to its queue, again or for the first time.
function queue.add(w, tried)
  count_waiters(w, 1)
  return insert(w, tried)
end

-- The pool's time in µs: a later call has the larger, also within a millisecond.
local function rank_now() return ctx.now * 1000 + ctx.now_us % 1000 end

-- Note the party whose cap alone holds a waiter back, in place of another's.
function queue.hold_back(w, party)
  if w.capped then call('ZREM', prefix .. 'capped:' .. w.capped, w.token) end
  w.capped = party
  call('ZADD', prefix .. 'capped:' .. party, w.rank, w.token)
  call('HSET', prefix .. 'record:' .. w.token, 'capped', party)
end

-- Enqueue a new waiter; `fields`: of its record, field and value in turn. `party`: by name, whose
-- cap alone holds it back. Returns how many are ahead, -1: capped.
function queue.enqueue(q, tried, fields, priority, party)
  local w = { token = q.token, agent = q.agent, owner = q.owner, team = q.team,
    queue_id = queue.id(q), rank = text(rank_now() - priority * PRIORITY_US) }
  broker.join_team(q)
  call('HSET', prefix .. 'record:' .. q.token, 'state', 'waiting', 'devices', '', 'memory_mb',
    text(q.memory_mb), 'queue_id', w.queue_id,
    'rank', w.rank, 'enqueued_ms', text(ctx.now), unpack(fields))
  broker.count('enqueued')
  broker.event('waiting', 'token', q.token, 'agent', q.agent, 'queue_id', w.queue_id, team_of(q))
  if not party then
    if ctx.pool.models then broker.quotas.limit(q, w.queue_id) end
    return queue.add(w, tried)
  end
  count_waiters(q, 1)
  queue.hold_back(w, party)
  return -1
end

-- End a wait: cancelled, timed_out or revoked. What it was offered comes back. `refused`: no
-- tombstone, since asking again is asking anew. Returns the devices touched.
function queue.end_wait(token, how, refused)
  local w, touched = queue.read(token), 0
  if w.state == 'offered' then touched = broker.deallocate(w, false) else queue.dequeue(w) end
  clear_deadline(token)
  if refused then call('DEL', prefix .. 'record:' .. token) else broker.bury(token, how) end
  broker.count(how == 'timed_out' and 'timed_out' or 'cancelled')
  broker.event(how, 'token', token, 'agent', w.agent, 'devices', w.devices, team_of(w))
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

-- Take a waiter out of its queue until the sum of that party falls.
function queue.set_capped(w, party)
  remove(w.queue_id, w.token)
  broker.reservations.cancel(w)
  queue.hold_back(w, party)
end

-- Take a capped waiter back into its queue, where it was.
function queue.clear_capped(w)
  call('ZREM', prefix .. 'capped:' .. w.capped, w.token)
  call('HDEL', prefix .. 'record:' .. w.token, 'capped')
  w.capped = nil
  return insert(w)
end

-- The sum of a party fell: take back those that fit under its cap, where they were.
local function recheck(a, most_mb, most_leases)
  local key = prefix .. 'capped:' .. a.name
  local room_mb = broker.room_of(a, most_mb, most_leases)
  for _ = 1, a.leases > 0 and BACK_AT_ONCE or LAST_BACK do   -- no other fall comes after its last
    local token = call('ZRANGE', key, '0', '0')[1]
    if not token then return end
    local w = queue.read(token)
    if w then
      room_mb = room_mb - w.q.memory_mb * w.q.devices
      if room_mb < 0 then return end
      queue.clear_capped(w)
    else   -- its record was removed by hand
      call('ZREM', key, token)
      count_waiting(-1)
    end
  end
end

-- What x had is less now: recheck the waiters that the caps of its parties hold back.
function queue.recheck_capped(x)
  local pool = broker.policy()
  local agent, key, team = broker.parties(x)
  recheck(agent, pool.max_memory_per_agent_mb, pool.max_leases_per_agent)
  if key then recheck(key, pool.max_memory_per_agent_mb, pool.max_leases_per_agent) end
  if pool.teams > 0 then
    local most = broker.team_policy(x.team).max_leases
    for _, quota in ipairs(broker.quotas.each(x.team, team)) do
      recheck(quota, quota.most_mb, most)
    end
    if pool.models then broker.quotas.recheck(x) end
  end
  if pool.noticed_ms > 0 then broker.preemption.recheck() end
end
