-- ledger: the record of each lease. It never expires by itself: without it nothing could be given
-- back.
--
-- record:<token>   the lease as it stands; how it ended: lib/tombstones.lua
-- agents           of each party: <name> -> MiB held, <name>#leases -> how many leases, offers
--                  included; no field once both are 0;
--                  <name>#waiters -> how many wait, <name>#reserved -> MiB reserved for them; no
--                  field at 0; <name>#use of a team: lib/teams.lua; <name>#model <model> and
--                  <name>#reserved <model> of a team: lib/model_sums.lua
--
-- The parties of a lease are those that it counts against: its agent, the API key by which it was
-- asked for (`key <name>`), its team (`team <name>`). No agent's name has a blank.

-- What a repeated acquire needs of a record.
function broker.asked(record)
  local state, agent, request, devices, fence, expires_at_ms, reason, queue_id, wait_until_ms,
    owner, reserved, team = unpack(call('HMGET', record, 'state', 'agent', 'request', 'devices',
    'fence', 'expires_at_ms', 'reason', 'queue_id', 'wait_until_ms', 'owner', 'reserved', 'team'))
  return {
    state = state, agent = agent, request = request, devices = devices, fence = fence,
    expires_at_ms = tonumber(expires_at_ms), reason = reason, queue_id = queue_id,
    wait_until_ms = wait_until_ms, owner = owner, reserved = reserved,
    team = team or DEFAULT_TEAM,
  }
end

-- What renew and release need of it: state, fence, devices, expires_at_ms, ttl_ms, hold_until_ms,
-- revoked, owner, notice, agent, team, preempt_at_ms, wanted, granted_at_ms, enqueued_ms. Once as
-- the straight path has read it for this call.
function broker.read(record)
  local read = ctx.read
  if read then
    ctx.read = nil
    return unpack(read, 1, 15)
  end
  return unpack(call('HMGET', record, 'state', 'fence', 'devices', 'expires_at_ms', 'ttl_ms',
    'hold_until_ms', 'revoked', 'owner', 'notice', 'agent', 'team', 'preempt_at_ms', 'wanted',
    'granted_at_ms', 'enqueued_ms'))
end

-- What a renewal tells its holder: findings, the time of a preemption, and that others want it, in
-- words with commas between them.
function broker.told(notice, preempt_at_ms, wanted)
  local words = notice or ''
  if preempt_at_ms then
    words = words .. (words ~= '' and ',' or '') .. 'preempt:' .. preempt_at_ms
  end
  if wanted then words = words .. (words ~= '' and ',' or '') .. 'wanted:' .. wanted end
  return words
end

-- The sums of parties by name, each nil where there is no name: MiB and leases that it holds, its
-- waiting requests, MiB reserved for them. One read for all that this call has not read yet.
local function sums_of(agent, key, team)
  local agents = ctx.agents
  local a, k, t = agents[agent], key and agents[key], agents[team]
  if a and t and (k or not key) then return a, k, t end
  local fields, missing, each = {}, {}, ctx.pool.waiting > 0 and 4 or 2
  for _, name in ipairs({ agent, team, key }) do
    if not agents[name] then
      local n = #fields
      missing[#missing + 1], fields[n + 1], fields[n + 2] = name, name, name .. '#leases'
      if each == 4 then fields[n + 3], fields[n + 4] = name .. '#waiters', name .. '#reserved' end
    end
  end
  local use_at = ctx.pool.teams > 0 and not t and #fields + 1
  local models = nil
  if use_at then
    fields[use_at] = team .. '#use'
    models = ctx.pool.models and broker.model_sums.fields(team, fields)
  end
  local values = call('HMGET', prefix .. 'agents', unpack(fields))
  for i, name in ipairs(missing) do
    local at = (i - 1) * each
    agents[name] = { name = name, mb = (values[at + 1] or 0) + 0,
      leases = (values[at + 2] or 0) + 0,
      waiters = each == 4 and (values[at + 3] or 0) + 0 or 0,
      reserved_mb = each == 4 and (values[at + 4] or 0) + 0 or 0 }
  end
  if use_at then broker.read_use(agents[team], values[use_at]) end
  if models then agents[team].models = broker.model_sums.read(models, values, use_at) end
  return agents[agent], key and agents[key], agents[team]
end

broker.sums_of = sums_of

-- The parties of what has an agent, an owner and a team: the agent's sums, those of its key or nil,
-- those of its team.
local function parties(x)
  local key = x.owner and x.owner ~= '' and 'key ' .. x.owner or nil
  return sums_of(x.agent, key, 'team ' .. (x.team or DEFAULT_TEAM))
end

broker.parties = parties

function broker.add_to_parties(x, mb, leases)
  local agent, key, team = parties(x)
  if ctx.pool.teams > 0 then broker.accrue(team) end
  agent.mb, agent.leases, agent.held = agent.mb + mb, agent.leases + leases, true
  team.mb, team.leases, team.held = team.mb + mb, team.leases + leases, true
  if key then key.mb, key.leases, key.held = key.mb + mb, key.leases + leases, true end
end

-- Count MiB that are reserved for a waiter, or no more, on devices of this model.
function broker.count_reserved(x, mb, model)
  if mb == 0 then return end
  local agent, key, team = parties(x)
  agent.reserved_mb, agent.reserved = math.max(0, agent.reserved_mb + mb), true
  team.reserved_mb, team.reserved = math.max(0, team.reserved_mb + mb), true
  if team.models then broker.model_sums.count_reserved(team, model, mb) end
  if key then key.reserved_mb, key.reserved = math.max(0, key.reserved_mb + mb), true end
end

-- Write what has become of the parties that this script touched.
function broker.flush_agents()
  local set, gone = {}, {}
  local function write(field, n, there)
    if there then set[#set + 1], set[#set + 2] = field, text(n) else gone[#gone + 1] = field end
  end
  for name, a in pairs(ctx.agents) do
    if a.held then
      write(name, a.mb, a.leases > 0)
      write(name .. '#leases', a.leases, a.leases > 0)
    end
    if a.waited then write(name .. '#waiters', a.waiters, a.waiters > 0) end
    if a.waited and a.waiters == 0 then
      gone[#gone + 1] = name .. '#reserved'
    elseif a.reserved then
      write(name .. '#reserved', a.reserved_mb, a.reserved_mb > 0)
    end
    if a.used then set[#set + 1], set[#set + 2] = name .. '#use', broker.use_text(a) end
    for model, has in pairs(a.models or {}) do
      if has.held then write(name .. '#model ' .. model, has.mb, has.mb > 0) end
      if has.reserved then
        write(name .. '#reserved ' .. model, has.reserved_mb, has.reserved_mb > 0)
      end
    end
  end
  if set[1] then call('HSET', prefix .. 'agents', unpack(set)) end
  if gone[1] then call('HDEL', prefix .. 'agents', unpack(gone)) end
end
