-- release_driver: a host's reporter lets go of its driver for a while, so that a GPU can be reset; or takes it again.
--
-- KEYS[1]  base      gpu:{pool}
-- ARGV[1]  protocol  int
-- ARGV[2]  host      str
-- ARGV[3]  for_ms    int   that long from now; 0 = take it again
-- ARGV[4]  by        str   the operator
-- ARGV[5]  why       str   for the log
-- reply    DRIVER until_ms | REFUSED reason detail
-- keeps    S2: sums and indexes stay exact; the host's next report says that its devices are not well
-- cost     O(REAP_DEVICES log devices)

local unready = begin()
if unready then return reply('REFUSED', unready, ctx.schema or '') end
local host, for_ms = word(2, 'host', '^[%w._ -]+$', 64), int(3, 'for_ms', 0, 86400000)
local by, why = word(4, 'by', '^[^%c]+$', 128), word(5, 'why', '^[^%c]*$', 256)
if ctx.bad then return reply('REFUSED', 'bad_request', ctx.bad) end
local host_key = prefix .. 'host:' .. host
if call('EXISTS', host_key) == 0 then
  return reply('REFUSED', 'host_unknown', broker.nearly(host))
end

catch_up()

-- Without a reporter the host may be forgotten by now
local until_ms = for_ms > 0 and ctx.now + for_ms or 0
if call('EXISTS', host_key) == 1 then
  call('HSET', host_key, 'driver_released_until_ms', until_ms)
end
broker.event(for_ms > 0 and 'driver_released' or 'driver_taken', 'host', host, 'until_ms', until_ms,
  'by', by, 'reason', why)
return reply('DRIVER', until_ms)
