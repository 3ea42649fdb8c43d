-- release: give a lease back now, or cancel a wait.
--
-- KEYS[1]  base      gpu:{pool}
-- ARGV[1]  protocol  int
-- ARGV[2]  token     str
-- ARGV[3]  plant     int   1 = an unknown token is refused from now on: its acquire may still be on its way
-- ARGV[4]  owner     str   whose it must be, else it is UNKNOWN; empty or not there = anybody's
-- reply    RELEASED | ALREADY outcome | UNKNOWN | REFUSED reason detail
-- keeps    S6: no grant after a release of the same token came first
-- cost     O((REAP_DEVICES + k) log devices)

local unready, released_before = begin('released')
if unready then return reply('REFUSED', unready, ctx.schema or '') end
ctx.counts.released = (released_before or 0) + 0
local token, plant = token_at(2), int(3, 'plant', 0, 1)
local owner = ARGV[4] and word(4, 'owner', '^[%w._:@/-]*$', 128) or ''
if ctx.bad then return reply('REFUSED', 'bad_request', ctx.bad) end

catch_up(token)

local state, fence, devices, _, _, _, _, whose, _, agent, team, preempt_at_ms, _, granted_at_ms,
  enqueued_ms = broker.read(prefix .. 'record:' .. token)
if not state then
  local outcome = broker.ended(token)
  if outcome then return reply('ALREADY', outcome) end
  if plant == 1 then broker.leave_outcome(token, 'released') end
  return reply('UNKNOWN')
end
if owner ~= '' and owner ~= whose then return reply('UNKNOWN') end
if state == 'cooling' then return reply('ALREADY', broker.outcome(token)) end
if state ~= 'active' then
  broker.queue.end_wait(token, 'cancelled')
  return reply('RELEASED')
end

-- A holder that obeys its notice early is preempted all the same: its job is protected for longer
if preempt_at_ms then broker.preemption.remember(token) end
broker.close_lease({ token = token, agent = agent, owner = whose, team = team, devices = devices,
  fence = fence, granted_at_ms = granted_at_ms, enqueued_ms = enqueued_ms }, 'released')
return reply('RELEASED')
