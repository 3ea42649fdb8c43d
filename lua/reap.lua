-- reap: take back what is over, and nothing else. Repeat it while `more` is 1.
--
-- KEYS[1]  base      gpu:{pool}
-- ARGV[1]  protocol  int
-- reply    REAPED | REFUSED reason detail
-- keeps    S2: sums and indexes stay exact; L2: a silent death gives its capacity back
-- cost     O(REAP_DEVICES log devices)

local unready = B.open()
if unready then return B.reply('REFUSED', unready, B.schema or '') end
B.catch_up()
return B.reply('REAPED')
