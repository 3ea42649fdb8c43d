-- devices: the free memory of each device.
--
-- A device's hash is the truth. A script reads it once, and broker.flush() writes once what has
-- become of it: the hash, and the zsets that placement looks at, with ZADD and ZREM, never ZINCRBY:
-- giving back on a drained or lost device must not list it again. It writes only what differs from
-- what was read, so recomputing changes nothing (S10), and a device that one holder hands to the
-- next costs no zset at all. A reader of a zset flushes first.
--
--   free:<sel>            device -> free MiB, of those that may be shared now; sel is *, host/<h>
--                         or model/<m>
--   idle:<host>/<model>   device -> free MiB, of those without a lease
--   idlehosts:<model>     host -> how many idle devices of that model it has
--
-- holders:<device> is a set of the tokens that have it, or whose memory on it is withheld: for its
-- host, which compares what they hold with what their processes use.

-- Used by a driver and a desktop on an otherwise unused GPU, where its host reports no other limit
local IDLE_UNLEASED_MB = 512

-- What the device has left, what it could take (a share, a lease of the whole), and which placement
-- keys it belongs in: one that is reserved for a waiter is in none, whatever it could take. A
-- device with a reason in `one_lease` takes one lease at a time, whatever that asks.
local function settle(d)
  local room = d.total_mb - d.system_mb - d.leased_mb - d.withheld_mb - d.unleased_mb
  local up, open = room > 0 and d.state == 'ok' and d.drained ~= '1', d.reserved_for == ''
  local unheld = d.leases == 0 and d.withheld_mb == 0
  d.free_mb, d.sharable = room, up and d.exclusive == '' and (d.one_lease == '' or unheld)
  d.empty = up and unheld and d.unleased_mb <= d.idle_unleased_mb
  d.shared, d.idle = d.sharable and open, d.empty and open
end

-- A device by its id, or nil; each call gets the same table. The call that reads it first gets
-- the reply too, with the further fields that it names at the end.
function broker.device(uuid, ...)
  if ctx.devices[uuid] then return ctx.devices[uuid] end
  local fields = call('HMGET', prefix .. 'device:' .. uuid, 'host', 'model', 'total_mb',
    'system_mb', 'leased_mb', 'withheld_mb', 'unleased_mb', 'leases', 'exclusive', 'reserved_for',
    'state', 'drained', 'index', 'name', 'reservable_ms', 'one_lease', 'idle_unleased_mb',
    'used_mb', 'runtime_id', 'parent', ...)
  local host, model, total_mb, system_mb, leased_mb, withheld_mb, unleased_mb, leases, exclusive,
    reserved_for, state, drained, index, name, reservable_ms, one_lease, idle_unleased_mb,
    used_mb, runtime_id, parent = unpack(fields, 1, 20)
  if not host then return nil end
  local d = {
    uuid = uuid, host = host, model = model, total_mb = total_mb + 0, system_mb = system_mb + 0,
    leased_mb = leased_mb + 0, withheld_mb = withheld_mb + 0, unleased_mb = unleased_mb + 0,
    leases = leases + 0, exclusive = exclusive, reserved_for = reserved_for, state = state,
    drained = drained, index = index, name = name, reservable_ms = (reservable_ms or 0) + 0,
    one_lease = one_lease or '', idle_unleased_mb = (idle_unleased_mb or IDLE_UNLEASED_MB) + 0,
    used_mb = used_mb or '', runtime_id = runtime_id or '', parent = parent or '',
    free_mb = 0, sharable = false, empty = false, shared = false, idle = false, was_free_mb = 0,
    was_shared = false, was_idle = false,
    behind = false, leased = false,
  }
  settle(d)
  d.was_free_mb, d.was_shared, d.was_idle = d.free_mb, d.shared, d.idle
  ctx.devices[uuid] = d
  return d, fields
end

