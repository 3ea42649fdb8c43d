-- revoke: an operator ends a lease: at its holder's next renewal, within a minute at the latest, or now.
--
-- KEYS[1]  base      gpu:{pool}
-- ARGV[1]  protocol  int
-- ARGV[2]  token     str
-- ARGV[3]  force     int   1 = now, although its holder still trusts it
-- ARGV[4]  by        str   who does it
-- ARGV[5]  why       str   for the record and the log
-- reply    REVOKED expires_at_ms | ALREADY outcome | UNKNOWN | REFUSED reason detail
-- keeps    S4: nothing resurrects
-- cost     O((REAP_DEVICES + k) log devices)

local LATEST_MS = 60000   -- for a holder that never asks

local unready = begin()
if unready then return reply('REFUSED', unready, ctx.schema or '') end
local token, force = token_at(2), int(3, 'force', 0, 1)
local by, why = word(4, 'by', '^[^%c]+$', 128), word(5, 'why', '^[^%c]*$', 256)
if ctx.bad then return reply('REFUSED', 'bad_request', ctx.bad) end

catch_up(token)

local record = prefix .. 'record:' .. token
local state, agent, devices, fence, ends_at_ms, owner, team, granted_at_ms, enqueued_ms =
  unpack(call('HMGET', record, 'state', 'agent', 'devices', 'fence', 'expires_at_ms', 'owner',
  'team', 'granted_at_ms', 'enqueued_ms'))
if not state then
  local outcome = broker.ended(token)
  if outcome then return reply('ALREADY', outcome) end
  return reply('UNKNOWN')
end
if state == 'cooling' then return reply('ALREADY', broker.outcome(token)) end

broker.event('revoke', 'token', token, 'agent', agent, 'devices', devices, 'by', by, 'reason', why,
  team_of({ team = team }))
if state ~= 'active' then   -- a waiter, or one with an offer: no holder trusts it yet
  broker.queue.end_wait(token, 'revoked')
  return reply('REVOKED', ctx.now)
end
if force == 1 then
  broker.end_lease({ token = token, agent = agent, owner = owner, team = team, devices = devices,
    fence = fence, granted_at_ms = granted_at_ms, enqueued_ms = enqueued_ms }, 'revoked')
  return reply('REVOKED', ctx.now)
end
local expires_at_ms = math.min(tonumber(ends_at_ms), ctx.now + LATEST_MS)
local remaining_ms = expires_at_ms - ctx.now
if remaining_ms > 0 then
  for uuid in string.gmatch(devices, '([^,]+)=') do
    call('SET', prefix .. 'lease:' .. uuid .. ':' .. token, fence, 'PX', text(remaining_ms))
  end
end
call('HSET', record, 'revoked', why ~= '' and why or by, 'expires_at_ms', text(expires_at_ms))
set_deadline(token, expires_at_ms)
if ctx.pool.waiting > 0 then broker.reservations.end_moved(devices) end
return reply('REVOKED', expires_at_ms)
