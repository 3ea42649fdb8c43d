-- release: give a lease back now, or leave the line.
--
-- KEYS[1]  base      gpu:{pool}
-- ARGV[1]  protocol  int
-- ARGV[2]  token     str
-- ARGV[3]  plant     int   1 = an unknown token is refused from now on: its acquire may still be on its way
-- ARGV[4]  owner     str   whose it must be, else it is UNKNOWN; empty or not there = anybody's
-- reply    RELEASED | ALREADY outcome | UNKNOWN | REFUSED reason detail
-- keeps    S6: no grant after a release of the same token came first
-- cost     O((REAP_DEVICES + k) log devices)

local unready = B.open()
if unready then return B.reply('REFUSED', unready, B.schema or '') end
local token, plant = B.token(2), B.int(3, 'plant', 0, 1)
local owner = ARGV[4] and B.word(4, 'owner', '^[%w._:@/-]*$', 128) or ''
if B.bad then return B.reply('REFUSED', 'bad_request', B.bad) end

B.catch_up(token)

local v = redis.call('HMGET', P .. 'record:' .. token, 'state', 'agent', 'devices', 'fence', 'owner')
if not v[1] then
  local outcome = redis.call('GET', P .. 'done:' .. token)
  if outcome then return B.reply('ALREADY', outcome) end
  if plant == 1 then redis.call('SET', P .. 'done:' .. token, 'released', 'PX', TOMBSTONE_MS) end
  return B.reply('UNKNOWN')
end
if owner ~= '' and owner ~= v[5] then return B.reply('UNKNOWN') end
if v[1] == 'cooling' then return B.reply('ALREADY', B.outcome(token)) end
if v[1] ~= 'active' then
  B.waiters().quit(token, 'left')
  return B.reply('RELEASED')
end

local r = { token = token, agent = v[2], devices = v[3] }
B.give_back(r, false)
B.unschedule(token)
B.bury(token, 'released')
B.count_lease(r, 'released')
B.event('released', 'token', token, 'agent', r.agent, 'devices', r.devices, 'fence', v[4])
return B.reply('RELEASED')
