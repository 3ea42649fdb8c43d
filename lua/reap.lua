-- reap: take back what is over, and nothing else. Repeat it while `more` is 1.
--
-- KEYS[1]  base      gpu:{pool}
-- ARGV[1]  protocol  int
-- reply    REAPED | REFUSED reason detail
-- keeps    S2: sums and indexes stay exact; L2: a silent death gives its capacity back
-- cost     O(REAP_DEVICES log devices)

local unready = begin()
if unready then return reply('REFUSED', unready, S.schema or '') end
S.next_due = 0   -- look, whatever was noted
catch_up()
return reply('REAPED')
