-- forgetting: devices and hosts that are there no more leave the pool.
--
-- A device is missing when its host reports others and lists this one no more, a host when it says
-- nothing. After a while (the policy's `forget_devices_after_s` and `forget_hosts_after_s`) they
-- go, unless leases are on them; a MIG slice goes as soon as its parent is listed without it. What
-- comes back is registered anew.
--
--   drains   zset     device:<id> or host:<h> -> when it was forgotten while an operator's drain
--            was on it. No report undoes a
--                     drain, so it is drained again when it comes back; at most MOST_DRAINS, the
--                     rest is not forgotten by itself
--
-- All that is registered is looked at every SWEEP_MS by reports and by reap, SWEEP_WORK devices and
-- hosts at a time. Of the pool: `sweep_ms` (when the next look is due), `sweep_at` (how far this
-- round has come: hosts, devices of the next) and `sweep_next_ms` (when something that this round
-- has seen is to go); `forgotten_ms` (when a device went, or got another host or model, last: its
-- waiters are told so on their next poll).

local SWEEP_MS, SWEEP_WORK, MOST_DRAINS = 300000, 64, 1000
local UNNAMED = 'UNKNOWN-'   -- such an id stands for a GPU that its host could not identify
local COMPLETE = 64   -- a report with fewer devices than one may have lists all of its host

-- Is nothing of a lease on it any more, neither promised nor withheld?
function broker.unused(d)
  return d.leases == 0 and d.withheld_mb == 0 and call('SCARD', prefix .. 'holders:' .. d.uuid) == 0
end

-- Take a device out of everything that knows it.
function broker.forget_device(d, by, why)
  if d.reserved_for ~= '' then broker.reservations.cancel_on(d) end
  broker.unregister(d)
  call('DEL', prefix .. 'device:' .. d.uuid, prefix .. 'use:' .. d.uuid)
  ctx.devices[d.uuid] = nil
  broker.event('device_forgotten', 'device', d.uuid, 'host', d.host, 'by', by, 'reason', why)
end

function broker.forget_host(host, by, why)
  call('DEL', prefix .. 'host:' .. host)
  call('SREM', prefix .. 'hosts', host)
  clear_deadline('host:' .. host)
  broker.event('host_forgotten', 'host', host, 'by', by, 'reason', why)
end

-- Remember an operator's drain of what is forgotten. Is there room for it?
local function keep_drain(name)
  if call('ZCARD', prefix .. 'drains') >= MOST_DRAINS then return false end
  call('ZADD', prefix .. 'drains', text(ctx.now), name)
  return true
end

-- Is the GPU drained that a device is a part of? Its parts are with it, new ones too.
local function of_drained(parent)
  return parent ~= '' and call('HGET', prefix .. 'device:' .. parent, 'drained') == '1'
end

-- A device that is missing goes, if nothing is on it and its drain can be kept. Did it?
-- `with_host`: its host's drain is kept.
local function let_go(uuid, why, with_host)
  local d = broker.device(uuid)
  if not d or not broker.unused(d) then return false end
  with_host = with_host or of_drained(d.parent)
  if d.drained == '1' and not with_host and not keep_drain('device:' .. uuid) then return false end
  broker.forget_device(d, '', why)
  return true
end

-- Since when a device is missing, or nil: it is not. A slice of a GPU that is listed without it:
-- since ever.
local function missing_since(uuid, listed_ms, deadline_ms)
  local own_ms, parent, host = unpack(call('HMGET', prefix .. 'device:' .. uuid, 'listed_ms',
    'parent', 'host'))
  if not host then return nil end   -- removed by hand
  if not own_ms then   -- registered by a version that does not say so
    call('HSET', prefix .. 'device:' .. uuid, 'listed_ms', text(ctx.now))
    return nil
  end
  own_ms = own_ms + 0
  if own_ms + deadline_ms >= listed_ms then return nil end
  local parent_ms = (parent or '') ~= '' and call('HGET', prefix .. 'device:' .. parent,
    'listed_ms')
  return parent_ms and parent_ms + 0 > own_ms + deadline_ms and 0 or own_ms
end

-- Look at a host, and at `left` of its devices after the first `at`. How many that were, where to
-- go on (nil at its end), and whether the host is forgotten.
local function sweep_host(host, at, left, after, wake)
  local reported_ms, listed_ms, up_ms, deadline_ms, drained = unpack(call('HMGET',
    prefix .. 'host:' .. host, 'reported_ms', 'listed_ms', 'up_ms', 'deadline_ms', 'drained'))
  listed_ms, deadline_ms = (listed_ms or 0) + 0, (deadline_ms or 0) + 0
  local up, gone = call('ZSCORE', DEADLINES, 'host:' .. host), 0
  local settled_ms = up and (up_ms or 0) + deadline_ms or (reported_ms or 0) + after.hosts_ms
  if ctx.now < settled_ms then
    wake(settled_ms)
    return 1, nil
  end
  local ids = call('ZRANGE', prefix .. 'fits:host/' .. host, at, at + left - 1)
  for _, uuid in ipairs(ids) do
    local since_ms = 0
    if up then since_ms = missing_since(uuid, listed_ms, deadline_ms) end
    local due_ms = since_ms and (since_ms == 0 and 0 or since_ms + after.devices_ms)
    if due_ms and due_ms > ctx.now then
      wake(due_ms)
    elseif due_ms and let_go(uuid, up and 'its host lists it no more' or 'its host is silent',
      not up and drained == '1') then
      gone = gone + 1
    end
  end
  if #ids == left then return left, at + left - gone end
  if not up and call('SCARD', prefix .. 'devices:' .. host) == 0 and (drained ~= '1'
    or keep_drain('host:' .. host)) then
    broker.forget_host(host, '', 'it is silent')
    return 1 + #ids, nil, true
  end
  return 1 + #ids, nil
end

-- Go on with the round of looks: one script's part of it.
function broker.sweep()
  local sweep_at, sweep_next_ms, devices_s, hosts_s, closed_until_ms = unpack(call('HMGET', POOL,
    'sweep_at', 'sweep_next_ms', 'forget_devices_after_s', 'forget_hosts_after_s',
    'closed_until_ms'))
  -- Holders may bring leases back
  if ctx.now < (ctx.pool.closed_until_ms or (closed_until_ms or 0) + 0) then return end
  local after = { devices_ms = (devices_s or 3600) * 1000, hosts_ms = (hosts_s or 86400) * 1000 }
  local n, at = string.match(sweep_at or '', '^(%d+):(%d+)$')
  n, at = tonumber(n) or 0, tonumber(at) or 0
  local next_ms = n + at > 0 and tonumber(sweep_next_ms or '') or ctx.now + SWEEP_MS
  local function wake(ms) next_ms = math.min(next_ms, ms) end
  local hosts, left, gone = call('SMEMBERS', prefix .. 'hosts'), SWEEP_WORK, 0
  while hosts[n + 1] and left > 0 do
    local looked, goes_on, forgotten = sweep_host(hosts[n + 1], at, left, after, wake)
    left, at = left - looked, goes_on or 0
    if not goes_on then n = n + 1 end
    if forgotten then gone = gone + 1 end
  end
  local done = not hosts[n + 1]
  set_pool('sweep_next_ms', next_ms)
  set_pool('sweep_ms', done and math.max(next_ms, ctx.now + 1) or ctx.now)
  local changes = ctx.changes
  changes[#changes + 1], changes[#changes + 2] = 'sweep_at', done and '' or n - gone .. ':' .. at
end

-- Slices of the GPUs that a report lists, and that are not there any more, go at once; so do rows
-- of GPUs that could not be identified, and are. `listed`: the ids that it lists, `unlisted`: those
-- of which it says that they are not there.
function broker.forget_slices(host, listed, unlisted)
  local ids = call('SMEMBERS', prefix .. 'devices:' .. host)
  local complete, left = #ids <= COMPLETE, SWEEP_WORK
  for _, uuid in ipairs(ids) do
    if left > 0 and not listed[uuid] and (complete or unlisted[uuid]) then
      local parent = call('HGET', prefix .. 'device:' .. uuid, 'parent')
      left = left - 1
      if parent and listed[parent] then let_go(uuid, 'its GPU is divided anew') end
      if unlisted[uuid] and string.sub(uuid, 1, #UNNAMED) == UNNAMED then
        let_go(uuid, 'it is identified, or gone', true)
      end
    end
  end
end

-- Was a drain on a device that is registered now, or on its host, when it was forgotten, or is one
-- on the GPU that it is a part of?
function broker.drained_before(uuid, host, parent)
  local was = call('ZREM', prefix .. 'drains', 'device:' .. uuid) == 1
  return was or call('ZSCORE', prefix .. 'drains', 'host:' .. host) or of_drained(parent or '')
end