-- The devices that a record names, as the answer tells of them, and whether all of them still take
-- leases.
function broker.named(taken)
  local devices, take = {}, true
  for uuid, mb in string.gmatch(taken, '([^,]+)=(%d+)') do
    local index, host, name, state, drained, total_mb, used_mb, runtime_id = unpack(call('HMGET',
      prefix .. 'device:' .. uuid, 'index', 'host', 'name', 'state', 'drained', 'total_mb',
      'used_mb', 'runtime_id'))
    devices[#devices + 1] = { uuid = uuid, mb = mb, index = index, host = host, name = name,
      total_mb = (total_mb or 0) + 0, used_mb = used_mb or '', runtime_id = runtime_id or '' }
    take = take and state == 'ok' and drained ~= '1'
  end
  return devices, take
end

-- Take note of what a device has become. What those who wait could not have before is work for the
-- queue.
function broker.index(d)
  local free_mb, sharable, shared, idle, empty = d.free_mb, d.sharable, d.shared, d.idle, d.empty
  ctx.none_free = nil   -- what the straight path has found before this change
  settle(d)
  if ctx.pool.waiting > 0 then   -- also of a reserved one: its owner is looked up
    local grew = (d.sharable or d.empty) and d.free_mb > free_mb
    local whole = d.empty and (not empty or d.free_mb < free_mb)   -- less may be within a cap now
    local share = d.sharable and not sharable
    if grew or whole or share or d.shared and not shared or d.idle and not idle then
      ctx.work['device:' .. d.uuid] = 0
    end
  end
  if not d.behind then
    d.behind, ctx.behind[#ctx.behind + 1] = true, d
  end
end

-- The keys of a device, spelt once.
local function keys_of(d)
  local keys = d.keys
  if keys then return keys end
  local uuid, host, model = d.uuid, d.host, d.model
  keys = {
    device = prefix .. 'device:' .. uuid, holders = prefix .. 'holders:' .. uuid,
    lease = prefix .. 'lease:' .. uuid .. ':', free = prefix .. 'free:*',
    free_host = prefix .. 'free:host/' .. host, free_model = prefix .. 'free:model/' .. model,
    idle = prefix .. 'idle:' .. host .. '/' .. model, idle_hosts = prefix .. 'idlehosts:' .. model,
  }
  d.keys = keys
  return keys
end

broker.keys_of = keys_of

local function write_zsets(d)
  local moved, free, uuid, keys = d.free_mb ~= d.was_free_mb, text(d.free_mb), d.uuid, keys_of(d)
  if d.shared and (moved or not d.was_shared) then
    call('ZADD', keys.free, free, uuid)
    call('ZADD', keys.free_host, free, uuid)
    call('ZADD', keys.free_model, free, uuid)
  elseif d.was_shared and not d.shared then
    call('ZREM', keys.free, uuid)
    call('ZREM', keys.free_host, uuid)
    call('ZREM', keys.free_model, uuid)
  end
  if d.idle ~= d.was_idle or d.idle and moved then
    local key, hosts, came = keys.idle, keys.idle_hosts, nil
    if d.idle then came = call('ZADD', key, free, uuid) else came = -call('ZREM', key, uuid) end
    -- Counted by what really came and went; anew where that leaves nothing, or less: the count
    -- was changed by hand.
    if came ~= 0 and call('ZADD', hosts, 'INCR', text(came), d.host) + 0 < 1 then
      local idle = call('ZCARD', key)
      if idle > 0 then call('ZADD', hosts, text(idle), d.host) else call('ZREM', hosts, d.host) end
    end
  end
  d.was_free_mb, d.was_shared, d.was_idle = d.free_mb, d.shared, d.idle
end

local function write_sums(d)
  call('HSET', keys_of(d).device, 'leased_mb', text(d.leased_mb), 'leases', text(d.leases),
    'exclusive', d.exclusive)
end

-- Write a device of which a lease came or went, while nothing waits.
function broker.write_lease(d)
  settle(d)
  write_sums(d)
  write_zsets(d)
end

-- Write what devices have become.
function broker.flush()
  for _, d in ipairs(ctx.behind) do
    if d.leased then write_sums(d) end
    write_zsets(d)
    d.behind, d.leased = false, false
  end
  ctx.behind = {}
end
