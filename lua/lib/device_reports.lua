-- device_reports: which devices there are, and what their hosts say of them. Only report needs this
-- file.

-- What a reporter may say of a device, by the form of it; the ledger's own fields are not among
-- them.
local HOST = '^[%w._ -]+$'
local FORMS = {
  whole = { '^%d+$', 13 }, number = { '^%d+%.?%d*$', 20 }, line = { '^[^%c]*$', 256 },
  word = { HOST, 64 },
  state = { '^%l+$', 16 }, flag = { '^[01]$', 1 }, id = { '^[%w._:/-]*$', 80 },
  names = { '^[%w._,-]*$', 8192, list },
  rows = { '^[^%c]*$', 16384 }, told = { '^[%w._,=+-]*$', 8192, list }, xids = { '^[%d:%l,]*$', 256,
  list },
  cooling = { '^[%w._,=:-]*$', 4096, list }, uses = { '^[%w._,=:-]*$', 8192, list },
}
local FIELDS = {
  index = 'whole', name = 'line', model = 'word', total_mb = 'whole', system_mb = 'whole',
  used_mb = 'whole',
  state = 'state', reason = 'line', simulated = 'flag', utilization_gpu_pct = 'number',
  memory_utilization_pct = 'number',
  temperature_c = 'number', power_draw_w = 'number', pcie_tx_kb_s = 'number',
  pcie_rx_kb_s = 'number',
  nvml_mem_used_mb = 'number', nvml_mem_total_mb = 'number', nvml_gpu_util_pct = 'number',
  nvml_mem_util_pct = 'number',
  nvml_error = 'line', power_limit_w = 'number', clock_sm_mhz = 'number',
  clock_memory_mhz = 'number',
  ecc_uncorrected = 'number', rows_pending = 'number', rows_failed = 'number',
  recovery_action = 'number', mps = 'number',
  parent = 'id', runtime_id = 'id', unified = 'flag',
  -- Findings of its host. In MiB: used without a lease, or beyond one; of that at most so much
  -- may be of leases whose processes are not known; held by leases that cool and whose processes
  -- are not known. Without reported_unleased_mb, used_mb alone counts.
  reported_unleased_mb = 'whole', unattributed_mb = 'whole', cooling_unattributed_mb = 'whole',
  processes = 'rows', unseen = 'line', idle = 'names', overuse = 'names', squatter = 'names',
  orphan = 'names',
  -- Why it takes one lease at a time; MiB that may be used without a lease on one that is idle.
  one_lease = 'line', idle_unleased_mb = 'whole',
  -- Leases whose memory its driver limits, and why it cannot limit those that ask for it
  limited = 'names', limit_error = 'line',
  degraded = 'names', quarantine = 'line', finder = 'word', finder_ms = 'whole', reporter = 'word',
}

-- Said once, and not kept on the device as it is: what its leases are to be told of
-- (`token=idle+overuse`, none = of nothing any more), error codes of the GPU with what is made of
-- them, a process that was sent a signal, for which lease and why, and holders without a record. Of
-- leases that cool: MiB that all of them still use, and of each `token=when it ended:MiB it still
-- uses:MiB it holds, if its processes are not known`; lib/unleased.lua keeps what the newest sample
-- says. `listed` 0: the driver works and does not list it; without that, naming it lists it. `same`
-- 1: what is not named is as the device has it, and a device that is not there is not registered.
-- `use`: what was seen of its leases, lib/usage.lua.
local SAID = { tell = 'told', xids = 'xids', ended = 'line', gone = 'names',
  cooling_used_mb = 'whole', cooling = 'cooling',
  listed = 'flag', same = 'flag', use = 'uses' }

-- What has no consequence but to be known of the device, as every number has, beside what
-- broker.quiet looks at.
broker.PLAIN = { same = true, state = true, used_mb = true, reported_unleased_mb = true,
  index = true, name = true, reason = true, simulated = true, nvml_error = true, unified = true,
  runtime_id = true, processes = true, unseen = true, limited = true, limit_error = true,
  finder = true, finder_ms = true, reporter = true, use = true }

