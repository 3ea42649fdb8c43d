-- kept: what a function library keeps of a pool between its calls, so that the straight path need
-- not read it again: the pool's own fields, and the devices and agents of its last calls.
--
-- It is as the pool stands while the pool's `sequence` is what the library's last call wrote. Every
-- other writer moves that field: another library's call, a script, a verb's plain path. After a
-- failover, a restart or a FUNCTION RESTORE the library keeps nothing yet, or the data have another
-- sequence. So what is kept may be void, never wrong. A hand that edits a pool moves the field too:
-- HINCRBY gpu:{POOL}:pool sequence 1.
--
-- The library makes it void before the first write of a call, and keeps it again after the last
-- one: an error in between leaves it void.

-- Kept at most; one more, and what is kept of its kind goes. Each is work for the garbage collector
local MOST_POOLS, MOST_DEVICES, MOST_AGENTS, MOST_RECORDS, MOST_TEXTS = 16, 512, 512, 512, 4096

-- What begin() and the verbs of the straight path read of the pool.
local KEPT_FIELDS = { 'sequence', 'schema', 'epoch', 'offset_ms', 'last_ms', 'waiting',
  'looked_ms', 'next_deadline_ms', 'fence', 'safe_mode', 'closed_until_ms',
  'max_memory_per_agent_mb', 'allow_fractional_shares', 'default_memory_mb',
  'max_leases_per_agent', 'policy_version', 'forgotten_ms', 'granted', 'released', 'run_id',
  'replid', 'teams', 'half_life_s', 'team_lend_limits',
  'noticed_ms' }
local pool_count = 0
local texts, text_count = {}, 0

-- The same small numbers come again: MiB and counts.
text = function(n)
  local known = texts[n]
  if known then return known end
  known = format('%d', n)
  if n < 16777216 then
    if text_count == MOST_TEXTS then texts, text_count = {}, 0 end
    texts[n], text_count = known, text_count + 1
  end
  return known
end

-- The kept state of a pool whose fields were read just now. Nil: it is not for the straight path.
local function keep_pool(f)
  local seen_ms = seen[POOL] or NEVER
  if f.schema ~= SCHEMA and f.schema ~= WITH_MODELS or f.waiting ~= '0'
    or not f.next_deadline_ms or f.last_ms + 0 < seen_ms then
    return nil
  end
  local k = kept[KEYS[1]]
  if not k then
    if pool_count == MOST_POOLS then kept, pool_count = {}, 0 end
    k, pool_count = {}, pool_count + 1
    kept[KEYS[1]] = k
  end
  k.fields, k.prefix, k.POOL, k.DEADLINES = f, prefix, POOL, DEADLINES
  k.EVENTS, k.AGENTS = prefix .. 'events', prefix .. 'agents'
  k.sequence, k.number = f.sequence, (f.sequence or 0) + 0
  k.epoch, k.offset_ms, k.last, k.looked_ms = f.epoch, f.offset_ms + 0, f.last_ms + 0,
    (f.looked_ms or 0) + 0
  k.next_deadline = f.next_deadline_ms == '' and NEVER or f.next_deadline_ms + 0
  k.noted_deadline = k.next_deadline
  k.fence, k.granted, k.released = f.fence + 0, (f.granted or 0) + 0, (f.released or 0) + 0
  k.shares = f.safe_mode == '0' and f.allow_fractional_shares == '1'
  k.closed_until_ms, k.default_memory_mb = f.closed_until_ms + 0, f.default_memory_mb + 0
  k.max_mb, k.max_leases = f.max_memory_per_agent_mb + 0, f.max_leases_per_agent + 0
  k.pool = { waiting = 0, teams = (f.teams or 0) + 0, half_life_ms = (f.half_life_s or 0) * 1000,
    team_lend_limits = (f.team_lend_limits or 0) + 0, models = f.schema == WITH_MODELS }
  k.devices, k.device_count, k.agents, k.agent_count, k.policies = {}, 0, {}, 0, {}
  k.records, k.record_count, k.counts = {}, 0, {}
  return k
