-- model_sums: the MiB that teams hold of the models that their policies name; see quotas.lua.
--
--   team <name>#model <model>      of `agents`: MiB that a team holds on devices of that model
--   team <name>#reserved <model>   MiB of these that are reserved for its waiters; no field at 0
--
-- They are read and written with the team's other sums, and counted anew when policies are set. A
-- library that does not know them would leave them wrong: `schema` of such a pool is 4+models.

local sums = {}
broker.model_sums = sums

-- MiB of a team's devices, `uuid=mb,...`, that count against its quota of this model.
function sums.part_of(team, devices, model)
  local of, sum = broker.team_policy(team), 0
  for uuid, mb in string.gmatch(devices, '([^,]+)=(%d+)') do
    local d = of.models and broker.device(uuid)
    local same = not d or d.model == model or not of.models[d.model] and not of.models[model]
    sum = sum + (same and mb or 0)
  end
  return sum
end

-- Add the fields of a team's sums by model to those that are read; its models, or nil.
function sums.fields(team, fields)
  local models = broker.team_policy(string.sub(team, 6)).named
  for _, model in ipairs(models or {}) do
    local n = #fields
    fields[n + 1], fields[n + 2] = team .. '#model ' .. model, team .. '#reserved ' .. model
  end
  return models
end

-- The sums that were read for them, from the value behind `at` on.
function sums.read(models, values, at)
  local found = {}
  for i, model in ipairs(models) do
    found[model] = { mb = (values[at + 2 * i - 1] or 0) + 0,
      reserved_mb = (values[at + 2 * i] or 0) + 0 }
  end
  return found
end

-- Count MiB on a device of this model for the team of x, or no more.
function sums.count(x, model, mb)
  local _, _, team = broker.parties(x)
  local has = team.models and team.models[model]
  if has then has.mb, has.held = has.mb + mb, true end
end

-- The same of MiB that are reserved for a waiter.
function sums.count_reserved(team, model, mb)
  local has = team.models[model]
  if has then has.reserved_mb, has.reserved = math.max(0, has.reserved_mb + mb), true end
end

-- A lease that holds devices, or is offered them: nil, or its team and what it has of this one.
local function held_on(token, uuid)
  local state, agent, owner, team, devices = unpack(call('HMGET', prefix .. 'record:' .. token,
    'state', 'agent', 'owner', 'team', 'devices'))
  if state ~= 'active' and state ~= 'offered' then return nil end
  for each, mb in string.gmatch(devices, '([^,]+)=(%d+)') do
    if each == uuid then
      return { agent = agent, owner = owner, team = team or DEFAULT_TEAM, mb = mb + 0 }
    end
  end
end

-- A device is of another model from now on: what is held on it counts there.
function sums.move(d, model)
  if not ctx.pool.models or model == d.model then return end
  for _, token in ipairs(call('SMEMBERS', prefix .. 'holders:' .. d.uuid)) do
    local x = held_on(token, d.uuid)
    if x then
      sums.count(x, d.model, -x.mb)
      sums.count(x, model, x.mb)
    end
  end
end

-- Forget the sums by model, by the policies that still stand.
function sums.forget()
  if not ctx.pool.models then return end
  local lines = call('HGETALL', prefix .. 'teams')
  call('DEL', prefix .. 'limited')
  for i = 1, #lines, 2 do
    for _, model in ipairs(broker.policy_of_line(lines[i + 1]).named or {}) do
      local name = 'team ' .. lines[i]
      call('HDEL', prefix .. 'agents', name .. '#model ' .. model, name .. '#reserved ' .. model)
    end
  end
end

-- Count them anew, from the records, for the policies of these teams; names and lines in turn.
function sums.count_anew(teams)
  local wanted, found = {}, {}
  for i = 1, #teams, 2 do
    for _, model in ipairs(broker.policy_of_line(teams[i + 1]).named or {}) do
      wanted[model] = wanted[model] or {}
      wanted[model][teams[i]] = true
    end
  end
  local function add(team, kind, model, mb)
    if not wanted[model][team] then return end
    local field = 'team ' .. team .. kind .. model
    found[field] = (found[field] or 0) + mb
  end
  for model in pairs(wanted) do
    local seen = { [''] = true }
    for _, uuid in ipairs(call('ZRANGE', prefix .. 'fits:model/' .. model, '0', '-1')) do
      for _, token in ipairs(call('SMEMBERS', prefix .. 'holders:' .. uuid)) do
        local x = held_on(token, uuid)
        if x then add(x.team, '#model ', model, x.mb) end
      end
      local waiter = call('HGET', prefix .. 'device:' .. uuid, 'reserved_for') or ''
      if not seen[waiter] then
        seen[waiter] = true
        local team, mb = unpack(call('HMGET', prefix .. 'record:' .. waiter, 'team',
          'reservation_mb'))
        add(team or DEFAULT_TEAM, '#reserved ', model, mb or 0)
      end
    end
  end
  for field, mb in pairs(found) do
    if mb > 0 then call('HSET', prefix .. 'agents', field, text(mb)) end
  end
  local before, n = ctx.pool.models, #ctx.changes
  ctx.pool.models = next(wanted) ~= nil
  if before == ctx.pool.models then return end
  ctx.changes[n + 1], ctx.changes[n + 2] = 'schema', ctx.pool.models and WITH_MODELS or SCHEMA
end
