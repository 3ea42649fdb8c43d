-- clock: what time it is in this pool, the pool's own facts, and the arguments of the call.
--
-- now = Redis's TIME + offset_ms. If TIME steps back, the offset grows so that now does not: a step
-- back stretches no lease. If now leaps more than LEAP_MS past the last script, although hosts
-- report every few seconds, no holder could renew in between (an outage, a suspended machine, a
-- step forward, data of an earlier hour). Then a window opens in which only what was due before the
-- leap is reaped and overdue leases may still be renewed, so that live holders come first.
--
-- Data may go back behind what holders remember: a restart, a failover, a backup that was put back,
-- a pool made anew. Then the pool is closed for a while: nothing is granted, and leases that
-- it has forgotten are recovered (recovery.lua). How that is noticed is in data_loss.lua.
--
-- Each call that writes moves `sequence` of the pool to a value that was never there before: TIME
-- in µs, or one more than it was. What a function library keeps between its calls (kept.lua) is as
-- the pool stands while that field says so, and void otherwise.
--
-- Numbers are doubles, exact below 2^53. On the path of every lease they go to Redis as text():
-- handing one over as it is costs twice as much. `..` rounds it (1.7955e+15).

local PROTOCOL, SCHEMA = '1', '4'
local WITH_MODELS = '4+models'    -- while a team has quotas by model: lib/model_sums.lua
local LEAP_MS, WINDOW_MS = 10000, 30000
local DEFAULT_TEAM = 'default'
local FOREVER_MS = 315360000000   -- a lease without expiry: ten years
local NEVER = 1 / 0               -- the next deadline where there is none
local LOOK_MS = 100               -- between two looks at which server this is
-- Closed after writes were lost: holders notice, and renew, within 5 s
local FAILOVER_MS = 10000
local FORGOT_MS = 60000           -- closed after everything was lost

-- State of a function library, which outlives its calls: per pool the `last_ms` that it has
-- written, and the field of the pool that names this library's life on this server. A script has
-- neither.
local seen, served
-- Per pool, what the library keeps of it (kept.lua), and what the straight path has read where the
-- call goes on from there: see start().
local kept, begun = {}, nil

-- What the broker can do, but for what every verb does, which is local functions. In a script a
-- verb reads at once what it needs on its straight path, and the rest of the library when something
-- of it is asked for.
local broker = {
  -- Of a library, which then takes the plain path at once: pools in which something waited at the
  -- end of the last call, and tokens that were offered something.
  queued = {}, offered_to = {}, offered_count = 0, most_offered = 256,
}

-- Of the call that is being made, and made anew by start() for each: what is written here outside
-- of functions is run once for many calls when it is a function library.
local call, find, format   -- Redis gives a library none of its tables while it loads
local prefix, POOL, DEADLINES
local ctx   -- what it has read, and what it has yet to write

-- The beginning of every call. The time is asked once, so that every line means the same moment.
local function start()
  local now_us = begun and begun.now_us or time_us()
  call, find, format = redis.call, string.find, string.format
  prefix = KEYS[1] .. ':'
  POOL, DEADLINES = prefix .. 'pool', prefix .. 'deadlines'
  ctx = {
    now_us = now_us, now = (now_us - now_us % 1000) / 1000, last = 0, epoch = nil, pool = nil,
    next_deadline = NEVER, noted_deadline = NEVER,   -- no deadline is before it; as the pool has it
    polling = false,   -- called as poll: see acquire.lua
    more = 0,       -- 1: something is over that this call left for the next reap
    changes = {},   -- fields of the pool to write, each followed by its value
    work = {},      -- what the scheduler must check: entry -> rank; see lib/scheduler.lua
    counts = {},    -- counters that are in the pool: name -> count
    stored = {},    -- those of them that are in `worklist`: entry -> rank there
    queues = {},    -- of a selector, queues:<host>/<model>: queue id -> rank of its head
    agents = {},    -- sums of parties, by name
    policies = {},  -- of teams, by name
    teams = {},     -- their places among those that wait; see lib/scheduler.lua
    asks = {},      -- what the heads of queues ask: id -> rank and size
    borrows = {},   -- heads that get nothing within a nominal quota: id -> rank
    devices = {},   -- by id
    behind = {},    -- those whose hash or zsets are yet to be written
  }
  if begun then   -- nothing that was read before can have changed: no call comes in between
    ctx.fields, ctx.shard = begun.fields, begun.shard   -- of the pool by name; see tombstones.lua
    ctx.read, ctx.none_free = begun.read, begun.none_free   -- see ledger.lua, placement.lua
    local agents, known = ctx.agents, begun.agents
    if begun.asker then agents[begun.asker] = known[begun.asker] end
    if begun.asker_key then agents[begun.asker_key] = known[begun.asker_key] end
    if begun.asker_team then agents[begun.asker_team] = known[begun.asker_team] end
  end
  begun = nil
  if kept[KEYS[1]] then kept[KEYS[1]].sequence = false end
  -- `1 <mark>`: the caller wants its mark back, to know that the reply is that of this call.
  local said = ARGV[1]
  if said and #said > 2 and #said <= 34 and string.sub(said, 1, 2) == '1 ' then
    ARGV[1], ctx.mark = PROTOCOL, string.sub(said, 3)
  end
