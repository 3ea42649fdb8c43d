-- forget: a device, or a host with its devices, leaves the pool; a later report may list it anew.
--
-- KEYS[1]  base      gpu:{pool}
-- ARGV[1]  protocol  int
-- ARGV[2]  what      str   device or host
-- ARGV[3]  name      str   the device's id or the host's name
-- ARGV[4]  by        str   the operator
-- ARGV[5]  why       str   for the log
-- reply    FORGOTTEN devices left | REFUSED reason detail
-- keeps    S2: nothing that a lease is on is forgotten; a drain that was on it is over
-- cost     O((REAP_DEVICES + MOST) log devices); repeat it while `left` is not 0

local MOST = 64   -- devices of a host that one call forgets

local unready = begin()
if unready then return reply('REFUSED', unready, ctx.schema or '') end
local what = choice(2, 'what', 'device', 'host')
local name = what == 'host' and word(3, 'host', '^[%w._ -]+$', 64) or word(3, 'device',
  '^[%w._:/-]+$', 80)
local by, why = word(4, 'by', '^[^%c]+$', 128), word(5, 'why', '^[^%c]*$', 256)
if ctx.bad then return reply('REFUSED', 'bad_request', ctx.bad) end
if call('EXISTS', prefix .. what .. ':' .. name) == 0 and not call('ZSCORE', prefix .. 'drains',
  what .. ':' .. name) then
  return reply('REFUSED', what .. '_unknown', what == 'host' and broker.nearly(name) or '')
end

catch_up()

local ids, devices = { name }, {}
if what == 'host' then ids = call('ZRANGE', prefix .. 'fits:host/' .. name, 0, MOST - 1) end
for _, uuid in ipairs(ids) do
  local d = broker.device(uuid)
  if d and not broker.unused(d) then return reply('REFUSED', 'in_use', uuid) end
  devices[#devices + 1] = d
end
for _, d in ipairs(devices) do broker.forget_device(d, by, why) end
local left = what == 'host' and call('SCARD', prefix .. 'devices:' .. name) or 0
if what == 'host' and left == 0 then broker.forget_host(name, by, why) end
call('ZREM', prefix .. 'drains', what .. ':' .. name)
return reply('FORGOTTEN', #devices, left)
