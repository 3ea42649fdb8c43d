-- renew: keep a lease alive, if the caller still holds it.
--
-- KEYS[1]  base      gpu:{pool}
-- ARGV[1]  protocol  int
-- ARGV[2]  token     str
-- ARGV[3]  fence     int   as handed out by acquire; empty = not compared
-- ARGV[4]  ttl_ms    int   from now; 0 = no expiry; empty = as at the grant
-- ARGV[5]  owner     str   whose it must be, else it is UNKNOWN; empty or not there = anybody's
-- reply    RENEWED expires_at_ms remaining_ms | REFUSED reason detail | LOST reason | UNKNOWN
-- keeps    S4: nothing resurrects; S7: never shorter than what the holder was told
-- cost     O((REAP_DEVICES + k) log devices)

local unready = B.open()
if unready then return B.reply('REFUSED', unready, '') end
local token, fence = B.token(2), B.word(3, 'fence', '^%d*$', 16)
local ttl_ms = ARGV[4] ~= '' and B.int(4, 'ttl_ms', 0, 604800000)
local owner = ARGV[5] and B.word(5, 'owner', '^[%w._:@/-]*$', 128) or ''
if ttl_ms and ttl_ms > 0 and ttl_ms < 1000 then B.bad = B.bad or 'ttl_ms' end
if B.bad then return B.reply('REFUSED', 'bad_request', B.bad) end

B.catch_up(token)

local record = P .. 'record:' .. token
local v = redis.call('HMGET', record, 'state', 'fence', 'devices', 'expires_at_ms', 'ttl_ms', 'hold_until_ms',
  'revoked', 'owner')
local state, held, ends_at_ms, hold_until_ms = v[1], v[2], tonumber(v[4]), tonumber(v[6])
if not state then
  local outcome = redis.call('GET', P .. 'done:' .. token)
  if outcome then return B.reply('LOST', outcome) end
  return B.reply('UNKNOWN')
end
if owner ~= '' and owner ~= v[8] then return B.reply('UNKNOWN') end
if state == 'cooling' then return B.reply('LOST', B.outcome(token)) end
if state ~= 'active' then return B.reply('UNKNOWN') end   -- who waits polls: only acquire claims
if fence ~= '' and fence ~= held then return B.reply('LOST', 'superseded') end

if v[7] then   -- the holder asks, so it knows from now on: no reason to wait for its end
  local agent = redis.call('HGET', record, 'agent')
  B.end_lease({ token = token, agent = agent, devices = v[3], fence = held }, 'revoked')
  return B.reply('LOST', 'revoked')
end

ttl_ms = ttl_ms or tonumber(v[5])
local expires_at_ms = B.now + (ttl_ms > 0 and ttl_ms or FOREVER_MS)
if hold_until_ms then expires_at_ms = math.min(expires_at_ms, hold_until_ms) end
expires_at_ms = math.max(expires_at_ms, ends_at_ms)
local remaining_ms = expires_at_ms - B.now
if remaining_ms > 0 then   -- SET, not PEXPIRE, which is silent about a key that is gone
  for uuid in string.gmatch(v[3], '([^,]+)=') do
    redis.call('SET', P .. 'lease:' .. uuid .. ':' .. token, held, 'PX', text(remaining_ms))
  end
end
redis.call('HSET', record, 'expires_at_ms', text(expires_at_ms))
B.schedule(token, expires_at_ms)
return B.reply('RENEWED', expires_at_ms, math.max(0, remaining_ms))