-- What the ledger reckons with: a number that the driver cannot tell leaves the last one standing.
local KEPT = { index = true, total_mb = true, system_mb = true, idle_unleased_mb = true }

-- The device at ARGV[i] and where the next one starts. What is not well-formed is remembered in
-- ctx.bad. `fields`: what is kept of it, field and value in turn, after the two that accept() fills
-- in.
function broker.reported_device(i)
  local fields, n = { 'host', '', 'drained', '' }, 4
  local said = { uuid = word(i, 'device', '^[%w._:/-]+$', 80), fields = fields, plain = true }
  local next_at = i + 2 + 2 * int(i + 1, 'device', 0, 64)
  for at = i + 2, next_at - 2, 2 do
    local field, value = ARGV[at], ARGV[at + 1]
    local of = FIELDS[field] or SAID[field]
    local form = FORMS[of or '']
    if not form then ctx.bad = ctx.bad or 'device' break end
    local unknown = value == '' and (of == 'whole' or of == 'number')
    if not unknown then said[field] = (form[3] or word)(at + 1, field, form[1], form[2]) end
    if FIELDS[field] and not (unknown and KEPT[field]) then
      fields[n + 1], fields[n + 2], n = field, value, n + 2
    end
    said.plain = said.plain and (of == 'number' or broker.PLAIN[field])
  end
  said.cools = said.cooling and broker.cooling_said(said.cooling)
  -- The broker's own word for a host that is silent
  if said.state == 'away' then ctx.bad = ctx.bad or 'state' end
  return said, next_at
end

local function new_device(uuid, host)
  call('HSET', prefix .. 'device:' .. uuid, 'host', host, 'index', '0', 'name', uuid, 'model',
    'unknown', 'total_mb', '0', 'system_mb', '0', 'state', 'unknown', 'leased_mb', '0',
    'withheld_mb', '0', 'unleased_mb', '0', 'leases', '0', 'exclusive', '', 'reserved_for', '',
    'drained', '0')
  return broker.device(uuid)
end

-- What is read of a device beside what placement needs.
local BESIDES = { 'withheld_at_ms', 'sampled_ms', 'cooled_at_ms', 'raised_mb', 'quarantine',
  'divided' }
for i = 1, #broker.FINDINGS do BESIDES[#BESIDES + 1] = broker.FINDINGS[i] end

-- A device, and those fields by name.
local function look_at(uuid)
  local d, values = broker.device(uuid, unpack(BESIDES))
  local was = {}
  if not d then return d, was end
  values = values or call('HMGET', prefix .. 'device:' .. uuid, unpack(BESIDES))
  local others = #values - #BESIDES
  for i, field in ipairs(BESIDES) do was[field] = values[others + i] end
  return d, was
end

-- Take the report of a device that is as it was but for measurements and the like: its memory is
-- settled already, so nothing follows from it. False: it is not so, or not known to be.
function broker.quiet(host, said, sampled_ms)
  if said.same ~= '1' or not said.plain or ctx.devices[said.uuid] then return false end
  local key, fields = prefix .. 'device:' .. said.uuid, said.fields
  local on, state, leased_mb, withheld_mb, unleased_mb, newest_ms, raised_mb = unpack(call('HMGET',
    key, 'host', 'state', 'leased_mb', 'withheld_mb', 'unleased_mb', 'sampled_ms', 'raised_mb'))
  if on ~= host or state ~= said.state or withheld_mb ~= '0' or (raised_mb or '0') ~= '0'
    or state == 'mig' or (newest_ms or 0) + 0 > sampled_ms then
    return false
  end
  local used_mb, mb = tonumber(said.used_mb), unleased_mb + 0
  if said.reported_unleased_mb then
    if said.reported_unleased_mb ~= unleased_mb then return false end
  elseif not used_mb or mb > used_mb or mb < used_mb - leased_mb then
    return false
  end
  fields[1], fields[2], fields[3], fields[4] = 'listed_ms', text(ctx.now), 'sampled_ms',
    text(sampled_ms)
  call('HSET', key, unpack(fields))
  return true
end