end

local function text(n) return format('%d', n) end

-- Field and value of a record or an event that names a team; nothing for the team that all without
-- one are in.
local function team_of(x)
  if x.team and x.team ~= DEFAULT_TEAM then return 'team', x.team end
end

-- The value of the pool's `sequence` after this call.
local function next_sequence(before, now_us)
  if now_us > before then return now_us end
  return before + 1
end

-- Run a call. One that ends in an error may have written before: then nothing that any library
-- keeps of this pool is as it stands.
local function guarded(verb)
  local done, answer = pcall(verb)
  if done then return answer end
  local pool = KEYS[1] .. ':pool'
  begun = nil
  if kept[KEYS[1]] then kept[KEYS[1]].sequence = false end
  if type(redis.pcall('HGET', pool, 'schema')) == 'string' then   -- there is a pool
    redis.pcall('HINCRBY', pool, 'sequence', '1')
  end
  error(answer, 0)
end

-- ARGV[i] as an integer in [low, high]; what is not one is remembered in ctx.bad and read as low.
-- tonumber alone also takes nan, inf, 1e3 and 0x10.
local function int(i, name, low, high)
  local s = ARGV[i]
  local n = s and #s <= 13 and find(s, '^%d+$') and tonumber(s)
  if n and n >= low and n <= high then return n end
  ctx.bad = ctx.bad or name
  return low
end

-- ARGV[i], at most `longest` bytes that match the pattern; what is not is remembered in ctx.bad.
local function word(i, name, pattern, longest)
  local s = ARGV[i]
  if not s or #s > longest or not find(s, pattern) then
    ctx.bad = ctx.bad or name
    return ''
  end
  return s
end

-- The same for items with commas between them, or none: an item is not empty, so commas alone are
-- no list.
local function list(i, name, pattern, longest)
  local s = word(i, name, pattern, longest)
  if s ~= '' and find(',' .. s .. ',', ',,', 1, true) then ctx.bad = ctx.bad or name end
  return s
end

local function choice(i, name, one, other)
  local s = ARGV[i]
  if s ~= one and s ~= other then ctx.bad = ctx.bad or name end
  return s
end

local function token_at(i)
  local token = word(i, 'token', '^[%w._-]+$', 64)
  if #token < 16 then ctx.bad = ctx.bad or 'token' end
  return token
end

-- A field of the pool, written with all others in one HSET by reply().
local function set_pool(field, value)
  local n = #ctx.changes
  ctx.pool[field], ctx.changes[n + 1], ctx.changes[n + 2] = value, field, text(value)
end

-- The named fields of the pool: as the straight path of this very call has read them, or read now.
local function pool_fields(...)
  if not ctx.fields then return call('HMGET', POOL, ...) end
  local names, values = { ... }, {}
  for i = 1, #names do values[i] = ctx.fields[names[i]] or false end
  return values
end

-- Read the pool's clock. The reason why nothing can be done, or nil; then the named fields.
local function begin(...)
  if ARGV[1] ~= PROTOCOL then return 'protocol_mismatch' end
  local fields = pool_fields('schema', 'epoch', 'offset_ms', 'last_ms', 'waiting', 'looked_ms',
    'next_deadline_ms', 'sequence', 'teams', 'half_life_s',
    'team_lend_limits', 'noticed_ms', ...)
  local schema, epoch, offset_ms, last_ms, waiting, looked, next_deadline_ms, sequence,
    teams, half_life_s, team_lend_limits, noticed_ms = unpack(fields, 1, 12)
  if not schema then return 'not_ready' end
  if schema ~= SCHEMA and schema ~= WITH_MODELS and not broker.knows(schema) then
    return 'protocol_mismatch'
  end
  ctx.epoch, ctx.sequence = epoch, (sequence or 0) + 0
  ctx.pool = { waiting = waiting + 0, teams = (teams or 0) + 0,
    half_life_ms = (half_life_s or 0) * 1000, team_lend_limits = (team_lend_limits or 0) + 0,
    models = schema == WITH_MODELS, noticed_ms = (noticed_ms or 0) + 0 }

  ctx.noted_deadline = next_deadline_ms == '' and NEVER or (next_deadline_ms or 0) + 0
  ctx.next_deadline = ctx.noted_deadline
  local last, now, looked_ms = last_ms + 0, ctx.now + offset_ms, (looked or 0) + 0
  if now < last then
    set_pool('offset_ms', offset_ms + last - now)
    now, looked_ms = last, 0
  end
  ctx.now, ctx.last = now, last
  if now - last > LEAP_MS then broker.leapt() end
  local n = #ctx.changes
  ctx.changes[n + 1], ctx.changes[n + 2] = 'last_ms', text(now)
  if seen then
    ctx.recognised = true
    if last < (seen[POOL] or NEVER) then broker.compare_lives(seen[POOL]) end
  end
  if now - looked_ms > LOOK_MS then broker.look() end
  return nil, unpack(fields, 13)
end
