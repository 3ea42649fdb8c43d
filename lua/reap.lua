-- reap: take back what is over, and forget what is gone. Repeat it while `more` is 1.
--
-- KEYS[1]  base      gpu:{pool}
-- ARGV[1]  protocol  int
-- ARGV[2]  seen_ms   int   now_ms of the caller's last reply; 0 = none; a pool behind it has lost data
-- reply    REAPED | REFUSED reason detail
-- keeps    S2: sums and indexes stay exact, those of usage too; L2: a silent death gives its capacity back
-- cost     O((REAP_DEVICES + SWEEP_WORK) log devices), and MOST_FOLDED ended leases

-- A lease's hosts have had the time to say the last of it
local REPORTED_MS = 12000

local unready, sweep_ms = begin('sweep_ms')
if unready then return reply('REFUSED', unready, ctx.schema or '') end
local seen_ms = ARGV[2] and int(2, 'seen_ms', 0, 9999999999999) or 0
if ctx.bad then return reply('REFUSED', 'bad_request', ctx.bad) end
broker.recalls(seen_ms)
ctx.next_deadline = 0   -- look, whatever was noted
catch_up()
if (sweep_ms or 0) + 0 <= ctx.now then broker.sweep() end
if ctx.more == 0 and broker.fold(ctx.now - REPORTED_MS) then ctx.more = 1 end
return reply('REAPED')
