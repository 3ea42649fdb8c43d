-- quotas: what teams have of models of GPUs, where their policy says so.
--
-- A policy may name models: `nominal_mb@<model>=`, `borrow_mb@<model>=`, a blank of the model as +.
-- A lease on a device of such a model counts against that quota alone, on any other device against
-- the pool-wide one. So a request that names no model gets a device whose model its team has quota
-- of: first where it stays within the nominal quota, then where it borrows.
--
-- A waiter is capped by the quota that it would count against, `team <name>#model <model>`; one
-- that names no model by `team <name>#model *`. lib/model_sums.lua counts.
--
--   limited   ids of queues whose heads name no model: a cap may hold them back on one model, and
--             what others hold on another, so they are checked when a sum of their parties falls

local MODELS_READ = '64'

local quotas = {}
broker.quotas = quotas

-- The models of registered devices with so much memory, the smallest first.
local function registered(memory_mb)
  return call('ZRANGE', prefix .. 'models', text(memory_mb), '+inf', 'BYSCORE', 'LIMIT', '0',
    MODELS_READ)
end

-- The quota of a team that a lease on a device of this model counts against, with what the team has
-- of it. `sums`: the team's.
function broker.quota(team, sums, model)
  local of = broker.team_policy(team)
  local mb, reserved_mb, named, name = sums.mb, sums.reserved_mb, of, sums.name
  if of.models and of.models[model] then
    local has = sums.models[model]
    mb, reserved_mb, named = has.mb, has.reserved_mb, of.models[model]
    name = name .. '#model ' .. model
  elseif of.models then
    for _, has in pairs(sums.models) do
      mb, reserved_mb = mb - has.mb, reserved_mb - has.reserved_mb
    end
  end
  return { name = name, mb = mb, reserved_mb = reserved_mb, leases = sums.leases,
    nominal_mb = named.nominal_mb, borrow_mb = named.borrow_mb }
end

-- MiB that a lease may have at most by quotas by model, and of which model that is: of one that the
-- policy names, * of whichever is registered; nil: the pool-wide quota.
function quotas.most_mb(q, of)
  local function most_of(one) return one.nominal_mb + one.borrow_mb end
  if q.model ~= '*' then
    local named = of.models[q.model]
    return most_of(named or of), named and q.model
  end
  local most_mb = -1
  for _, model in ipairs(registered(0)) do
    most_mb = math.max(most_mb, most_of(of.models[model] or of))
  end
  return most_mb < 0 and most_of(of) or most_mb, '*'
end

-- Quotas that a request may count against: one, or of a request that names no model one for each
-- model that is registered.
local function quotas_of(x, sums, model)
  local q = x.q or x
  if model or not broker.by_model(q) then
    return { broker.quota(x.team, sums, model or q.model) }
  end
  local found = {}
  for i, each in ipairs(registered(q.memory_mb)) do
    found[i] = broker.quota(x.team, sums, each)
  end
  return found
end

-- MiB that the quotas of its team leave x, on devices of this model where one is given; and the
-- party that would hold it back. `left(sums, most_mb, most_leases, own)`: what a cap leaves; `own`:
-- what is reserved for x counts as not there.
function quotas.room(x, sums, model, left)
  local of, best_mb, one = broker.team_policy(x.team), 0, nil
  local kept = string.match(x.reserved or '', '[^,]+')
  local at = kept and broker.device(kept)
  at = at and broker.quota(x.team, sums, at.model).name
  for _, quota in ipairs(quotas_of(x, sums, model)) do
    local mb = left(quota, broker.team_limit_mb(x.team, sums, quota), of.max_leases,
      quota.name == at)
    if not one or mb > best_mb then best_mb, one = mb, quota end
  end
  if not one or not model and broker.by_model(x.q or x) then
    one = { name = sums.name .. '#model *', mb = sums.mb, reserved_mb = sums.reserved_mb }
  end
  -- It has something where the end of a lease would leave it more room
  local has = one.mb > 0 or sums.leases >= of.max_leases
  return best_mb, { name = one.name, reserved_mb = one.reserved_mb,
    leases = has and sums.leases or 0 }
end

-- MiB that are left of the nominal quota of a model; for * of the one with most left, of those that
-- are registered.
function quotas.left_mb(team, sums, model)
  local of = broker.team_policy(team)
  if model ~= '*' or not of.models then
    local quota = broker.quota(team, sums, model)
    return quota.nominal_mb - quota.mb
  end
  local most_mb = -NEVER
  for _, each in ipairs(registered(0)) do
    most_mb = math.max(most_mb, quotas.left_mb(team, sums, each))
  end
  return most_mb
