-- drain: a device, or a host with all it has, takes no new leases; or takes them again. No report undoes it.
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

local unready = B.open()
if unready then return B.reply('REFUSED', unready, B.schema or '') end
local what, drained = B.choice(2, 'what', 'device', 'host'), B.int(4, 'drained', 0, 1)
local name = what == 'host' and B.word(3, 'host', '^[%w._ -]+$', 64) or B.word(3, 'device', '^[%w._:/-]+$', 80)
local by, why = B.word(5, 'by', '^[^%c]+$', 128), B.word(6, 'why', '^[^%c]*$', 256)
if B.bad then return B.reply('REFUSED', 'bad_request', B.bad) end
local known = redis.call('EXISTS', P .. what .. ':' .. name) == 1
if not known then return B.reply('REFUSED', what .. '_unknown', name) end

B.catch_up()

local ids = { name }
if what == 'host' then
  ids = redis.call('SMEMBERS', P .. 'devices:' .. name)
  redis.call('HSET', P .. 'host:' .. name, 'drained', drained)   -- for devices that it will report
end
for _, uuid in ipairs(ids) do
  local d = B.device(uuid)
  if d then
    if d.kept_for ~= '' then B.waiters().unkept(d) end
    d.drained = text(drained)
    local quarantine = drained == 0 and redis.call('HGET', P .. 'device:' .. uuid, 'quarantine') or ''
    if quarantine ~= '' then
      if d.state == 'quarantined' then d.state = 'ok' end   -- else its host sees something else in it
      redis.call('HSET', P .. 'device:' .. uuid, 'quarantine', '', 'state', d.state, 'reason', '')
      B.event('returned', 'device', uuid, 'host', d.host)
    end
    redis.call('HSET', P .. 'device:' .. uuid, 'drained', drained)
    B.index(d)
  end
end
B.event(drained == 1 and 'drained' or 'undrained', what, name, 'by', by, 'reason', why)
return B.reply(drained == 1 and 'DRAINED' or 'UNDRAINED', #ids)
