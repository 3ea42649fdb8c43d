-- report: a host says which devices it has and how they are, and that it lives. Only this verb creates the pool.
--
-- KEYS[1]  base         gpu:{pool}
-- ARGV[1]  protocol     int
-- ARGV[2]  host         str
-- ARGV[3]  deadline_ms  int   without another report for that long, the host's devices take no new leases
-- ARGV[4]  sampled_ms   int   the pool's time when the devices were looked at (now_ms of an earlier reply); 0 = unknown
-- ARGV[5]  epoch        str   the last one seen, or empty
-- ARGV[6]  safe_mode    int   policy of a pool that this call creates
-- ARGV[7]  version      str   the reporter's
-- ARGV[8+] devices      str   at most 64 times: id, number of pairs, then field and value of each
-- reply    REPORTED | REFUSED reason detail
-- keeps    S1: a stale sample can only refuse; S2: sums and indexes stay exact
-- cost     O((REAP_DEVICES + devices) log devices)

local FIRST, MOST = 8, 64

-- What a reporter may say of a device, by the form of it; the ledger's own fields are not among them.
local HOST = '^[%w._ -]+$'
local FORMS = {
  whole = { '^%d+$', 13 }, number = { '^%d+%.?%d*$', 20 }, line = { '^[^%c]*$', 256 }, word = { HOST, 64 },
  state = { '^%l+$', 16 }, flag = { '^[01]$', 1 }, id = { '^[%w._:/-]*$', 80 }, names = { '^[%w._,-]*$', 8192 },
  rows = { '^[^%c]*$', 16384 }, told = { '^[%w._,=+-]*$', 8192 }, xids = { '^[%d:%l,]*$', 256 },
}
local FIELDS = {
  index = 'whole', name = 'line', model = 'word', total_mb = 'whole', reserve_mb = 'whole', used_mb = 'whole',
  state = 'state', reason = 'line', simulated = 'flag', utilization_gpu_pct = 'number', memory_utilization_pct = 'number',
  temperature_c = 'number', power_draw_w = 'number', pcie_tx_kb_s = 'number', pcie_rx_kb_s = 'number',
  nvml_mem_used_mb = 'number', nvml_mem_total_mb = 'number', nvml_gpu_util_pct = 'number', nvml_mem_util_pct = 'number',
  nvml_error = 'line', power_limit_w = 'number', clock_sm_mhz = 'number', clock_memory_mhz = 'number',
  ecc_uncorrected = 'number', rows_pending = 'number', rows_failed = 'number', recovery_action = 'number', mps = 'number',
  parent = 'id',
  -- What its host makes of it. In MiB: used by nobody's lease, or beyond one; of that at most so much may be of leases whose
  -- processes are not known; still used by leases that cool; held by leases that cool and whose processes are not known.
  -- Without outside_mb, used_mb alone counts.
  outside_mb = 'whole', unclaimed_mb = 'whole', lingering_mb = 'whole', uncertain_mb = 'whole',
  processes = 'rows', unseen = 'line', idle = 'names', overuse = 'names', squatter = 'names', orphan = 'names',
  degraded = 'names', quarantine = 'line', finder = 'word', finder_ms = 'whole',
}

-- Said once, and not kept on the device: what its leases are to be told of (`token=idle+overuse`, none = of nothing any
-- more), error codes of the GPU with what is made of them, a process that was sent a signal, for whose sake and why, and
-- holders of whom there is no record.
local SAID = { tell = 'told', xids = 'xids', ended = 'line', gone = 'names' }

-- What the ledger reckons with: a number that the driver cannot tell leaves the last one standing.
local KEPT = { index = true, total_mb = true, reserve_mb = true }

