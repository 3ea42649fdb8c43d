-- renew: keep a lease alive, if the caller still holds it.
--
-- KEYS[1]  base      gpu:{pool}
-- ARGV[1]  protocol  int
-- ARGV[2]  token     str
-- ARGV[3]  fence     int   by acquire; empty = not compared; one the pool cannot know proves lost data
-- ARGV[4]  ttl_ms    int   from now, no longer than its team may ask for; 0 = no expiry; empty = as at the grant
-- ARGV[5]  owner     str   whose it must be, else it is UNKNOWN; empty or not there = anybody's; whose it is from now on, when recovered
-- ARGV[6]  epoch     str   of the grant; this and the rest are said when it was UNKNOWN just now: the pool may recover it
-- ARGV[7]  agent     str   as granted
-- ARGV[8]  devices   str   uuid=mb,... as granted; empty on the CPU
-- ARGV[9]  request   str   arguments 4 to 13 of its acquire, joined by |
-- ARGV[10] client    str   as in its acquire
-- ARGV[11] pid       str   as in its acquire
-- ARGV[12] team     str   as in its acquire; empty or not there = default
-- reply    RENEWED expires_at_ms remaining_ms notice | REFUSED reason detail | LOST reason | UNKNOWN | AGAIN
-- keeps    S1: recovered only into room that is there; S4: nothing resurrects; S7: never shorter than what the holder was told
-- cost     O((REAP_DEVICES + k) log devices)

local MOST_DEVICES, LONGEST_MS, A_DAY_US = 64, 604800000, 86400000000

local unready, last_fence = begin('fence')
if unready then return reply('REFUSED', unready, ctx.schema or '') end
local token, fence = token_at(2), word(3, 'fence', '^%d*$', 16)
local ttl_ms = ARGV[4] ~= '' and int(4, 'ttl_ms', 0, LONGEST_MS)
local owner = ARGV[5] and word(5, 'owner', '^[%w._:@/-]*$', 128) or ''
if ttl_ms and ttl_ms > 0 and ttl_ms < 1000 then ctx.bad = ctx.bad or 'ttl_ms' end
local epoch = ARGV[6] and word(6, 'epoch', '^%d+$', 16)

