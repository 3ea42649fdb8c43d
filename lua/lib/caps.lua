-- caps: what the policy leaves the parties of a request: its agent, its API key, its team. A key
-- has the caps of an agent, so that more names get it no more; a team has its own (teams.lua).

local POLICY = { 'safe_mode', 'closed_until_ms', 'max_memory_per_agent_mb',
  'allow_fractional_shares', 'max_leases_per_agent', 'policy_version' }

-- The policy as it is at this moment; what this script has changed counts.
function broker.policy()
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

-- A number of the policy that few calls ask for.
function broker.policy_of(field)
  local pool = ctx.pool
  if not pool[field] then pool[field] = (call('HGET', POOL, field) or 0) + 0 end
  return pool[field]
end

-- MiB that a party's cap leaves beside what it holds and what is reserved for it; none when it has
-- as many leases as it may.
local function room_of(a, most_mb, most_leases)
  return a.leases < most_leases and most_mb - a.mb - a.reserved_mb or 0
end

broker.room_of = room_of

-- MiB that all caps leave, with `own_mb` of a reservation to count as not there, and the sums of
-- the party that leaves least. `gone`: what is to count as not held, by the party's name.
function broker.room(x, own_mb, gone)
  local pool, own = broker.policy(), own_mb or 0
  local agent, key, team = broker.parties(x)
  local most_mb, most = pool.max_memory_per_agent_mb, pool.max_leases_per_agent
  local function of(a, mb, leases)
    local less = gone and gone[a.name]
    if less then
      a = { mb = a.mb - less.mb, leases = a.leases - less.leases, reserved_mb = a.reserved_mb }
    end
    local room_mb = room_of(a, mb, leases)
    return a.leases < leases and room_mb + own or room_mb
  end
  local least_mb, party = of(agent, most_mb, most), agent
  if key then
    local mb = of(key, most_mb, most)
    if mb < least_mb then least_mb, party = mb, key end
  end
  if pool.teams > 0 then
    local mb = of(team, broker.team_limit_mb(x.team, team), broker.team_policy(x.team).max_leases)
    if mb < least_mb then least_mb, party = mb, team end
  end
  return least_mb, party
end

-- Does a party have anything, but for `own_mb` of a reservation, whose end would leave its cap more
-- room?
function broker.holds(a, own_mb)
  return a.leases > 0 or a.reserved_mb > (own_mb or 0)
end

-- Has a party as many leases as it may? Then which.
function broker.full_of_leases(q)
  local agent, key, team = broker.parties(q)
  local most, of_team = broker.policy().max_leases_per_agent, broker.team_policy(q.team)
  if agent.leases >= most then return agent end
  if key and key.leases >= most then return key end
  return team.leases >= of_team.max_leases and team or nil
end

-- Does a party have as many waiters as it may? Then which.
function broker.full(q)
  local agent, key, team = broker.parties(q)
  local most, of_team = broker.policy_of('max_waiters_per_agent'), broker.team_policy(q.team)
  if agent.waiters >= most then return agent.name end
  if key and key.waiters >= most then return key.name end
  return team.waiters >= of_team.max_waiters and team.name
end