-- The device at ARGV[i] and where the next one starts. What is not well-formed is remembered in `bad`.
local function reported_device(i)
  local said = { uuid = word(i, 'device', '^[%w._:/-]+$', 80), fields = {} }
  local next_at = i + 2 + 2 * int(i + 1, 'device', 0, 64)
  for at = i + 2, next_at - 2, 2 do
    local field = ARGV[at]
    local form = FORMS[FIELDS[field] or SAID[field] or '']
    if not form then S.bad = S.bad or 'device' break end
    local unknown = ARGV[at + 1] == '' and (FIELDS[field] == 'whole' or FIELDS[field] == 'number')
    if not unknown then said[field] = word(at + 1, field, form[1], form[2]) end
    if not SAID[field] and not (unknown and KEPT[field]) then
      said.fields[#said.fields + 1], said.fields[#said.fields + 2] = field, said[field] or ''
    end
  end
  if said.state == 'away' then S.bad = S.bad or 'state' end   -- the broker's own word for a host that is silent
  return said, next_at
end

local host = word(2, 'host', HOST, 64)
local deadline_ms, sampled_ms = int(3, 'deadline_ms', 1, 86400000), int(4, 'sampled_ms', 0, 9999999999999)
local epoch, safe_mode = word(5, 'epoch', '^%d*$', 16), int(6, 'safe_mode', 0, 1)
local version = word(7, 'version', '^[%w._+ -]*$', 64)
local reported, at = {}, FIRST
while ARGV[at] and not S.bad do
  reported[#reported + 1], at = reported_device(at)
end
if #reported > MOST then S.bad = S.bad or 'devices' end
if S.bad then return reply('REFUSED', 'bad_request', S.bad) end

if ARGV[1] == PROTOCOL and call('EXISTS', POOL) == 0 then
  call('HSET', POOL, 'schema', SCHEMA, 'epoch', text(S.now_us), 'fence', 0, 'offset_ms', 0, 'last_ms', S.now,
    'window_until_ms', 0, 'leap_from_ms', 0, 'closed_until_ms', 0, 'waiting', 0,
    'policy_version', 1, 'safe_mode', safe_mode, 'max_memory_per_agent_mb', 1048576, 'allow_fractional_shares', 1,
    'kill_on_oom', 0, 'default_memory_mb', 2048, 'expiry_grace_s', 5, 'max_leases_per_agent', 256,
    'max_waiters_per_agent', 256, 'idle_action', 'observe', 'overuse_action', 'observe', 'squatter_action', 'observe',
    'orphan_action', 'observe', 'idle_after_s', 600, 'enforce_after_s', 60, 'overuse_slack_mb', 512, 'xid_actions', '')
  B.event('pool_created', 'host', host)
end
local unready = begin()
if unready then return reply('REFUSED', unready, S.schema or '') end
B.remembered(epoch)
catch_up()

-- What could ever be had of this model, and on which hosts: written from the zsets themselves, so it cannot drift.
local function settle_model(model, on)
  local top = call('ZRANGE', P .. 'fits:model/' .. model, 0, 0, 'REV', 'WITHSCORES')
  if top[1] then call('ZADD', P .. 'models', top[2], model) else call('ZREM', P .. 'models', model) end
  local devices = call('ZCARD', P .. 'fits:host/' .. on .. '/' .. model)
  if devices > 0 then
    call('ZADD', P .. 'hosts:' .. model, devices, on)
  else
    call('ZREM', P .. 'hosts:' .. model, on)
  end
end

local function each_fits(d, write)
  for _, of in ipairs({ '*', 'host/' .. d.host, 'model/' .. d.model, 'host/' .. d.host .. '/' .. d.model }) do
    write(P .. 'fits:' .. of)
  end
  settle_model(d.model, d.host)
end

local function register(d)
  call('SADD', P .. 'devices:' .. d.host, d.uuid)
  each_fits(d, function(key) call('ZADD', key, d.total_mb - d.reserve_mb, d.uuid) end)
end

-- Out of everything that knows it under the host and model it had.
local function unregister(d)
  local state = d.state
  d.state = 'moving'
  B.index(d)
  B.flush()
  d.state = state
  call('SREM', P .. 'devices:' .. d.host, d.uuid)
  each_fits(d, function(key) call('ZREM', key, d.uuid) end)
end

-- Memory used by others than our leases: at most `most`, at least `least`. What lies between is of leases or of others: there
-- foreign falls only when `most` proves it. A sample older than one that came before can only raise it. `withheld_at_ms` and
-- `newest_ms` are of the last lease that began to cool, and of the newest sample.
local function settle_foreign(d, said, withheld_at_ms, newest_ms)
  local function mb(field) return tonumber(said[field] or '') or 0 end
  local used_mb, outside_mb, lingering_mb = tonumber(said.used_mb), tonumber(said.outside_mb), mb('lingering_mb')
  local most = used_mb
  if outside_mb then   -- what lingers is withheld; but its grace may have ended before it began
    most = outside_mb + math.max(0, lingering_mb - d.withheld_mb)
  end
  if not most then return end
  local function least()
    if outside_mb then return most - mb('unclaimed_mb') end
    return used_mb - d.reserved_mb - d.withheld_mb
  end
  local foreign_mb, fields = math.max(d.foreign_mb, least()), {}
  if sampled_ms >= newest_ms then
    local free = used_mb and used_mb <= d.reserved_mb + d.foreign_mb
    local gone = free
    if outside_mb then gone = lingering_mb == 0 and (free or mb('uncertain_mb') == 0) end
    if d.withheld_mb > 0 and sampled_ms > withheld_at_ms and gone then
      d.withheld_mb, fields = 0, { 'withheld_mb', 0, 'cooled_at_ms', text(withheld_at_ms) }
    end
    foreign_mb = math.min(most, math.max(d.foreign_mb, least()))
    fields[#fields + 1], fields[#fields + 2] = 'sampled_ms', sampled_ms
  end
  d.foreign_mb = math.max(0, foreign_mb)
  call('HSET', P .. 'device:' .. d.uuid, 'foreign_mb', text(d.foreign_mb), unpack(fields))
end

local function new_device(said)
  call('HSET', P .. 'device:' .. said.uuid, 'host', host, 'index', 0, 'name', said.uuid, 'model', 'unknown', 'total_mb', 0,
    'reserve_mb', 0, 'state', 'unknown', 'reserved_mb', 0, 'withheld_mb', 0, 'foreign_mb', 0, 'leases', 0, 'exclusive', '',
    'kept_for', '', 'drained', 0)
  return B.device(said.uuid)
end

local function accept(said)
  local known = B.device(said.uuid)
  local d = known or new_device(said)
  local capacity, state = d.total_mb - d.reserve_mb, d.state
  local elsewhere = d.host ~= host or d.model ~= (said.model or d.model)
  if d.kept_for ~= '' and (elsewhere or (said.state or state) ~= 'ok') then B.waiters.unkept(d) end
  if known and elsewhere then unregister(d) end
  if (not known or d.host ~= host) and call('HGET', P .. 'host:' .. host, 'drained') == '1' then
    d.drained = '1'   -- what a drained host gets is drained too
  end
  d.host, d.model, d.state = host, said.model or d.model, said.state or d.state
  d.total_mb, d.reserve_mb = tonumber(said.total_mb) or d.total_mb, tonumber(said.reserve_mb) or d.reserve_mb
  local key = P .. 'device:' .. d.uuid
  local v = call('HMGET', key, 'withheld_at_ms', 'sampled_ms', 'quarantine', unpack(B.FINDINGS))
  call('HSET', key, 'host', host, 'drained', d.drained, unpack(said.fields))
  if not known or elsewhere or capacity ~= d.total_mb - d.reserve_mb then register(d) end
  settle_foreign(d, said, tonumber(v[1] or 0), tonumber(v[2] or 0))
  B.index(d)
  B.compare(d, said, { unpack(v, 4) })
  B.note(d, said, v[3] or '')
  if not known or state ~= d.state then
    B.event('device', 'device', d.uuid, 'host', host, 'state', d.state, 'reason', said.reason or '')
  end
end

for _, said in ipairs(reported) do accept(said) end
if not call('ZSCORE', DUE, 'host:' .. host) then
  call('SADD', P .. 'hosts', host)
  B.event('host_up', 'host', host, 'version', version)
end
call('HSET', P .. 'host:' .. host, 'version', version, 'reported_ms', S.now, 'deadline_ms', deadline_ms)
schedule('host:' .. host, S.now + deadline_ms)
return reply('REPORTED')
