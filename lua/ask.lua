-- ask: a waiter asks the holder of a lease to give it up. Declining costs nothing.
--
-- KEYS[1]  base      gpu:{pool}
-- ARGV[1]  protocol  int
-- ARGV[2]  token     str   of the lease
-- ARGV[3]  by        str   token of the waiter
-- ARGV[4]  owner     str   whose the waiter must be, else it is UNKNOWN; empty or not there = anybody's
-- reply    ASKED | DECLINED | UNKNOWN | REFUSED reason detail
-- keeps    S4: nothing resurrects
-- cost     O(REAP_DEVICES log devices)

local unready = begin()
if unready then return reply('REFUSED', unready, ctx.schema or '') end
local token, by = token_at(2), token_at(3)
local owner = ARGV[4] and word(4, 'owner', '^[%w._:@/-]*$', 128) or ''
if ctx.bad then return reply('REFUSED', 'bad_request', ctx.bad) end

catch_up(token)

local w = call('EXISTS', prefix .. 'record:' .. by) == 1 and broker.queue.read(by) or nil
if not w or w.state ~= 'waiting' or owner ~= '' and owner ~= w.owner then
  return reply('UNKNOWN')
end
local record = prefix .. 'record:' .. token
local state, yields, agent, team, devices = unpack(call('HMGET', record, 'state', 'yields',
  'agent', 'team', 'devices'))
if state ~= 'active' then return reply('UNKNOWN') end
if yields ~= '1' then return reply('DECLINED') end
call('HSET', record, 'wanted', text(w.q.memory_mb * w.q.devices) .. ':' .. w.agent)
broker.event('wanted', 'token', token, 'agent', agent, 'devices', devices, 'by', w.agent, 'for', by,
  team_of({ team = team }))
return reply('ASKED')