end

-- The state of the pool for a call of the straight path, on the pool's clock, or nil: the plain
-- path decides, and has in `begun` what was read already. It is the call's ctx.
local function recall()
  local k, now_us = kept[KEYS[1]], time_us()
  if k then
    prefix, POOL, DEADLINES = k.prefix, k.POOL, k.DEADLINES
    if not k.sequence or call('HGET', POOL, 'sequence') ~= k.sequence then k = nil end
  end
  if not k then
    prefix = KEYS[1] .. ':'
    POOL, DEADLINES = prefix .. 'pool', prefix .. 'deadlines'
    local values, fields = call('HMGET', POOL, unpack(KEPT_FIELDS)), {}
    for i = 1, #values do fields[KEPT_FIELDS[i]] = values[i] end
    begun = { now_us = now_us, fields = fields }
    k = fields.schema and keep_pool(fields)
    if not k then return nil end
  end
  begun = k
  local now = (now_us - now_us % 1000) / 1000 + k.offset_ms
  k.now_us, k.now, k.looked = now_us, now, false
  -- Not nil: a key that goes and comes again makes Lua count all of the table's keys each time
  k.shard, k.read, k.none_free, k.asker, k.asker_key, k.asker_team = false, false, false, false,
    false, false
  if now < k.last or now - k.last > LEAP_MS or k.next_deadline < now then return nil end
  if now - k.looked_ms > LOOK_MS then
    local run_id, replid = broker.which_server()
    if run_id and (run_id ~= k.fields.run_id or replid ~= k.fields.replid) then return nil end
    k.looked = run_id ~= nil
  end
  ctx = k
  return k
end

-- A device of the pool as kept, or read now; one that is full of what is rare is not kept.
local function kept_device(k, uuid)
  local d = k.devices[uuid]
  if d then return d end
  if k.device_count == MOST_DEVICES then k.devices, k.device_count = {}, 0 end
  d = broker.device(uuid)
  if d then k.device_count = k.device_count + 1 end
  return d
end

-- The sums of the parties of x, as kept or read now.
local function kept_parties(k, x)
  if k.agent_count + 3 > MOST_AGENTS then k.agents, k.agent_count = {}, 0 end
  local agent, key, team = broker.parties(x)
  for i = 1, 3 do
    local a = i == 1 and agent or i == 2 and team or i == 3 and key
    if a and not a.leases_field then
      k.agent_count, a.leases_field = k.agent_count + 1, a.name .. '#leases'
    end
  end
  return agent, key, team
end

