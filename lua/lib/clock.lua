-- clock: what time it is in this pool, the pool's own facts, and the arguments of the call.
--
-- now = Redis's TIME + offset_ms. If TIME steps back, the offset grows so that now does not: a step back stretches no
-- lease. If now leaps more than LEAP_MS past the last script, although hosts report every few seconds, nobody could renew
-- in between (an outage, a suspended machine, a step forward). Then a window opens in which only what was due before the
-- leap is reaped and overdue leases may still be renewed, so that live holders come first.
--
-- Numbers are doubles, exact below 2^53. On the path of every lease they go to Redis as text(): handing one over as it is
-- costs twice as much. `..` rounds it (1.7955e+15).

local PROTOCOL, SCHEMA = '1', '1'
local LEAP_MS, WINDOW_MS = 10000, 30000
local FOREVER_MS = 315360000000   -- a lease without expiry: ten years

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
  local v = redis.call('HMGET', P .. 'pool', 'schema', 'epoch', 'offset_ms', 'last_ms', 'waiting', ...)
  if not v[1] then return 'not_ready' end
  if v[1] ~= SCHEMA then return 'protocol_mismatch' end
  local pool, names = B.pool, { ... }
  for i = 1, #names do pool[names[i]] = tonumber(v[i + 5]) end
  B.epoch, pool.waiting = v[2], tonumber(v[5])

  local last = tonumber(v[4])
  local now = B.now + v[3]
  if now < last then
    B.set_pool('offset_ms', v[3] + last - now)
    now = last
  elseif now - last > LEAP_MS and now >= tonumber(redis.call('HGET', P .. 'pool', 'window_until_ms')) then
    B.set_pool('window_until_ms', now + WINDOW_MS)
    B.set_pool('leap_from_ms', last)
  end
  B.now = now
  B.set_pool('last_ms', now)
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
