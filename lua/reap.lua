-- reap: take back what is over, and forget what is gone. Repeat it while `more` is 1.
--
-- KEYS[1]  base      gpu:{pool}
-- ARGV[1]  protocol  int
-- ARGV[2]  seen_ms   int   now_ms of the caller's last reply; 0 = none; a pool behind it has lost data
-- reply    REAPED | REFUSED reason detail
-- keeps    S2: sums and indexes stay exact; L2: a silent death gives its capacity back
-- cost     O((REAP_DEVICES + SWEEP_WORK) log devices)

local unready, v = begin('sweep_ms')
if unready then return reply('REFUSED', unready, S.schema or '') end
local seen_ms = ARGV[2] and int(2, 'seen_ms', 0, 9999999999999) or 0
if S.bad then return reply('REFUSED', 'bad_request', S.bad) end
B.recalls(seen_ms)
S.next_deadline = 0   -- look, whatever was noted
catch_up()
if (v[8] or 0) + 0 <= S.now then B.sweep() end
return reply('REAPED')
