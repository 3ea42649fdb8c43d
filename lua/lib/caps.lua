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

-- Is it the device that decides which quota a request counts against? See quotas.lua.
function broker.by_model(q)
  return ctx.pool.models and q.model == '*' and broker.team_policy(q.team).models ~= nil
end

-- MiB that a lease may have at most by the quotas of its team, and of which model that is, if of
-- one.
function broker.most_mb(q)
  local of = broker.team_policy(q.team)
  if of.models then return broker.quotas.most_mb(q, of) end
  return of.nominal_mb + of.borrow_mb
end

-- MiB that all caps leave, with `own_mb` of a reservation to count as not there, and the sums of
-- the party that leaves least. `gone`: what is to count as not held, by the party's name; `model`:
-- of the devices, where it is known.
function broker.room(x, own_mb, gone, model)
  local pool, own = broker.policy(), own_mb or 0
  local agent, key, team = broker.parties(x)
  local most_mb, most = pool.max_memory_per_agent_mb, pool.max_leases_per_agent
  local function of(a, mb, leases, mine)
    local less = gone and gone[a.name]
    if less then
      a = { mb = a.mb - less.mb, leases = a.leases - less.leases, reserved_mb = a.reserved_mb }
    end
    local room_mb = room_of(a, mb, leases)
    return a.leases < leases and mine and room_mb + own or room_mb
  end
  local least_mb, party = of(agent, most_mb, most, true), agent
  if key then
    local mb = of(key, most_mb, most, true)
    if mb < least_mb then least_mb, party = mb, key end
  end
  if pool.teams > 0 then
    local policy, mb, quota = broker.team_policy(x.team), nil, team
    if policy.models then
      mb, quota = broker.quotas.room(x, team, model, of)
    else
      mb = of(team, broker.team_limit_mb(x.team, team, team), policy.max_leases, true)
    end
    if mb < least_mb then least_mb, party = mb, quota end
  end
  return least_mb, party
end

-- Does a party have anything, but for `own_mb` of a reservation, whose end would leave its cap more
-- room?
function broker.holds(a, own_mb)
  return a.leases > 0 or a.reserved_mb > (own_mb or 0)
end

-- Heads that one fall of a sum lets a call look at.
local MOST_LOOKED_AT = 16

-- Of a list of them those whose turn it is: all, where they are not more.
function broker.some_of(list)
  local some, n = {}, #list
  for i = 1, math.min(n, MOST_LOOKED_AT) do some[i] = list[(ctx.now_us + i) % n + 1] end
  return some
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

-- What the team of a request may never have, by the policy that stands now: a code and its detail,
-- or nil. `ttl_ms`: as asked, 0 = no expiry.
function broker.barred(q, ttl_ms)
  local of = broker.team_policy(q.team)
  local most_mb, of_model = broker.most_mb(q)
  local function limit(field, most) return { 'team_limit', field .. '=' .. text(most) } end
  if not broker.team_known(q.team) then return { 'team_unknown', q.team } end
  if q.priority > of.max_priority then return limit('max_priority', of.max_priority) end
  if of.max_ttl_ms > 0 and (ttl_ms == 0 or ttl_ms > of.max_ttl_ms) then
    return limit('max_ttl_s', of.max_ttl_ms / 1000)
  end
  if of.max_hold_ms > 0 and q.max_hold_ms > of.max_hold_ms then
    return limit('max_hold_s', of.max_hold_ms / 1000)
  end
  if q.memory_mb * q.devices > most_mb then
    return limit(broker.limit_word(of_model), most_mb)
  end
end

-- What a renewal adds, ms: as asked, but no longer than both what the lease was granted with and
-- what its team's requests may ask for; 0 = no expiry.
function broker.renewal_ttl(asked_ms, granted_ms, team)
  local most_ms = broker.team_policy(team).max_ttl_ms
  if most_ms == 0 or granted_ms == 0 then return asked_ms end
  most_ms = math.max(most_ms, granted_ms)
  return asked_ms > 0 and asked_ms <= most_ms and asked_ms or most_ms
end

-- Why nothing that is registered could ever be q's, within caps that do not change, or nil.
-- `behind`: another waiter of its queue is before it, so that only names are looked at.
function broker.never(q, behind, most_mb)
  if not behind and broker.by_model(q) then return broker.quotas.never(q) end
  local cap_mb = ctx.pool.max_memory_per_agent_mb
  local least_mb, never = math.min(most_mb, cap_mb), nil
  if behind then
    never = broker.whole_devices.unknown(q)
  else
    never = broker.whole_devices.never_fits(q, least_mb)
  end
  if not never and q.memory_mb * q.devices > least_mb then never = 'agent_cap' end
  return never == 'agent_cap' and most_mb < cap_mb and 'team_limit' or never
end

-- The limit of what a team may ever hold, of a model where it is of one.
function broker.limit_word(model) return model and 'most_mb@' .. model or 'most_mb' end

-- What a refusal says beside its reason. `party`: by name, at whose cap it is; the agent's own is
-- not said. `of_model`: whose limit `most_mb` is.
function broker.detail(q, why, party, most_mb, of_model)
  if why == 'host_unknown' then return broker.nearly(q.host) end
  if why == 'team_limit' then return broker.limit_word(of_model) .. '=' .. text(most_mb) end
  return (why == 'limit' or why == 'agent_cap') and party and party ~= q.agent and party or ''
end
