-- report: a host says which devices it has and how they are, and that it lives. Only this verb creates the pool.
--
-- KEYS[1]  base         gpu:{pool}
-- ARGV[1]  protocol     int
-- ARGV[2]  host         str
-- ARGV[3]  deadline_ms  int   without another report for that long, the host's devices take no new leases
-- ARGV[4]  sampled_ms   int   the pool's time when the devices were looked at (now_ms of an earlier reply); 0 = unknown
-- ARGV[5]  epoch        str   the last one seen, or empty; then, after a colon, now_ms of the last reply
-- ARGV[6]  safe_mode    int   policy of a pool that this call creates
-- ARGV[7]  version      str   the reporter's
-- ARGV[8+] devices      str   up to 64 times id, count of pairs, pairs; then an empty one, the reporter, an ended one, its trouble, its warning
-- reply    REPORTED {rival contested} | REFUSED reason detail
-- keeps    S1: a stale sample can only refuse; S2: sums and indexes stay exact
-- cost     O((REAP_DEVICES + devices) log devices)

local FIRST, MOST = 8, 64

local host = word(2, 'host', '^[%w._ -]+$', 64)
local deadline_ms, sampled_ms = int(3, 'deadline_ms', 1, 86400000), int(4, 'sampled_ms', 0,
  9999999999999)
local epoch, seen_ms = string.match(word(5, 'epoch', '^%d*:?%d*$', 30), '^(%d*):?(%d*)$')
if #epoch > 16 or #seen_ms > 13 then ctx.bad = ctx.bad or 'epoch' end
local safe_mode = int(6, 'safe_mode', 0, 1)
local version = word(7, 'version', '^[%w._+ -]*$', 64)
local reported, at = {}, FIRST
while ARGV[at] and ARGV[at] ~= '' and not ctx.bad do
  reported[#reported + 1], at = broker.reported_device(at)
end
local me, over = '', ''
if ARGV[at] and not ctx.bad then
  me, over = word(at + 1, 'device', '^[%w._-]*$', 64), word(at + 2, 'device', '^[%w._-]*$', 64)
end
-- Without them what the host said before stands.
local trouble, warning = nil, nil
if ARGV[at] and ARGV[at + 3] and not ctx.bad then
  trouble, warning = word(at + 3, 'trouble', '^[^%c]*$', 512), word(at + 4, 'trouble', '^[^%c]*$',
    512)
end
if #reported > MOST then ctx.bad = ctx.bad or 'devices' end
if ctx.bad then return reply('REFUSED', 'bad_request', ctx.bad) end

if ARGV[1] == PROTOCOL and call('EXISTS', POOL) == 0 then
  -- What every verb reads comes first, then what acquire does: a small hash is searched from its
  -- beginning.
  call('HSET', POOL, 'schema', SCHEMA, 'epoch', text(ctx.now_us), 'offset_ms', 0, 'last_ms',
    ctx.now, 'waiting', 0, 'looked_ms', 0,
    'next_deadline_ms', 0, 'fence', 0, 'safe_mode', safe_mode, 'closed_until_ms', 0,
    'max_memory_per_agent_mb', 1048576,
    'allow_fractional_shares', 1, 'default_memory_mb', 2048, 'max_leases_per_agent', 256,
    'policy_version', 1,
    'window_until_ms', 0, 'leap_from_ms', 0, 'kill_on_oom', 0, 'expiry_grace_s', 5,
    'max_waiters_per_agent', 256,
    'idle_action', 'observe', 'overuse_action', 'observe', 'squatter_action', 'observe',
    'orphan_action', 'observe',
    'idle_after_s', 600, 'enforce_after_s', 60, 'overuse_slack_mb', 512, 'xid_actions', '',
    'idle_foreign_mb', 512, 'memory_limit', 'off', 'mps_thread_share', 0,
    'half_life_s', 604800, 'reclaim_after_s', 60, 'min_runtime_s', 300, 'preempt_grace_s', 60,
    'reservation_idle_s', 60, 'forget_devices_after_s', 3600, 'forget_hosts_after_s', 86400,
    'usage_days', 400, 'history_leases', 10000, 'price_per_gpu_hour', '',
    'sweep_ms', ctx.now + 300000, 'capacity_mb', broker.registered_mb())
  broker.event('pool_created', 'host', host)
end
-- And what is gone is forgotten: lib/forgetting.lua
local unready, silence_ms, sweep_ms = begin('silence_ms', 'sweep_ms')
if unready then return reply('REFUSED', unready, ctx.schema or '') end
if tonumber(silence_ms) ~= deadline_ms then set_pool('silence_ms', deadline_ms) end
broker.remembered(epoch)
if seen_ms ~= '' then broker.recalls(seen_ms + 0) end
catch_up()

local host_key = prefix .. 'host:' .. host
local other, reported_ms, silent_ms, old_rival, rival_ms, old_trouble, old_warning, said_by,
  said_ms = unpack(call('HMGET', host_key, 'reporter', 'reported_ms', 'deadline_ms', 'rival',
  'rival_ms', 'trouble', 'warning', 'said_by', 'said_ms'))
local up = reported_ms and reported_ms + silent_ms > ctx.now
other = other or ''
if up and me ~= '' and other ~= '' and other ~= me and other ~= over and broker.has_name(host,
  other, me, reported) then
  return reply('REFUSED', 'host_taken', other)
end

local contested, listed, unlisted, divided = {}, {}, {}, false
for _, said in ipairs(reported) do
  local with, was = broker.accept(host, said, sampled_ms, me ~= '' and over)
  divided = divided or was or said.state == 'mig' or said.listed == '0'
  if with then contested[#contested + 1] = with
  elseif said.listed == '0' then unlisted[said.uuid] = true
  else listed[said.uuid] = true end
  if said.use and not with then broker.take_use(said.uuid, said.use) end
end
if not up and not call('ZSCORE', DEADLINES, 'host:' .. host) then
  call('SADD', prefix .. 'hosts', host)
  call('HSET', host_key, 'up_ms', ctx.now)
  if call('ZREM', prefix .. 'drains', 'host:' .. host) == 1 then
    call('HSET', host_key, 'drained', '1')
  end
  broker.event('host_up', 'host', host, 'version', version)
end
local more = {}
if trouble and trouble .. warning .. (old_trouble or '') .. (old_warning or '') ~= '' then
  local before = {
    trouble = old_trouble or '', by = said_by, until_ms = up and (said_ms or 0) + deadline_ms,
  }
  more = broker.host_said(host, { trouble = trouble, warning = warning, by = me }, before, over)
end
if #reported == 0 and up then me = other end   -- a heartbeat says nothing of the owner of devices
if me ~= other then more[#more + 1], more[#more + 2] = 'reporter', me end
if next(listed) then more[#more + 1], more[#more + 2] = 'listed_ms', ctx.now end
call('HSET', host_key, 'version', version, 'reported_ms', ctx.now, 'deadline_ms', deadline_ms,
  unpack(more))
set_deadline('host:' .. host, ctx.now + deadline_ms)
if divided then broker.forget_slices(host, listed, unlisted) end
if (sweep_ms or 0) + 0 <= ctx.now then broker.sweep() end
local rival = broker.rival(old_rival, rival_ms)
if rival == '' and not contested[1] then return reply('REPORTED') end
return reply('REPORTED', rival, table.concat(contested, ','))
