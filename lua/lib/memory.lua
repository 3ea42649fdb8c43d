-- memory: what the pool may have forgotten, and what of it is over: what few calls need of clock.lua.

-- `schema` of a pool is the layout of its keys: 2, or 1-2 when scripts that know layout 1 may work on it too.
function B.knows(schema)
  local oldest, newest = string.match(schema, '^(%d+)%-?(%d*)$')
  if oldest and oldest + 0 <= SCHEMA + 0 and SCHEMA + 0 <= tonumber(newest ~= '' and newest or oldest) then return true end
  S.schema = schema
  return false
end

-- Nothing is granted before `until_ms`, and what was granted before `lost_us` (raw TIME) may have been forgotten.
function B.close(until_ms, lost_us)
  local v, pool = call('HMGET', POOL, 'closed_until_ms', 'lost_us'), S.pool   -- closed by this very call perhaps
  local was_ms = pool.closed_until_ms or (v[1] or 0) + 0
  set_pool('lost_us', math.max(lost_us, pool.lost_us or (v[2] or 0) + 0))
  set_pool('closed_until_ms', math.max(was_ms, until_ms))
  if S.now >= was_ms and S.now < until_ms then S.closing = until_ms end
end

-- Is this the server of the last look? Another one may lack the last writes: what was due after the last script that it
-- knows of is not reaped while the pool is closed, for its holder may have renewed it.
function B.look(last)
  local info = redis.pcall('INFO', 'server')   -- who may not ask leaves it to others
  local run_id = type(info) == 'string' and string.match(info, 'run_id:(%w+)')
  if not run_id then return end
  set_pool('looked_ms', S.now)
  local v = call('HMGET', POOL, 'run_id', 'window_until_ms')
  if v[1] == run_id then return end
  S.run_id = run_id
  if not v[1] then return end   -- new, or left by a clean stop
  B.close(S.now + FAILOVER_MS, S.now_us)
  if S.now >= (S.pool.window_until_ms or v[2] + 0) then
    set_pool('leap_from_ms', last)
    set_pool('window_until_ms', S.now + FAILOVER_MS)
  end
end

-- The caller remembers the pool of that epoch. Has this one been made since by somebody who knew of none?
function B.remembered(epoch)
  if epoch == '' or epoch + 0 >= S.epoch + 0 then return end
  B.close((S.epoch - S.epoch % 1000) / 1000 + FORGOT_MS, S.epoch + 0)
end

-- Is what ends at `at` over, and may it be taken back now? A native key still lives at its last millisecond: so do we.
function B.over(at)
  if S.now <= at then return false end
  local pool = S.pool
  if not pool.window_until_ms then
    local v = call('HMGET', POOL, 'window_until_ms', 'leap_from_ms')
    pool.window_until_ms, pool.leap_from_ms = tonumber(v[1]), tonumber(v[2])
  end
  return S.now >= pool.window_until_ms or at <= pool.leap_from_ms
end
