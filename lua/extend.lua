-- extend: how long a lease may be held, from now on.
--
-- KEYS[1]  base      gpu:{pool}
-- ARGV[1]  protocol  int
-- ARGV[2]  token     str
-- ARGV[3]  hold_ms   int   from now; 0 = no limit
-- ARGV[4]  by        str   the operator that does it; empty = its holder, within its team's max_hold_s and the time of a loan
-- ARGV[5]  owner     str   whose it must be, else it is UNKNOWN; empty or not there = anybody's
-- reply    EXTENDED hold_until_ms | ALREADY outcome | UNKNOWN | REFUSED reason detail
-- keeps    S4: nothing resurrects; S7: never shorter than what the holder was told
-- cost     O(REAP_DEVICES log devices)

local unready = begin()
if unready then return reply('REFUSED', unready, ctx.schema or '') end
local token, hold_ms = token_at(2), int(3, 'hold_ms', 0, 9999999999999)
local by, owner = word(4, 'by', '^[^%c]*$', 128), ARGV[5] and word(5, 'owner',
  '^[%w._:@/-]*$', 128) or ''
if ctx.bad then return reply('REFUSED', 'bad_request', ctx.bad) end

catch_up(token)

local record = prefix .. 'record:' .. token
local state, agent, team, whose, granted_at_ms, expires_at_ms, devices, fence = unpack(call(
  'HMGET', record, 'state', 'agent', 'team', 'owner', 'granted_at_ms', 'expires_at_ms', 'devices',
  'fence'))
if not state then
  local outcome = broker.ended(token)
  if outcome then return reply('ALREADY', outcome) end
  return reply('UNKNOWN')
end
if owner ~= '' and owner ~= whose then return reply('UNKNOWN') end
if state == 'cooling' then return reply('ALREADY', broker.outcome(token)) end
if state ~= 'active' then return reply('UNKNOWN') end
local of = broker.team_policy(team or DEFAULT_TEAM)
local until_ms = hold_ms > 0 and ctx.now + hold_ms or 0
if of.max_hold_ms > 0 and by == '' then
  local most_ms = granted_at_ms + of.max_hold_ms
  if until_ms == 0 or until_ms > most_ms then
    return reply('REFUSED', 'team_limit', 'max_hold_s=' .. text(of.max_hold_ms / 1000))
  end
end
local lent_ms = by == '' and ctx.pool.waiting > 0 and broker.reservations.lent_until(devices, fence)
if lent_ms and (until_ms == 0 or until_ms > lent_ms) then
  return reply('REFUSED', 'no_capacity', text(lent_ms))
end
if until_ms > 0 then
  until_ms = math.max(until_ms, expires_at_ms + 0)
  call('HSET', record, 'hold_until_ms', text(until_ms))
else
  call('HDEL', record, 'hold_until_ms')
end
if ctx.pool.waiting > 0 then broker.reservations.end_moved(devices) end
broker.event('extended', 'token', token, 'agent', agent, 'devices', devices, 'hold_until_ms',
  text(until_ms), 'by', by ~= '' and by or agent, team_of({ team = team }))
return reply('EXTENDED', until_ms)
