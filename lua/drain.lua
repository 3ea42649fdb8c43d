-- drain: a device with its parts, or a host with all it has, takes no new leases; or takes them again. No report undoes it.
--
-- KEYS[1]  base      gpu:{pool}
-- ARGV[1]  protocol  int
-- ARGV[2]  what      str   device or host
-- ARGV[3]  name      str   the device's id or the host's name
-- ARGV[4]  drained   int   1 = drain, 0 = undrain
-- ARGV[5]  by        str   who does it
-- ARGV[6]  why       str   for the log
-- reply    DRAINED devices | UNDRAINED devices | REFUSED reason detail
-- keeps    S2: sums and indexes stay exact; leases that run go on; what takes leases again is in quarantine no more
-- cost     O((REAP_DEVICES + the host's devices) log devices)

local unready = begin()
if unready then return reply('REFUSED', unready, ctx.schema or '') end
local what, drained = choice(2, 'what', 'device', 'host'), int(4, 'drained', 0, 1)
local name = what == 'host' and word(3, 'host', '^[%w._ -]+$', 64) or word(3, 'device',
  '^[%w._:/-]+$', 80)
local by, why = word(5, 'by', '^[^%c]+$', 128), word(6, 'why', '^[^%c]*$', 256)
if ctx.bad then return reply('REFUSED', 'bad_request', ctx.bad) end
local known, forgotten = call('EXISTS', prefix .. what .. ':' .. name) == 1, false
if not known and drained == 0 then
  forgotten = call('ZSCORE', prefix .. 'drains', what .. ':' .. name)
end
if not known and not forgotten then
  return reply('REFUSED', what .. '_unknown', what == 'host' and broker.nearly(name) or '')
end

catch_up()

if forgotten then
  call('ZREM', prefix .. 'drains', what .. ':' .. name)
  broker.event('undrained', what, name, 'by', by, 'reason', why)
  return reply('UNDRAINED', 0)
end
local ids = { name }
if what == 'host' then
  ids = call('SMEMBERS', prefix .. 'devices:' .. name)
  call('HSET', prefix .. 'host:' .. name, 'drained', drained)   -- for devices that it will report
else
  local host = call('HGET', prefix .. 'device:' .. name, 'host') or ''
  for _, uuid in ipairs(call('SMEMBERS', prefix .. 'devices:' .. host)) do
    if call('HGET', prefix .. 'device:' .. uuid, 'parent') == name then ids[#ids + 1] = uuid end
  end
end
for _, uuid in ipairs(ids) do
  local d = broker.device(uuid)
  if d then
    if d.reserved_for ~= '' then broker.reservations.cancel_on(d) end
    d.drained = text(drained)
    local quarantine = drained == 0 and call('HGET', prefix .. 'device:' .. uuid, 'quarantine')
      or ''
    if quarantine ~= '' then
      -- Else its host sees something else in it
      if d.state == 'quarantined' then d.state = 'ok' end
      call('HSET', prefix .. 'device:' .. uuid, 'quarantine', '', 'state', d.state, 'reason', '')
      broker.event('unquarantined', 'device', uuid, 'host', d.host)
    end
    call('HSET', prefix .. 'device:' .. uuid, 'drained', drained, 'drain_by', drained == 1 and by
      or '',
      'drain_reason', drained == 1 and why or '')
    broker.index(d)
  end
end
broker.event(drained == 1 and 'drained' or 'undrained', what, name, 'by', by, 'reason', why)
return reply(drained == 1 and 'DRAINED' or 'UNDRAINED', #ids)
