-- placement: the device for a request.

local HOST_DEVICES = '64'          -- looked at when a host and a model are named
local MODELS, HOSTS = '8', '16'    -- looked at when a request for whole devices names none

-- Is the whole of each device wanted? Then memory_mb is the least that each must have.
function broker.whole(q)
  return q.exclusive or q.devices > 1 or ctx.pool.allow_fractional_shares == 0
end

-- May d be one of the devices of q? A CUDA process can use but one part of a divided GPU, and no
-- other device beside it; a HIP process uses partitions of AMD's cards as it uses GPUs.
function broker.joins(q, d)
  return q.devices == 1 or d.parent == '' or string.sub(d.uuid, 1, 4) == 'amd:'
end

function broker.selector(q)
  if q.host ~= '*' then return 'host/' .. q.host end
  if q.model ~= '*' then return 'model/' .. q.model end
  return '*'
end

-- What only requests for whole devices need, and those that found no room.
local whole = {}
broker.whole_devices = whole

-- Groups of devices of one host and model where q may find as many as it wants: `counted` is a zset
-- per model, host -> how many there are. Best fit first.
function whole.groups(q, counted)
  local found = {}
  local models = q.model ~= '*' and { q.model } or
    call('ZRANGE', prefix .. 'models', q.memory_mb, '+inf', 'BYSCORE', 'LIMIT', '0', MODELS)
  for _, model in ipairs(models) do
    local hosts = q.host ~= '*' and { q.host } or
      call('ZRANGE', prefix .. counted .. model, q.devices, '+inf', 'BYSCORE', 'LIMIT', '0', HOSTS)
    for _, host in ipairs(hosts) do found[#found + 1] = host .. '/' .. model end
  end
  return found
end

-- A device that a hand has removed is idle no more.
function whole.unlist(group, uuid)
  local host, model = string.match(group, '^([^/]*)/(.*)$')
  local hosts = prefix .. 'idlehosts:' .. model
  if call('ZREM', prefix .. 'idle:' .. group, uuid) == 1
    and call('ZADD', hosts, 'INCR', '-1', host) + 0 < 1 then
    call('ZREM', hosts, host)
  end
end

-- The devices that q gets now, or nil and why not.
function whole.select(q, room_mb)
  local why = 'no_capacity'
  for _, group in ipairs(whole.groups(q, 'idlehosts:')) do
    local ids = call('ZRANGE', prefix .. 'idle:' .. group, q.memory_mb, '+inf', 'BYSCORE', 'LIMIT',
      '0', q.devices)
    if #ids == q.devices then
      local devices, sum = {}, 0
      for i, uuid in ipairs(ids) do
        devices[i] = broker.device(uuid)
        if not devices[i] then whole.unlist(group, uuid) end
        if not devices[i] or not broker.joins(q, devices[i]) then sum = nil break end
        sum = sum + devices[i].free_mb
      end
      if sum and sum <= room_mb then return devices end
      if sum then why = 'agent_cap' end
    end
  end
  return nil, why
end

-- MiB that count against an agent's cap when the whole of d is leased: what a driver uses on it
-- does not.
local function whole_mb(d)
  return d.total_mb - d.system_mb - (d.unleased_mb <= d.idle_unleased_mb and math.max(0,
    d.unleased_mb) or 0)
end

-- The least that q could ever count against its agent's cap, of those that are listed in
-- `fits:<of>`; nil: they are too few.
local function least_mb(q, of, cap_mb)
  local key, least, sum = prefix .. 'fits:' .. of, text(q.memory_mb), 0
  local found = call('ZRANGE', key, least, '+inf', 'BYSCORE', 'LIMIT', '0', text(q.devices),
    'WITHSCORES')
  if #found < 2 * q.devices then return nil end
  local first = q.devices > 1 and broker.device(found[1])
  if first and not broker.joins(q, first) then return nil end
  for i = 2, #found, 2 do sum = sum + found[i] end
  if sum <= cap_mb then return sum end
  local sizes = {}   -- what is used on them without a lease decides
  for _, uuid in ipairs(call('ZRANGE', key, least, '+inf', 'BYSCORE', 'LIMIT', '0',
    HOST_DEVICES)) do
    local d = broker.device(uuid)
    if d then sizes[#sizes + 1] = whole_mb(d) end
  end
  if #sizes < q.devices then return nil end
  table.sort(sizes)
  sum = 0
  for i = 1, q.devices do sum = sum + sizes[i] end
  return sum
end

-- Find a name in q that nothing registered has; its code, or nil.
function whole.unknown(q)
  if q.model ~= '*' and not call('ZSCORE', prefix .. 'models', q.model) then
    return 'model_unknown'
  end
  if q.host ~= '*' and call('ZCARD', prefix .. 'fits:host/' .. q.host) == 0 then
    return 'host_unknown'
  end
end

-- Why nothing that is registered could ever be what q asks, or nil. fits:* changes with reports and
-- forgetting alone. `cap_mb`: of an agent.
function whole.never_fits(q, cap_mb)
  local unknown = whole.unknown(q)
  if unknown then return unknown end
  -- That is told by the caller, below what never fits
  if q.memory_mb * q.devices > cap_mb then cap_mb = NEVER end
  local alone, why = broker.whole(q), 'never_fits'
  local groups = q.devices == 1 and (q.host == '*' or q.model == '*') and { broker.selector(q) }
  for _, group in ipairs(groups or whole.groups(q, 'hosts:')) do
    local of = groups and group or 'host/' .. group
    local least = alone and least_mb(q, of, cap_mb)
    if not alone and call('ZCOUNT', prefix .. 'fits:' .. of, q.memory_mb, '+inf') > 0 or least
      and least <= cap_mb then
      return nil
    end
    if least then why = 'agent_cap' end
  end
  return why
end

-- The devices that q gets now, or nil and why not. room_mb is what the agent's cap leaves it. `w`:
-- the waiter that it is.
function broker.select(q, room_mb, w)
  if ctx.behind[1] then broker.flush() end
  if q.memory_mb * q.devices > room_mb then return nil, 'agent_cap' end
  if broker.by_model(q) then return broker.quotas.select(q, w) end
  if broker.whole(q) then return broker.whole_devices.select(q, room_mb) end
  local limit = q.host ~= '*' and q.model ~= '*' and HOST_DEVICES or '1'
  local selector, least, ids = broker.selector(q), text(q.memory_mb), nil
  if ctx.none_free == selector then return nil, 'no_capacity' end   -- this call has looked already
  local key = prefix .. 'free:' .. selector
  if q.placement == 'pack' then
    ids = call('ZRANGE', key, least, '+inf', 'BYSCORE', 'LIMIT', '0', limit)
  else
    ids = call('ZRANGE', key, '+inf', least, 'BYSCORE', 'REV', 'LIMIT', '0', limit)
  end
  -- More than one only for a host and a model: the host's few devices
  for _, uuid in ipairs(ids) do
    local d = broker.device(uuid)
    if not d then call('ZREM', key, uuid) end   -- a hand has removed it
    if d and (q.model == '*' or d.model == q.model) then return { d } end
  end
  return nil, 'no_capacity'
end

-- Put q on the devices. What each gave, as `uuid=mb,...`, and the sum in MiB.
function broker.allocate(q, devices)
  local taken, sum, alone = {}, 0, broker.whole(q)
  for i, d in ipairs(devices) do
    local mb = alone and d.free_mb or q.memory_mb
    if alone or d.one_lease ~= '' then d.exclusive = q.token end
    d.mb, d.leased_mb, d.leases, sum = text(mb), d.leased_mb + mb, d.leases + 1, sum + mb
    d.leased = true
    if d.reserved_for ~= '' and d.reserved_for ~= q.token and not q.backfills then
      broker.reservations.unsure(d.reserved_for)
    end
    if ctx.pool.models then broker.model_sums.count(q, d.model, mb) end
    call('SADD', prefix .. 'holders:' .. d.uuid, q.token)
    broker.index(d)
    taken[i] = d.uuid .. '=' .. d.mb
  end
  return table.concat(taken, ','), sum
end