-- Take a device as its host says it is, unless another one that lives lists it: then
-- `device|host|reporter` of that one. `over`: a reporter that has ended; false: this one does not
-- identify itself, and takes what it names. What is not there is not registered. The second result:
-- it was a GPU that is divided.
function broker.accept(host, said, sampled_ms, over)
  if broker.quiet(host, said, sampled_ms) then return nil, false end
  local known, was = look_at(said.uuid)
  if not known and (said.listed == '0' or said.same == '1') then return nil, false end
  local with = over and known and known.host ~= host and broker.has_device(known, host, over)
  if with then return said.uuid .. '|' .. known.host .. '|' .. with, false end
  local d = known or new_device(said.uuid, host)
  local capacity, state = d.total_mb - d.system_mb, d.state
  local elsewhere = d.host ~= host or d.model ~= (said.model or d.model)
  if d.reserved_for ~= '' and (elsewhere or (said.state or state) ~= 'ok') then
    broker.reservations.cancel_on(d)
  end
  if known and elsewhere then broker.unregister(d) end
  broker.model_sums.move(d, said.model or d.model)
  local moved = not known or d.host ~= host   -- what a drained host gets is drained too
  if moved and call('HGET', prefix .. 'host:' .. host, 'drained') == '1' then d.drained = '1' end
  if not known and broker.drained_before(d.uuid, host, said.parent) then d.drained = '1' end
  d.host, d.model, d.state = host, said.model or d.model, said.state or d.state
  d.keys, d.total_mb = nil, tonumber(said.total_mb) or d.total_mb
  d.system_mb = tonumber(said.system_mb) or d.system_mb
  d.one_lease, d.parent = said.one_lease or d.one_lease, said.parent or d.parent
  d.idle_unleased_mb = tonumber(said.idle_unleased_mb) or d.idle_unleased_mb
  local was_divided = was.divided == '1'
  local divided = d.state == 'mig' or was_divided and d.state ~= 'ok'
  local fields = said.fields
  fields[2], fields[4] = host, d.drained
  local n = #fields
  if said.listed ~= '0' then
    fields[n + 1], fields[n + 2], n = 'listed_ms', text(ctx.now), n + 2
  end
  if divided ~= was_divided then
    fields[n + 1], fields[n + 2] = 'divided', divided and '1' or '0'
  end
  broker.settle_unleased(d, said, sampled_ms, {
    withheld_at_ms = (was.withheld_at_ms or 0) + 0, newest_ms = (was.sampled_ms or 0) + 0,
    cooled_at_ms = (was.cooled_at_ms or 0) + 0, raised_mb = (was.raised_mb or 0) + 0,
  }, fields)
  call('HSET', prefix .. 'device:' .. d.uuid, unpack(fields))
  if not known or elsewhere or divided ~= was_divided or capacity ~= d.total_mb - d.system_mb then
    broker.register(d, was_divided and not elsewhere, divided)
  end
  broker.index(d)
  broker.compare(d, said, was)
  broker.note(d, said, was.quarantine or '')
  if not known or state ~= d.state then
    broker.event('device', 'device', d.uuid, 'host', host, 'state', d.state, 'reason',
      said.reason or '')
  end
  return nil, state == 'mig'
end

-- A sentence without its numbers: one that counts seconds stays the same one.
local function without_numbers(line) return (string.gsub(line, '%d+', '')) end

-- Take what a host says of itself: a trouble, for which its GPUs are not seen, and a warning.
-- `before`: what it said, by which reporter, and until when that stands beside the word of another;
-- `over`: a reporter that has ended. The fields of the host that this changes.
function broker.host_said(host, now, before, over)
  local another = before.by and before.by ~= now.by and before.by ~= over
  if another and before.until_ms and before.until_ms > ctx.now then return {} end
  local fields = { 'trouble', now.trouble, 'warning', now.warning, 'said_by', now.by, 'said_ms',
    text(ctx.now) }
  if without_numbers(now.trouble) ~= without_numbers(before.trouble) then
    if now.trouble == '' or before.trouble == '' then
      fields[9], fields[10] = 'trouble_since_ms', now.trouble == '' and '0' or text(ctx.now)
    end
    broker.event('host_trouble', 'host', host, 'reason', now.trouble)
  end
  return fields
end