-- Count a lease on device d for the parties, or no more, and write their sums. A team's use goes
-- with them, and what it has of the model.
local function count_lease(k, agent, key, team, d, mb, leases)
  if k.pool.teams > 0 then broker.accrue(team) end
  agent.mb, agent.leases = agent.mb + mb, agent.leases + leases
  team.mb, team.leases = team.mb + mb, team.leases + leases
  if key then key.mb, key.leases = key.mb + mb, key.leases + leases end
  if agent.leases > 0 and team.leases > 0 and k.pool.teams == 0 and not key then
    call('HSET', k.AGENTS, agent.name, text(agent.mb), agent.leases_field, text(agent.leases),
      team.name, text(team.mb), team.leases_field, text(team.leases))
    return
  end
  local set, gone = {}, {}
  for i = 1, 3 do
    local a = i == 1 and agent or i == 2 and team or i == 3 and key
    local n = #set
    if a and a.leases > 0 then
      set[n + 1], set[n + 2], set[n + 3], set[n + 4] = a.name, text(a.mb), a.leases_field,
        text(a.leases)
    elseif a then
      gone[#gone + 1], gone[#gone + 2] = a.name, a.leases_field
    end
  end
  if k.pool.teams > 0 then
    set[#set + 1], set[#set + 2] = team.name .. '#use', broker.use_text(team)
  end
  local has = team.models and team.models[d.model]
  if has then
    has.mb = has.mb + mb
    local field = team.name .. '#model ' .. d.model
    if has.mb > 0 then
      set[#set + 1], set[#set + 2] = field, text(has.mb)
    else
      gone[#gone + 1] = field
    end
  end
  if set[1] then call('HSET', k.AGENTS, unpack(set)) end
  if gone[1] then call('HDEL', k.AGENTS, unpack(gone)) end
end

-- What the straight path needs of an active lease's record that is not kept. Nil: it is not active,
-- revoked or to be preempted.
local function read_record(k, token)
  local state, fence, devices, ends_at_ms, ttl_ms, hold_until_ms, revoked, owner, notice, agent,
    team, preempt_at_ms, wanted, granted_at_ms, enqueued_ms = broker.read(prefix .. 'record:'
    .. token)
  k.read = { state, fence, devices, ends_at_ms, ttl_ms, hold_until_ms, revoked, owner, notice,
    agent, team, preempt_at_ms, wanted, granted_at_ms, enqueued_ms }
  if state ~= 'active' or revoked or preempt_at_ms then return nil end
  return { token = token, fence = fence, devices = devices, expires_at_ms = ends_at_ms + 0,
    ttl_ms = ttl_ms + 0, hold_until_ms = hold_until_ms and hold_until_ms + 0, owner = owner,
    notice = broker.told(notice, nil, wanted), agent = agent, team = team,
    granted_at_ms = granted_at_ms, enqueued_ms = enqueued_ms }
end

local function keep_record(k, token, r)
  if k.records[token] then return end
  if k.record_count == MOST_RECORDS then k.records, k.record_count = {}, 0 end
  k.records[token], k.record_count = r, k.record_count + 1
end

local function forget_record(k, token)
  if k.records[token] then k.records[token], k.record_count = nil, k.record_count - 1 end
end

-- The last write of a call: the pool's clock and sequence, and up to two fields more. From here on
-- what is kept is as the pool stands. `now`, `stamp`: the pool's time and Redis's as texts, where
-- the call has them.
local function keep(k, now, stamp, name, value, other, other_value)
  local fields, number = k.fields, k.now_us
  if number <= k.number then number, stamp = k.number + 1, nil end
  local sequence = stamp or text(number)
  if k.looked or k.next_deadline ~= k.noted_deadline then
    local changes = { 'last_ms', now, 'sequence', sequence, name, value, other, other_value }
    local n = #changes
    if k.looked then
      k.looked_ms, fields.looked_ms = k.now, now
      changes[n + 1], changes[n + 2], n = 'looked_ms', now, n + 2
    end
    if k.next_deadline ~= k.noted_deadline then
      k.noted_deadline, fields.next_deadline_ms = k.next_deadline, text(k.next_deadline)
      changes[n + 1], changes[n + 2] = 'next_deadline_ms', fields.next_deadline_ms
    end
    call('HSET', POOL, unpack(changes))
  elseif other then
    call('HSET', POOL, 'last_ms', now, 'sequence', sequence, name, value, other, other_value)
  elseif name then
    call('HSET', POOL, 'last_ms', now, 'sequence', sequence, name, value)
  else
    call('HSET', POOL, 'last_ms', now, 'sequence', sequence)
  end
  if name then fields[name] = value end
  if other then fields[other] = other_value end
  fields.last_ms, fields.sequence = now, sequence
  k.last, k.number, k.sequence, seen[POOL], begun = k.now, number, sequence, k.now, nil
end

local function next_deadline_of(k)
  local at = k.next_deadline
  return at == NEVER and '' or at
end

-- The first word of the reply of a call that ends here: see reply().
local function tagged(tag, mark) return mark and tag .. ' ' .. mark or tag end
