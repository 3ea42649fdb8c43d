-- acquire: get a lease on GPU memory, on whole GPUs, or, if asked for, on the CPU, or wait for it; repeated with the same token, poll, claim, learn how it stands.
--
-- KEYS[1]   base            gpu:{pool}
-- ARGV[1]   protocol        int
-- ARGV[2]   token           str    16-64 of [A-Za-z0-9._-], made by the caller, never reused
-- ARGV[3]   agent           str    who asks
-- ARGV[4]   memory_mb       int    MiB on each device; 0 = the policy's default_memory_mb
-- ARGV[5]   devices         int    1-64; several = whole idle devices of one host and model, all or none
-- ARGV[6]   exclusive       int    1 = alone on the device
-- ARGV[7]   ttl_ms          int    1,000 to 7 days; 0 = no expiry
-- ARGV[8]   max_hold_ms     int    renewals never go past it; 0 = no limit
-- ARGV[9]   priority        int    0-9, 9 first
-- ARGV[10]  host            str    or *
-- ARGV[11]  model           str    or *
-- ARGV[12]  placement       str    spread (most free first) or pack (best fit)
-- ARGV[13]  on_unavailable  str    refuse or cpu
-- ARGV[14]  client          str    the caller's process, for whom hints are left
-- ARGV[15]  pid             str    its process id on its host, or empty
-- ARGV[16]  owner           str    the authenticated principal, or empty
-- ARGV[17]  wait_ms         int    wait so long from now, polling; 0 or absent = decide now, in the queue too
-- ARGV[18]  note            str    for people, shown beside the lease; empty or absent = none
-- ARGV[19]  uses            str    uuid=mb: the process that it is for uses so much there already, without a lease; no other device will do, and it does not wait; empty or absent = a new process
-- ARGV[20]  team           str    for whose quota it counts; empty or absent = default
-- ARGV[21]  preemptible    int    1 = it may be ended for others at any time, with notice; empty or absent = 0
-- ARGV[22]  yields         int    1 = its holder is told when others want what it has; empty or absent = 0
-- ARGV[23]  after          str    token of a lease that was preempted, whose job this goes on with; empty or absent = none
-- reply     GRANTED fence expires_at_ms remaining_ms reason {uuid mb index host name total_mb used_mb runtime_id} | WAITING place | REFUSED reason detail | CONFLICT | LOST reason | AGAIN
-- keeps     S1: never over capacity; S3: fences grow; S5: all or none; S6: one grant per token; S11: no request passes a head that fits
-- cost      O((REAP_DEVICES + SCHEDULE_WORK + k) log devices), k the devices asked for; whole devices: at most 8 models x 16 hosts are looked at

local POLL_MS = 10000   -- a waiter polls within so long
local OF_DEVICE = { 'uuid', 'mb', 'index', 'host', 'name', 'total_mb', 'used_mb', 'runtime_id' }

local unready, last_fence, safe_mode, closed_until_ms, max_memory_per_agent_mb,
  allow_fractional_shares, default_memory_mb, max_leases_per_agent, policy_version, forgotten_ms,
  granted_before = begin('fence', 'safe_mode', 'closed_until_ms', 'max_memory_per_agent_mb',
  'allow_fractional_shares', 'default_memory_mb', 'max_leases_per_agent', 'policy_version',
  'forgotten_ms', 'granted')
if unready then return reply('REFUSED', unready, ctx.schema or '') end
local pool = ctx.pool
pool.safe_mode, pool.policy_version = safe_mode + 0, policy_version + 0
pool.closed_until_ms = pool.closed_until_ms or closed_until_ms + 0
pool.max_memory_per_agent_mb = max_memory_per_agent_mb + 0
pool.allow_fractional_shares = allow_fractional_shares + 0
pool.max_leases_per_agent = max_leases_per_agent + 0

local q = {
  token = token_at(2),
  agent = word(3, 'agent', '^[%w._:@/-]+$', 128),
  memory_mb = int(4, 'memory_mb', 0, 9999999999999),
  devices = int(5, 'devices', 1, 64),
  exclusive = int(6, 'exclusive', 0, 1) == 1,
  host = ARGV[10] == '*' and '*' or word(10, 'host', '^[%w._ -]+$', 64),
  model = ARGV[11] == '*' and '*' or word(11, 'model', '^[%w._ -]+$', 64),
  placement = choice(12, 'placement', 'spread', 'pack'),
  max_hold_ms = int(8, 'max_hold_ms', 0, 9999999999999),
}
local ttl_ms, max_hold_ms = int(7, 'ttl_ms', 0, 604800000), q.max_hold_ms
if ttl_ms > 0 and ttl_ms < 1000 then ctx.bad = ctx.bad or 'ttl_ms' end
local priority = int(9, 'priority', 0, 9)
local or_cpu = choice(13, 'on_unavailable', 'refuse', 'cpu') == 'cpu'
local client, pid = word(14, 'client', '^[%w._-]*$', 64), word(15, 'pid', '^[%d:]*$', 40)
local owner = word(16, 'owner', '^[%w._:@/-]*$', 128)
local wait_ms = ARGV[17] and int(17, 'wait_ms', 0, 604800000) or 0
local note = ARGV[18] and word(18, 'note', '^[^%c]*$', 200) or ''
local uses = ARGV[19] and word(19, 'uses', '^[%w._:/=-]*$', 110) or ''
q.owner, q.priority, q.team = owner, priority, (ARGV[20] or '') ~= '' and word(20, 'team',
  '^[%w._-]+$', 64) or DEFAULT_TEAM
