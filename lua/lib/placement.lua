-- placement: what each device has left, and which one a request gets.
--
-- A device's hash is the truth. A script reads it once, and B.flush() writes once what has become of it: the hash, and the
-- zsets that placement looks at, with ZADD and ZREM, never ZINCRBY: giving back on a drained or lost device must not list it
-- again. It writes only what differs from what was read, so recomputing changes nothing (S10), and a device that one holder
-- hands to the next costs no zset at all. Whoever reads a zset flushes first.
--
--   free:<sel>            device -> free MiB, of those that may be shared now; sel is *, host/<h> or model/<m>
--   idle:<host>/<model>   device -> free MiB, of those with nobody on them
--   idlehosts:<model>     host -> how many idle devices of that model it has
--
-- holders:<device> is a set of the tokens that have it, or whose memory on it is withheld: for its host, which compares what
-- they hold with what their processes use.

local IDLE_FOREIGN_MB = 512   -- what a driver and a desktop use on a GPU that nobody works on
local HOST_DEVICES = '64'     -- looked at when a host and a model are named

B.devices = {}   -- as this script sees them, by id
B.behind = {}    -- those whose hash or zsets are yet to be written

-- What the device has left, what it could take (a share, a lease of the whole), and which placement keys it belongs in: one
-- that is kept for a waiter is in none, whatever it could take.
local function settle(d)
  local room = d.total_mb - d.reserve_mb - d.reserved_mb - d.withheld_mb - d.foreign_mb
  local up, open = room > 0 and d.state == 'ok' and d.drained ~= '1', d.kept_for == ''
  d.free_mb, d.sharable = room, up and d.exclusive == ''
  d.empty = up and d.leases == 0 and d.withheld_mb == 0 and d.foreign_mb <= IDLE_FOREIGN_MB
  d.shared, d.idle = d.sharable and open, d.empty and open
end

-- A device by its id, or nil; the same table for whoever asks.
function B.device(uuid)
  if B.devices[uuid] then return B.devices[uuid] end
  local v = redis.call('HMGET', P .. 'device:' .. uuid, 'host', 'model', 'total_mb', 'reserve_mb', 'reserved_mb',
    'withheld_mb', 'foreign_mb', 'leases', 'exclusive', 'kept_for', 'state', 'drained', 'index', 'name')
  if not v[1] then return nil end
  local d = {
    uuid = uuid, host = v[1], model = v[2], total_mb = v[3] + 0, reserve_mb = v[4] + 0, reserved_mb = v[5] + 0,
    withheld_mb = v[6] + 0, foreign_mb = v[7] + 0, leases = v[8] + 0, exclusive = v[9], kept_for = v[10], state = v[11],
    drained = v[12], index = v[13], name = v[14],
    free_mb = 0, sharable = false, empty = false, shared = false, idle = false, was_free_mb = 0, was_shared = false, was_idle = false,
  }
  settle(d)
  d.was_free_mb, d.was_shared, d.was_idle = d.free_mb, d.shared, d.idle
  B.devices[uuid] = d
  return d
end