end

-- Each quota of a team that may hold waiters back, with the most that it may hold of it.
function quotas.each(team, sums)
  local of, found, top_mb = broker.team_policy(team), {}, -NEVER
  local function add(model)
    local quota = broker.quota(team, sums, model)
    quota.most_mb = broker.team_limit_mb(team, sums, quota)
    found[#found + 1] = quota
    top_mb = math.max(top_mb, quota.most_mb - quota.mb - quota.reserved_mb)
  end
  for _, model in ipairs(of.named or {}) do add(model) end
  add('*')
  if of.models then
    found[#found + 1] = { name = sums.name .. '#model *', mb = 0, reserved_mb = 0,
      leases = sums.leases, most_mb = top_mb }
  end
  return found
end

-- MiB that the caps of x leave it on a device of this model: `room_mb`, where that is for all.
function broker.room_on(x, model, room_mb, own_mb)
  if not broker.by_model(x.q or x) then return room_mb end
  return (broker.room(x, own_mb, nil, model))
end

-- Placement of a request that names no model.

local function with_model(q, model)
  local one = {}
  for name, value in pairs(q) do one[name] = value end
  one.model = model
  return one
end

-- Is a share of device a the better one? As the zsets have them.
local function better(q, a, b)
  if broker.whole(q) then return false end   -- the model of the smallest devices came first
  if q.placement == 'pack' then
    return a.free_mb < b.free_mb or a.free_mb == b.free_mb and a.uuid < b.uuid
  end
  return a.free_mb > b.free_mb or a.free_mb == b.free_mb and a.uuid > b.uuid
end

-- The devices that q gets now: of models whose nominal quota it stays within, else of those of
-- which its team may borrow; within the nominal ones alone where w says so. Nil and why not.
function quotas.select(q, w)
  local x, why, rooms = w or q, 'agent_cap', {}
  local _, _, sums = broker.parties(x)
  local models = registered(q.memory_mb)
  for _, model in ipairs(models) do
    rooms[model] = broker.room(x, w and w.reservation_mb, nil, model)
  end
  for _, own in ipairs({ true, false }) do
    local best
    for _, model in ipairs(models) do
      local room_mb, quota = rooms[model], broker.quota(q.team, sums, model)
      if own then room_mb = math.min(room_mb, quota.nominal_mb - quota.mb) end
      local devices, cause = broker.select(with_model(q, model), room_mb)
      if devices and (not best or better(q, devices[1], best[1])) then best = devices end
      if not own and cause == 'no_capacity' then why = cause end
    end
    if best then return best end
    if w and w.own_only then return nil, 'no_capacity' end
  end
  return nil, why
end

-- Why nothing that is registered could ever be q's, or nil; where it is its team's limit, what that
-- is at most.
function quotas.never(q)
  local found, order = nil, { agent_cap = 4, team_limit = 3, never_fits = 2, host_unknown = 1 }
  local limit_mb = 0
  for _, model in ipairs(registered(0)) do
    local one = with_model(q, model)
    local most_mb = broker.most_mb(one)
    local why = broker.never(one, false, most_mb)
    if not why then return nil end
    if not found or order[why] > order[found] then found = why end
    if why == 'team_limit' then limit_mb = math.max(limit_mb, most_mb) end
  end
  if not found then return broker.whole_devices.never_fits(q, NEVER) end
  return found, found == 'team_limit' and limit_mb or nil
end

-- A waiter found no room: its queue's head is checked when a sum of its parties falls.
function quotas.limit(q, queue_id)
  if broker.by_model(q) then call('SADD', prefix .. 'limited', queue_id) end
end

-- A queue has no head any more.
function quotas.unlimit(queue_id) call('SREM', prefix .. 'limited', queue_id) end

-- What x had is less now: check the heads that its parties' caps may have held back; of many those
-- whose turn it is, the others find what is free at their own polls.
function quotas.recheck(x)
  local ids = call('SMEMBERS', prefix .. 'limited')
  for _, id in ipairs(broker.some_of(ids)) do
    local entry = 'queue:' .. id
    local token = not ctx.work[entry] and call('ZRANGE', prefix .. entry, '0', '0')[1]
    local rank = token and broker.queue.ids(string.match(id, '^[^/]*/[^/]*'))[id]
    if rank then
      local agent, owner, team = unpack(call('HMGET', prefix .. 'record:' .. token, 'agent',
        'owner', 'team'))
      local same = agent == x.agent or (owner or '') ~= '' and owner == x.owner
        or (team or DEFAULT_TEAM) == (x.team or DEFAULT_TEAM)
      if same then ctx.work[entry] = rank end
    end
  end
end