local after = (ARGV[23] or '') ~= '' and word(23, 'after', '^[%w._-]+$', 64) or ''
local preemptible = (ARGV[21] or '') ~= '' and int(21, 'preemptible', 0, 1) or 0
local yields = (ARGV[22] or '') ~= '' and int(22, 'yields', 0, 1) or 0
local traits = { team_of(q) }   -- fields of its record that few have
local function trait(name, value) traits[#traits + 1], traits[#traits + 2] = name, value end
if preemptible == 1 then trait('preemptible', '1') end
if yields == 1 then trait('yields', '1') end
if note ~= '' then trait('note', note) end
local used_uuid, used_mb = string.match(uses, '^([^=]+)=(%d+)$')
if uses ~= '' and (not used_uuid or #used_mb > 13 or wait_ms > 0 or q.devices > 1) then
  ctx.bad = ctx.bad or 'uses'
end
if ctx.bad then return reply('REFUSED', 'bad_request', ctx.bad) end
if q.memory_mb == 0 then q.memory_mb = default_memory_mb + 0 end

-- As asked, without the wait and before the policy's defaults, which may change between a call and
-- its repeat.
local request = table.concat(ARGV, '|', 4, 13)
local token, record = q.token, prefix .. 'record:' .. q.token
ctx.counts.granted = (granted_before or 0) + 0
catch_up(token)

local function granted(fence, expires_at_ms, reason, devices)
  local left_ms, told = math.max(0, expires_at_ms - ctx.now), {}
  for _, d in ipairs(devices) do
    for _, field in ipairs(OF_DEVICE) do told[#told + 1] = d[field] end
  end
  return reply('GRANTED', fence, expires_at_ms, left_ms, reason, unpack(told))
end

-- A repeat: the same lease with what is left of it, what became of it, or a waiter that polls.
local waiter, wait_until_ms = nil, nil
-- So long it is held at most, by the policy that stands now
if max_hold_ms == 0 then max_hold_ms = broker.team_policy(q.team).max_hold_ms end
-- What it names may have been forgotten since its last poll
local lately = (forgotten_ms or 0) + POLL_MS >= ctx.now
local known = call('EXISTS', record) == 1
local outcome = not known and broker.ended(token)
if outcome then return reply('LOST', outcome) end
-- Nothing new in a store that is full
if ctx.polling and not known then return reply('REFUSED', 'store_full', '') end
if known then
  local r = broker.asked(record)
  if r.state == 'active' and r.expires_at_ms < ctx.now
    and broker.unnoticed(token, r.expires_at_ms) then
    r = broker.asked(record)
  end
  if not r.state then return reply('LOST', broker.ended(token)) end
  if r.state == 'cooling' then return reply('LOST', broker.outcome(token)) end
  if r.agent ~= q.agent or r.request ~= request or (owner ~= '' and owner ~= r.owner)
    or r.team ~= q.team then
    return reply('CONFLICT')
  end
  if r.state == 'active' then
    return granted(r.fence, r.expires_at_ms, r.reason or '', broker.named(r.devices))
  end
  wait_until_ms = tonumber(r.wait_until_ms)
  if r.state == 'waiting' and wait_ms > 0 and pool.safe_mode == 0 then
    local place = call('ZRANK', prefix .. 'queue:' .. r.queue_id, token)
    local more = r.reserved or max_hold_ms > 0 and call('EXISTS', prefix .. 'backfill') == 1
    local gone = lately and place and place > 0 and broker.whole_devices.unknown(q)
    -- Behind others a poll is a heartbeat and no more
    if place and place > 0 and not more and not gone then
      broker.heartbeat(token, wait_ms, wait_until_ms)
      return reply('WAITING', place)
    end
  end
  waiter = broker.queue.read(token)
  q = waiter.q
end

local safe, open = pool.safe_mode == 1, ctx.now >= pool.closed_until_ms
-- An offer stands under the policy that it was made under, and while its devices take leases:
-- drained, lost or away, it is none.
local offered, devices = nil, nil
if waiter and waiter.state == 'offered' then
  local take = false
  devices, take = broker.named(waiter.devices)
  if take and open and not safe and waiter.policy_version == pool.policy_version then
    offered = waiter.devices
  else
    devices = nil
    broker.offers.withdraw(waiter)
  end
end

-- What its team may never have.
q.max_hold_ms = max_hold_ms
local most_mb, of_model = broker.most_mb(q)
local barred = not waiter and not safe and broker.barred(q, ttl_ms)
if barred then
  broker.count('refused_' .. barred[1])
  return reply('REFUSED', barred[1], barred[2])
end

-- May it have one, and where?
local why, place, tried, party, at_limit = nil, nil, false, nil, nil
local function room()
  local room_mb
  room_mb, party = broker.room(waiter or q, waiter and waiter.reservation_mb)
  return room_mb
end
if safe then
  why = 'safe_mode'
elseif waiter then
  if not offered then devices, why, place = broker.offers.poll(waiter, open) end
  if not open then why = 'closed' end
elseif not open then
  why = 'closed'
elseif broker.full_of_leases(q) then
  why, at_limit = 'limit', broker.full_of_leases(q).name
elseif used_uuid then
  devices, why = broker.in_use.select(q, used_uuid, used_mb + 0, room())
elseif pool.waiting > 0 and broker.offers.must_queue(q) then
  why = 'no_capacity'
else
  devices, why = broker.select(q, room())
  tried = true
end
if not devices and not used_uuid and max_hold_ms > 0 and ctx.pool.waiting > 0
  and (why == 'no_capacity' or why == 'agent_cap') then
  devices = broker.offers.backfill(q, room(), waiter)
  why = not devices and why or nil
end

if not devices then
  local never, limit_mb = nil, nil
  if why == 'no_capacity' or why == 'agent_cap' then
    never, limit_mb = broker.never(q, place and place > 0, most_mb)
    why, most_mb = never or why, limit_mb or most_mb
    if why == 'no_capacity' and q.host ~= '*' and call('HGET', prefix .. 'host:' .. q.host,
      'drained') == '1' then
      why = 'draining'
    end
  end
  if wait_ms > 0 and not never and not safe and why ~= 'limit' then
    at_limit = not waiter and broker.full(q)
    if not at_limit then
      if not place then
        local fields = { 'agent', q.agent, 'request', request, 'ttl_ms', ARGV[7], 'client', client,
          'pid', pid, 'owner', owner, unpack(traits) }
        local capped = why == 'agent_cap' and party and broker.holds(party) and party.name
        place = broker.queue.enqueue(q, tried, fields, priority, capped)
      end
      broker.heartbeat(token, wait_ms, wait_until_ms)
      return reply('WAITING', place)
    end
    why = 'limit'
  end
  if ctx.more == 1 and not safe and why ~= 'closed' then return reply('AGAIN') end
  if safe or why == 'closed' or why == 'limit' or not or_cpu then
    if waiter then broker.queue.end_wait(token, 'cancelled', true) end
    broker.count('refused_' .. why)
    return reply('REFUSED', why, broker.detail(q, why, at_limit or party and party.name, most_mb,
      of_model))
  end
  devices = {}
end

-- Grant. The fence grows across failover and lost writes too, where a plain counter would repeat.
local fence = last_fence + 0 + 1
if ctx.now_us > fence then fence = ctx.now_us end
set_pool('fence', fence)
fence = text(fence)
local expires_at_ms = ctx.now + (ttl_ms > 0 and ttl_ms or FOREVER_MS)
if max_hold_ms > 0 then expires_at_ms = math.min(expires_at_ms, ctx.now + max_hold_ms) end
local taken = offered
if not taken then
  if waiter then broker.queue.dequeue(waiter, false, true) end
  if used_uuid and devices[1] then broker.in_use.take(devices[1]) end
  local sum
  taken, sum = broker.allocate(q, devices)
  broker.add_to_parties(q, sum, 1)
end
for _, d in ipairs(devices) do
  call('SET', prefix .. 'lease:' .. d.uuid .. ':' .. token, fence, 'PX',
    text(expires_at_ms - ctx.now))
end
call('HSET', record, 'state', 'active', 'agent', q.agent, 'devices', taken, 'fence', fence,
  'granted_at_ms', text(ctx.now),
  'expires_at_ms', text(expires_at_ms), 'ttl_ms', ARGV[7], 'request', request, 'client', client,
  'pid', pid)
if owner ~= '' then trait('owner', owner) end
if why then trait('reason', why) end
if max_hold_ms > 0 then trait('hold_until_ms', text(ctx.now + max_hold_ms)) end
if traits[1] then call('HSET', record, unpack(traits)) end
if after ~= '' then broker.preemption.go_on(record, after) end
set_deadline(token, expires_at_ms)
broker.count(taken == '' and 'cpu_granted' or 'granted')
broker.event('granted', 'token', token, 'agent', q.agent, 'devices', taken, 'fence', fence,
  team_of(q))
return granted(fence, expires_at_ms, why or '', devices)
