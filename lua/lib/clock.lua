-- clock: what time it is in this pool, the pool's own facts, and the arguments of the call.
--
-- now = Redis's TIME + offset_ms. If TIME steps back, the offset grows so that now does not: a step back stretches no
-- lease. If now leaps more than LEAP_MS past the last script, although hosts report every few seconds, nobody could renew
-- in between (an outage, a suspended machine, a step forward). Then a window opens in which only what was due before the
-- leap is reaped and overdue leases may still be renewed, so that live holders come first.
--
-- A restart or a failover may have lost the last writes, and a pool made anew has lost all of them. Then the pool is closed
-- for a while: nothing is granted, and holders whose leases it has forgotten get them back (`adopt` in renew.lua).
--
-- Numbers are doubles, exact below 2^53. On the path of every lease they go to Redis as text(): handing one over as it is
-- costs twice as much. `..` rounds it (1.7955e+15).

local PROTOCOL, SCHEMA = '1', '1'
local LEAP_MS, WINDOW_MS = 10000, 30000
local FOREVER_MS = 315360000000   -- a lease without expiry: ten years
local LOOK_MS = 100               -- between two looks at which server this is
local FAILOVER_MS = 10000         -- closed after another server took over: holders notice, and renew, within 5 s
local FORGOT_MS = 60000           -- closed after everything was lost

local P = KEYS[1] .. ':'
B.now = (B.now_us - B.now_us % 1000) / 1000
B.more = 0       -- 1: something is over that this script left for the next reap
B.pool = {}      -- number fields of the pool, by name
B.changes = {}   -- fields of the pool to write, each followed by its value

local function text(n) return string.format('%d', n) end

-- ARGV[i] as an integer in [low, high]; what is not one is remembered in B.bad and read as low. tonumber alone also takes
-- nan, inf, 1e3 and 0x10.
function B.int(i, name, low, high)
  local s = ARGV[i]
  local n = s and #s <= 13 and string.find(s, '^%d+$') and tonumber(s)
  if n and n >= low and n <= high then return n end
  B.bad = B.bad or name
  return low
end

-- ARGV[i], at most `longest` bytes that match the pattern; what is not is remembered in B.bad.
function B.word(i, name, pattern, longest)
  local s = ARGV[i]
  if not s or #s > longest or not string.find(s, pattern) then
    B.bad = B.bad or name
    return ''
  end
  return s
end

function B.choice(i, name, one, other)
  local s = ARGV[i]
  if s ~= one and s ~= other then B.bad = B.bad or name end
  return s
end

function B.token(i)
  local token = B.word(i, 'token', '^[%w._-]+$', 64)
  if #token < 16 then B.bad = B.bad or 'token' end
  return token
end

-- A field of the pool, written with all others in one HSET by B.reply.
function B.set_pool(field, value)
  local n = #B.changes
  B.pool[field], B.changes[n + 1], B.changes[n + 2] = value, field, text(value)
end

-- Read the pool's clock and the named number fields. The reason why nothing can be done, or nil.
function B.open(...)
  if ARGV[1] ~= PROTOCOL then return 'protocol_mismatch' end
  local v = redis.call('HMGET', P .. 'pool', 'schema', 'epoch', 'offset_ms', 'last_ms', 'waiting', 'looked_ms', ...)
  if not v[1] then return 'not_ready' end
  if v[1] ~= SCHEMA and not B.knows(v[1]) then return 'protocol_mismatch' end
  local pool, names = B.pool, { ... }
  for i = 1, #names do pool[names[i]] = tonumber(v[i + 6]) end
  B.epoch, pool.waiting = v[2], tonumber(v[5])

  local last = tonumber(v[4])
  local now = B.now + v[3]
  local looked_ms = (v[6] or 0) + 0
  if now < last then
    B.set_pool('offset_ms', v[3] + last - now)
    now, looked_ms = last, 0
  elseif now - last > LEAP_MS and now >= tonumber(redis.call('HGET', P .. 'pool', 'window_until_ms')) then
    B.set_pool('window_until_ms', now + WINDOW_MS)
    B.set_pool('leap_from_ms', last)
  end
  B.now = now
  B.set_pool('last_ms', now)
  if now - looked_ms > LOOK_MS then B.look(last) end
end

-- `schema` of a pool is the layout of its keys: 2, or 1-2 when scripts that know layout 1 may work on it too.
function B.knows(schema)
  local oldest, newest = string.match(schema, '^(%d+)%-?(%d*)$')
  if oldest and oldest + 0 <= SCHEMA + 0 and SCHEMA + 0 <= tonumber(newest ~= '' and newest or oldest) then return true end
  B.schema = schema
  return false
end

-- Nothing is granted before `until_ms`, and what was granted before `lost_us` (raw TIME) may have been forgotten.
function B.close(until_ms, lost_us)
  local v = redis.call('HMGET', P .. 'pool', 'closed_until_ms', 'lost_us')
  local was_ms = (v[1] or 0) + 0
  B.set_pool('lost_us', math.max(lost_us, (v[2] or 0) + 0))
  B.set_pool('closed_until_ms', math.max(was_ms, until_ms))
  if B.now >= was_ms and B.now < until_ms then B.closing = until_ms end
end

-- Is this the server of the last look? Another one may lack the last writes: what was due after the last script that it
-- knows of is not reaped while the pool is closed, for its holder may have renewed it.
function B.look(last)
  local info = redis.pcall('INFO', 'server')   -- who may not ask leaves it to others
  local run_id = type(info) == 'string' and string.match(info, 'run_id:(%w+)')
  if not run_id then return end
  B.set_pool('looked_ms', B.now)
  local v = redis.call('HMGET', P .. 'pool', 'run_id', 'window_until_ms')
  if v[1] == run_id then return end
  B.run_id = run_id
  if not v[1] then return end   -- new, or left by a clean stop
  B.close(B.now + FAILOVER_MS, B.now_us)
  if B.now >= (B.pool.window_until_ms or v[2] + 0) then
    B.set_pool('leap_from_ms', last)
    B.set_pool('window_until_ms', B.now + FAILOVER_MS)
  end
end

-- The caller remembers the pool of that epoch. Has this one been made since by somebody who knew of none?
function B.remembered(epoch)
  if epoch == '' or epoch + 0 >= B.epoch + 0 then return end
  B.close((B.epoch - B.epoch % 1000) / 1000 + FORGOT_MS, B.epoch + 0)
end

-- Is what ends at `at` over, and may it be taken back now? A native key still lives at its last millisecond: so do we.
function B.over(at)
  if B.now <= at then return false end
  local pool = B.pool
  if not pool.window_until_ms then
    local v = redis.call('HMGET', P .. 'pool', 'window_until_ms', 'leap_from_ms')
    pool.window_until_ms, pool.leap_from_ms = tonumber(v[1]), tonumber(v[2])
  end
  return B.now >= pool.window_until_ms or at <= pool.leap_from_ms
end