-- Take note of what a device has become. What those who wait could not have before is work for the line.
function B.index(d)
  local free_mb, shared, idle, empty = d.free_mb, d.shared, d.idle, d.empty
  settle(d)
  if B.pool.waiting > 0 then
    local grew = (d.sharable or d.empty) and d.free_mb > free_mb
    local whole = d.empty and (not empty or d.free_mb < free_mb)   -- also one that is kept; less may be within a cap now
    if grew or whole or d.shared and not shared or d.idle and not idle then B.work['device:' .. d.uuid] = 0 end
  end
  if not d.behind then
    d.behind, B.behind[#B.behind + 1] = true, d
  end
end

local function write_zsets(d)
  local call = redis.call
  local moved, free, uuid = d.free_mb ~= d.was_free_mb, text(d.free_mb), d.uuid
  if d.shared and (moved or not d.was_shared) then
    call('ZADD', P .. 'free:*', free, uuid)
    call('ZADD', P .. 'free:host/' .. d.host, free, uuid)
    call('ZADD', P .. 'free:model/' .. d.model, free, uuid)
  elseif d.was_shared and not d.shared then
    call('ZREM', P .. 'free:*', uuid)
    call('ZREM', P .. 'free:host/' .. d.host, uuid)
    call('ZREM', P .. 'free:model/' .. d.model, uuid)
  end
  if d.idle ~= d.was_idle or d.idle and moved then
    local key, hosts = P .. 'idle:' .. d.host .. '/' .. d.model, P .. 'idlehosts:' .. d.model
    if d.idle then call('ZADD', key, free, uuid) else call('ZREM', key, uuid) end
    local idle = call('ZCARD', key)
    if idle > 0 then call('ZADD', hosts, idle, d.host) else call('ZREM', hosts, d.host) end
  end
  d.was_free_mb, d.was_shared, d.was_idle = d.free_mb, d.shared, d.idle
end

-- Write what devices have become.
function B.flush()
  if not B.behind[1] then return end
  for _, d in ipairs(B.behind) do
    if d.leased then
      redis.call('HSET', P .. 'device:' .. d.uuid, 'reserved_mb', text(d.reserved_mb), 'leases', text(d.leases), 'exclusive',
        d.exclusive)
    end
    write_zsets(d)
    d.behind, d.leased = false, false
  end
  B.behind = {}
end

-- Is the whole of each device wanted? Then memory_mb is the least that each must have.
function B.whole(q)
  return q.exclusive or q.devices > 1 or B.pool.allow_fractional_shares == 0
end

function B.selector(q)
  if q.host ~= '*' then return 'host/' .. q.host end
  if q.model ~= '*' then return 'model/' .. q.model end
  return '*'
end

-- What only requests for whole devices need, and those that found no room: made then.
function B.whole_devices()
  local MODELS, HOSTS = '8', '16'   -- how many are looked at when the request names none
  local whole = {}

  -- Groups of devices of one host and model where q may find as many as it wants: `counted` is a zset per model, host ->
  -- how many there are. Best fit first.
  function whole.groups(q, counted)
    local found = {}
    local models = q.model ~= '*' and { q.model } or
      redis.call('ZRANGE', P .. 'models', q.memory_mb, '+inf', 'BYSCORE', 'LIMIT', '0', MODELS)
    for _, model in ipairs(models) do
      local alone = q.devices > 1 and string.find(model, ' MIG ', 1, true)   -- a CUDA process can use but one of them
      local hosts = alone and {} or q.host ~= '*' and { q.host } or
        redis.call('ZRANGE', P .. counted .. model, q.devices, '+inf', 'BYSCORE', 'LIMIT', '0', HOSTS)
      for _, host in ipairs(hosts) do found[#found + 1] = host .. '/' .. model end
    end
    return found
  end

  -- The devices that q gets now, or nil and why not.
  function whole.pick(q, room_mb)
    local why = 'no_capacity'
    for _, group in ipairs(whole.groups(q, 'idlehosts:')) do
      local ids = redis.call('ZRANGE', P .. 'idle:' .. group, q.memory_mb, '+inf', 'BYSCORE', 'LIMIT', '0', q.devices)
      if #ids == q.devices then
        local devices, sum = {}, 0
        for i, uuid in ipairs(ids) do
          devices[i] = B.device(uuid)
          sum = sum + devices[i].free_mb
        end
        if sum <= room_mb then return devices end
        why = 'agent_cap'
      end
    end
    return nil, why
  end

  -- Why nothing that is registered could ever hold q, or nil. fits:* changes with reports alone.
  function whole.unfit(q)
    if q.model ~= '*' and not redis.call('ZSCORE', P .. 'models', q.model) then return 'model_unknown' end
    if q.host ~= '*' and redis.call('ZCARD', P .. 'fits:host/' .. q.host) == 0 then return 'host_unknown' end
    if q.devices == 1 and (q.host == '*' or q.model == '*') then
      if redis.call('ZCOUNT', P .. 'fits:' .. B.selector(q), q.memory_mb, '+inf') > 0 then return nil end
      return 'never_fits'
    end
    for _, group in ipairs(whole.groups(q, 'hosts:')) do
      if redis.call('ZCOUNT', P .. 'fits:host/' .. group, q.memory_mb, '+inf') >= q.devices then return nil end
    end
    return 'never_fits'
  end

  return whole
end

-- The devices that q gets now, or nil and why not. room_mb is what the agent's cap leaves it.
function B.pick(q, room_mb)
  B.flush()
  if q.memory_mb * q.devices > room_mb then return nil, 'agent_cap' end
  if B.whole(q) then return B.whole_devices().pick(q, room_mb) end
  local limit = q.host ~= '*' and q.model ~= '*' and HOST_DEVICES or '1'
  local key, least, ids = P .. 'free:' .. B.selector(q), text(q.memory_mb), nil
  if q.placement == 'pack' then
    ids = redis.call('ZRANGE', key, least, '+inf', 'BYSCORE', 'LIMIT', '0', limit)
  else
    ids = redis.call('ZRANGE', key, '+inf', least, 'BYSCORE', 'REV', 'LIMIT', '0', limit)
  end
  for _, uuid in ipairs(ids) do   -- more than one only for a host and a model: the host's few devices
    local d = B.device(uuid)
    if q.model == '*' or d.model == q.model then return { d } end
  end
  return nil, 'no_capacity'
end

-- Put q on the devices. What each gave, as `uuid=mb,...`, and the sum in MiB.
function B.take(q, devices)
  local taken, sum, alone = {}, 0, B.whole(q)
  for i, d in ipairs(devices) do
    local mb = alone and d.free_mb or q.memory_mb
    if alone then d.exclusive = q.token end
    d.mb, d.reserved_mb, d.leases, sum = text(mb), d.reserved_mb + mb, d.leases + 1, sum + mb
    d.leased = true
    redis.call('SADD', P .. 'holders:' .. d.uuid, q.token)
    B.index(d)
    taken[i] = d.uuid .. '=' .. d.mb
  end
  return table.concat(taken, ','), sum
end
