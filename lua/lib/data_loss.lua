-- data_loss: what the pool may have forgotten, and what of it is over: what few calls need of
-- clock.lua.
--
-- Data that go back are noticed by any one of these, whatever the others say: another server
-- (look), a library that was loaded anew, or has seen the pool later (compare_lives), a long
-- silence (leapt), a caller that remembers what the pool does not (recalls, witness, remembered).

-- A server that was stopped in good order, and is back within so long, is the same one
local CLEAN_MS = 5000
-- The longest silence that says nothing, to a caller that may not ask which server this is
local BLIND_MS = 1500
local MOST_LEAPS = 4       -- pauses that may follow one another without half a minute between them
local A_DAY_US = 86400000000
local born                 -- names the life of this library

-- A word to write into the pool's hash.
local function note(field, word)
  local n = #ctx.changes
  ctx.changes[n + 1], ctx.changes[n + 2] = field, word
end

-- `schema` of a pool is the layout of its keys: 3, or 2-3 when scripts that know layout 2 may work
-- on it too.
function broker.knows(schema)
  local oldest, newest = string.match(schema, '^(%d+)%-?(%d*)$')
  if oldest and oldest + 0 <= SCHEMA + 0 and SCHEMA + 0 <= tonumber(newest ~= '' and newest
    or oldest) then
    return true
  end
  ctx.schema = schema
  return false
end

-- Nothing is granted before `until_ms`, and what was granted before `lost_us` (raw TIME) may have
-- been forgotten.
function broker.close(until_ms, lost_us)
  -- Closed by this very call perhaps
  local closed_until_ms, before_us = unpack(call('HMGET', POOL, 'closed_until_ms', 'lost_us'))
  local pool = ctx.pool
  local was_ms = pool.closed_until_ms or (closed_until_ms or 0) + 0
  set_pool('lost_us', math.max(lost_us, pool.lost_us or (before_us or 0) + 0))
  set_pool('closed_until_ms', math.max(was_ms, until_ms))
  if ctx.now >= was_ms and ctx.now < until_ms then ctx.closing = until_ms end
end

-- Nothing is reaped for a while but what was over before the last script that the pool knows of:
-- holders of what was due after it could not renew, or their renewals were lost. A pause that
-- begins within another one keeps that one's beginning, so that no holder's time is cut short by
-- the second; after MOST_LEAPS of them what was due before the last one is over all the same.
function broker.pause(for_ms)
  local pool = ctx.pool
  if pool.window_until_ms then return end   -- this very call has begun one
  local leaps, from_ms = 1, ctx.last
  local window_until_ms, leap_from_ms, leaps_before = unpack(call('HMGET', POOL, 'window_until_ms',
    'leap_from_ms', 'leaps'))
  leaps_before = (leaps_before or 1) + 0
  if ctx.last < window_until_ms + 0 and leaps_before < MOST_LEAPS then
    leaps, from_ms = leaps_before + 1, math.min(leap_from_ms + 0, ctx.last)
  end
  set_pool('window_until_ms', math.max(window_until_ms + 0, ctx.now + for_ms))
  set_pool('leap_from_ms', from_ms)
  set_pool('leaps', leaps)
end

-- Writes were lost, or may have been. Fences run ahead of a clock that has stepped back, so the
-- last one counts too.
function broker.lost()
  broker.close(ctx.now + FAILOVER_MS, math.max(ctx.now_us, call('HGET', POOL, 'fence') + 0))
  broker.pause(FAILOVER_MS)
end

-- No script ran for so long that holders could not renew. Longer than the last reporter said that
-- it would be silent at most: then this may be what the pool was at that time, on a server that
-- noticed nothing (a snapshot of its machine, an import).
function broker.leapt()
  broker.pause(WINDOW_MS)
  if ctx.now - ctx.last > (call('HGET', POOL, 'silence_ms') or NEVER) + 0 then broker.lost() end
end

-- The server's run_id, its master_replid and the second one; nil to a caller that may not ask.
function broker.which_server()
  local info = redis.pcall('INFO', 'server', 'replication')
  local function said(field)
    if type(info) ~= 'string' then return nil end
    local _, last = find(info, field .. ':', 1, true)
    return last and string.match(info, '^%w+', last + 1)
  end
  return said('run_id'), said('master_replid') or '', said('master_replid2') or ''
end

-- Is this the server, and are these the data, of the last look? A restart and a failover change the
-- run_id; a server that followed another one and leads again has a new master_replid, and the
-- other's as its second. Without a second it is new for no reason that touches data: the first
-- replica has come, or the last one has been gone for an hour.
function broker.look()
  local run_id, replid, second = broker.which_server()
  -- This caller may not ask: it can only go by the silence, unless its library was there before
  if not run_id then
    if not ctx.recognised and ctx.now - ctx.last > BLIND_MS then broker.lost() end
    return
  end
  set_pool('looked_ms', ctx.now)
  local run_id_before, replid_before = unpack(call('HMGET', POOL, 'run_id', 'replid'))
  if run_id_before == run_id and replid_before == replid then return end
  note('run_id', run_id)
  note('replid', replid)
  if not run_id_before then   -- new, or left by a clean stop
    if ctx.now - ctx.last > CLEAN_MS then broker.lost() end
  elseif run_id_before ~= run_id or replid_before and string.find(second, '[^0]') then
    broker.lost()
  end
end

-- The library has not seen this pool (`before` nil), or has seen it later than it is now: then the
-- data went back under the running server. A library lives as long as its server does, unless data
-- are loaded anew or the library is.
function broker.compare_lives(before)
  if before then return broker.lost() end
  ctx.recognised = false
  born = born or text(ctx.now_us)
  local other = call('HGET', POOL, served)
  if other == born then return end
  note(served, born)
  if other then broker.lost() end
end

-- The caller had a reply of the pool's time `seen_ms`. Has the pool forgotten it?
function broker.recalls(seen_ms)
  if seen_ms > ctx.last then broker.lost() end
end

-- The caller had a lease of this fence, later than any that the pool knows of. Fences never turn
-- back, so from now on they go on from there, and no caller says so twice.
function broker.witness(token, fence)
  -- It is of no pool like this
  if fence < ctx.epoch + 0 or fence > ctx.now_us + A_DAY_US then return end
  local state = call('HGET', prefix .. 'record:' .. token, 'state')
  if state == 'active' or state == 'cooling' or not state and broker.ended(token) then return end
  broker.lost()
  set_pool('fence', fence)
end

-- The caller remembers the pool of that epoch. Has this one been made since by a client that knew
-- of none?
function broker.remembered(epoch)
  if epoch == '' or epoch + 0 >= ctx.epoch + 0 then return end
  broker.close((ctx.epoch - ctx.epoch % 1000) / 1000 + FORGOT_MS, ctx.epoch + 0)
end

-- Is what ends at `at` over, and may it be taken back now? A native key still lives at its last
-- millisecond: so do we.
function broker.over(at)
  if ctx.now <= at then return false end
  local pool = ctx.pool
  if not pool.window_until_ms then
    local until_ms, from_ms = unpack(call('HMGET', POOL, 'window_until_ms', 'leap_from_ms'))
    pool.window_until_ms, pool.leap_from_ms = tonumber(until_ms), tonumber(from_ms)
  end
  return ctx.now >= pool.window_until_ms or at <= pool.leap_from_ms
end
