-- device_index: which devices there are, under their hosts and models. Only report, forget and reap
-- need this file.
--
--   devices:<host>   set of its devices
--   fits:<of>        zset: device -> MiB that it could ever lend; of is *, host/<h>, model/<m>, or
--                    host/<h>/<m>
--   models, hosts:<model>   what could ever be had of a model, and how many devices a host has of
--                    it

-- What could ever be had of this model, and on which hosts: written from the zsets themselves, so
-- it cannot drift.
local function settle_model(model, on)
  local top = call('ZRANGE', prefix .. 'fits:model/' .. model, 0, 0, 'REV', 'WITHSCORES')
  if top[1] then call('ZADD', prefix .. 'models', top[2], model) else call('ZREM',
    prefix .. 'models', model) end
  local devices = call('ZCARD', prefix .. 'fits:host/' .. on .. '/' .. model)
  if devices > 0 then
    call('ZADD', prefix .. 'hosts:' .. model, devices, on)
  else
    call('ZREM', prefix .. 'hosts:' .. model, on)
  end
end

local function each_fits(d, write)
  for _, of in ipairs({ '*', 'host/' .. d.host, 'model/' .. d.model,
    'host/' .. d.host .. '/' .. d.model }) do
    write(prefix .. 'fits:' .. of)
  end
  settle_model(d.model, d.host)
end

-- `capacity_mb` of the pool is what all registered devices hold: teams lend by it. A divided GPU
-- holds nothing, its parts do, until it is whole again: `divided` of the device, which older
-- versions do not write.
local function count_capacity(before_mb, mb)
  if mb ~= before_mb then call('HINCRBY', POOL, 'capacity_mb', text(mb - before_mb)) end
end

local function fits_mb(d) return (call('ZSCORE', prefix .. 'fits:*', d.uuid) or 0) + 0 end

-- What the devices hold that are registered in a pool whose own hash is gone: in a new one none.
function broker.registered_mb()
  local sum, rows = 0, call('ZRANGE', prefix .. 'fits:*', '0', '-1', 'WITHSCORES')
  for i = 1, #rows, 2 do
    local divided = call('HGET', prefix .. 'device:' .. rows[i], 'divided') == '1'
    sum = sum + (divided and 0 or rows[i + 1])
  end
  return text(sum)
end

-- Register a device as it is now, or anew. `was_divided`, `divided`: as it was counted, and is.
function broker.register(d, was_divided, divided)
  local before_mb = was_divided and 0 or fits_mb(d)
  call('SADD', prefix .. 'devices:' .. d.host, d.uuid)
  each_fits(d, function(key) call('ZADD', key, d.total_mb - d.system_mb, d.uuid) end)
  count_capacity(before_mb, divided and 0 or d.total_mb - d.system_mb)
end

-- Out of everything that knows it under the host and model it had. Waiters may name these.
function broker.unregister(d)
  set_pool('forgotten_ms', ctx.now)
  local state = d.state
  d.state = 'moving'
  broker.index(d)
  broker.flush()
  d.state = state
  local divided = call('HGET', prefix .. 'device:' .. d.uuid, 'divided') == '1'
  count_capacity(divided and 0 or fits_mb(d), 0)
  call('SREM', prefix .. 'devices:' .. d.host, d.uuid)
  each_fits(d, function(key) call('ZREM', key, d.uuid) end)
end