-- What the holder says of its lease, by its form: nothing of it is written, or believed, before all
-- of it has one.
local recovery = nil
if epoch then
  recovery = { agent = word(7, 'agent', '^[%w._:@/-]+$', 128), client = word(10, 'client',
    '^[%w._-]*$', 64),
    pid = word(11, 'pid', '^[%d:]*$', 40), taken = ARGV[8], held = {},
    team = (ARGV[12] or '') ~= '' and word(12, 'team', '^[%w._-]+$', 64) or DEFAULT_TEAM }
  recovery.request = word(9, 'request', '^%d+|%d+|[01]|%d+|%d+|%d|[^|%c]+|[^|%c]+|%l+|%l+$', 256)
  local numbers = { string.match(recovery.request, '^(%d+)|(%d+)|(%d)|(%d+)|(%d+)|') }
  for i = 1, #numbers do
    if #numbers[i] > 13 then ctx.bad = ctx.bad or 'request' end
  end
  recovery.alone = numbers[3] == '1' or numbers[2] ~= '1'
  recovery.ttl_ms, recovery.hold_ms = numbers[4], (numbers[5] or 0) + 0
  local asked_ms = (recovery.ttl_ms or 0) + 0
  if asked_ms > LONGEST_MS or asked_ms > 0 and asked_ms < 1000 then
    ctx.bad = ctx.bad or 'request'
  end
  if fence == '' or fence + 0 > ctx.now_us + A_DAY_US then ctx.bad = ctx.bad or 'fence' end
  local named = {}
  for part in string.gmatch(list(8, 'devices', '^[%w._:/,=-]*$', 6400), '[^,]+') do
    local uuid, mb = string.match(part, '^([^=]+)=(%d+)$')
    if not uuid or #mb > 13 or named[uuid] then
      ctx.bad = ctx.bad or 'devices'
    else
      recovery.held[#recovery.held + 1], named[uuid] = { uuid = uuid, mb = mb + 0 }, true
    end
  end
  if #recovery.held > MOST_DEVICES then ctx.bad = ctx.bad or 'devices' end
end
if ctx.bad then return reply('REFUSED', 'bad_request', ctx.bad) end

if fence ~= '' and owner == '' and fence + 0 > last_fence + 0 then
  broker.witness(token, fence + 0)
end
if recovery then broker.remembered(epoch) end
catch_up(token)

local record = prefix .. 'record:' .. token
local state, held, devices, ends_at_ms, own_ttl_ms, hold_until_ms, revoked, whose, notice, agent,
  team, preempt_at_ms, wanted, granted_at_ms, enqueued_ms = broker.read(record)
if state == 'active' and ends_at_ms + 0 < ctx.now and broker.unnoticed(token, ends_at_ms + 0) then
  state, held, devices, ends_at_ms, own_ttl_ms, hold_until_ms, revoked, whose, notice, agent, team,
    preempt_at_ms, wanted = broker.read(record)
end
local waits = state == 'waiting' or state == 'offered'
if owner ~= '' and state and owner ~= whose then return reply('UNKNOWN') end
if not state or waits and recovery then
  local outcome = not waits and broker.ended(token)
  if outcome then return reply('LOST', outcome) end
  if not recovery then return reply('UNKNOWN') end
  local refused, how = broker.recover(token, fence, recovery, waits, whose or owner)
  if refused == 'UNKNOWN' then return reply('UNKNOWN') end
  if refused == 'AGAIN' then return reply('AGAIN') end
  if refused then return reply('LOST', how) end
  state, held, devices, ends_at_ms, own_ttl_ms, hold_until_ms, revoked, whose, notice, agent, team,
    preempt_at_ms, wanted = broker.read(record)
end
if state == 'cooling' then return reply('LOST', broker.outcome(token)) end
if state ~= 'active' then return reply('UNKNOWN') end   -- a waiter polls: only acquire claims
if fence ~= '' and fence ~= held then return reply('LOST', 'superseded') end

-- The holder asks, so it knows from now on: no reason to wait for its end
local over = revoked and 'revoked' or preempt_at_ms and preempt_at_ms + 0 <= ctx.now and 'preempted'
if over then
  broker.end_lease({ token = token, agent = agent, owner = whose, team = team, devices = devices,
    fence = held, granted_at_ms = granted_at_ms, enqueued_ms = enqueued_ms }, over)
  return reply('LOST', over)
end

own_ttl_ms = own_ttl_ms + 0
ttl_ms = ttl_ms or own_ttl_ms
if ctx.pool.teams > 0 and ttl_ms ~= own_ttl_ms then
  ttl_ms = broker.renewal_ttl(ttl_ms, own_ttl_ms, team)
end
local expires_at_ms = ctx.now + (ttl_ms > 0 and ttl_ms or FOREVER_MS)
if hold_until_ms then expires_at_ms = math.min(expires_at_ms, hold_until_ms + 0) end
if preempt_at_ms then expires_at_ms = math.min(expires_at_ms, preempt_at_ms + 0) end
expires_at_ms = math.max(expires_at_ms, ends_at_ms + 0)
local remaining_ms = expires_at_ms - ctx.now
if remaining_ms > 0 then   -- SET, not PEXPIRE, which is silent about a key that is gone
  for uuid in string.gmatch(devices, '([^,]+)=') do
    call('SET', prefix .. 'lease:' .. uuid .. ':' .. token, held, 'PX', text(remaining_ms))
  end
end
call('HSET', record, 'expires_at_ms', text(expires_at_ms))
set_deadline(token, expires_at_ms)
return reply('RENEWED', expires_at_ms, math.max(0, remaining_ms),
  broker.told(notice, preempt_at_ms, wanted))
