-- renew_many: keep many leases of one process alive, each by its own answer.
--
-- KEYS[1]  base      gpu:{pool}
-- ARGV[1]  protocol  int
-- ARGV[2]  owner     str   whose they must be, else they are UNKNOWN; empty = anybody's
-- ARGV[3+] leases    str   of each lease, up to 256, none twice: token, fence, ttl_ms, as renew takes them
-- reply    OUTCOMES {tag what notice} | REFUSED reason detail
-- keeps    S4: nothing resurrects; S7: never shorter than what the holder was told; S8: what is beyond one script's work has no answer, and is asked for again
-- cost     O((leases + REAP_DEVICES) log devices)

local FIRST, MOST = 3, 256
local LONGEST_MS = 604800000
local MOST_ENDED, MOST_KEYS = 16, 1024   -- devices of ended leases, lease keys: of one script

local unready, last_fence = begin('fence')
if unready then return reply('REFUSED', unready, ctx.schema or '') end
local owner, last = word(2, 'owner', '^[%w._:@/-]*$', 128), #ARGV
if last <= FIRST or (last - FIRST) % 3 ~= 2 or last >= FIRST + 3 * MOST then
  ctx.bad = ctx.bad or 'leases'
end
if ctx.bad then return reply('REFUSED', 'bad_request', ctx.bad) end

local OF_LEASE = { 'state', 'fence', 'devices', 'expires_at_ms', 'hold_until_ms', 'revoked',
  'notice', 'ttl_ms', 'preempt_at_ms', 'wanted', owner ~= '' and 'owner' or nil }

-- Every lease is read before the first write. What matches a record has the form of one.
local rows, others, checked_ttl = {}, {}, ''
for at = FIRST, #ARGV, 3 do
  local token, fence, ttl_ms = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local row = call('HMGET', prefix .. 'record:' .. token, unpack(OF_LEASE))
  if row[1] ~= 'active' or row[2] ~= fence then
    others[#others + 1] = at
    if #token < 16 or #token > 64 or not find(token, '^[%w._-]+$') then ctx.bad = 'token' end
    if #fence > 16 or not find(fence, '^%d*$') then ctx.bad = 'fence' end
  end
  if ttl_ms ~= checked_ttl and ttl_ms ~= '' then
    if ttl_ms ~= '0' then int(at + 2, 'ttl_ms', 1000, LONGEST_MS) end
    checked_ttl = ttl_ms
  end
  if rows[token] then ctx.bad = 'leases' end
  rows[token] = row
end
if ctx.bad then return reply('REFUSED', 'bad_request', ctx.bad) end

-- A fence that the pool cannot know proves lost data: that comes before anything is taken back. A
-- record that matches proves nothing.
for _, at in ipairs(owner == '' and others or {}) do
  local fence = ARGV[at + 1]
  if fence ~= '' and fence + 0 > (ctx.pool.fence or last_fence) + 0 then
    broker.witness(ARGV[at], fence + 0)
  end
end
if ctx.next_deadline < ctx.now then rows = {} end   -- some may be over: they are read anew
catch_up()

-- For ZADD; then of each lease its tag, its new end or its loss's reason, its notices.
local due, said = {}, {}
local ended, keys = 0, 0   -- devices of leases that ended here, lease keys

-- The outcome of a lease that cannot simply go on, and why; nil: it can after all.
local function outcome(token, fence)
  ended = ended + broker.settle_if_over(token)
  local record = prefix .. 'record:' .. token
  local state, held, devices, _, _, _, revoked, whose, _, agent, team, preempt_at_ms, _,
    granted_at_ms, enqueued_ms = broker.read(record)
  if not state then
    local how = broker.ended(token)
    if how then return 'LOST', how end
    return 'UNKNOWN', ''
  end
  if owner ~= '' and owner ~= whose then return 'UNKNOWN', '' end
  if state == 'cooling' then return 'LOST', broker.outcome(token) end
  if state ~= 'active' then return 'UNKNOWN', '' end   -- a waiter polls: only acquire claims
  if fence ~= '' and fence ~= held then return 'LOST', 'superseded' end
  local over = revoked and 'revoked' or preempt_at_ms and preempt_at_ms + 0 <= ctx.now
    and 'preempted'
  if not over then return nil end
  local lease = { token = token, agent = agent, owner = whose, team = team, devices = devices,
    fence = held, granted_at_ms = granted_at_ms, enqueued_ms = enqueued_ms }
  ended = ended + math.max(1, broker.end_lease(lease, over))
  return 'LOST', over
end

-- Set the keys of a lease to that end, which PEXPIRE does for half of what SET costs; what is gone
-- is set anew.
local function prolong(token, fence, devices, left_ms)
  for uuid in string.gmatch(devices, '([^,]+)=') do
    local key = prefix .. 'lease:' .. uuid .. ':' .. token
    if call('PEXPIRE', key, left_ms) == 0 then call('SET', key, fence, 'PX', left_ms) end
    keys = keys + 1
  end
end

for at = FIRST, last, 3 do
  if ended >= MOST_ENDED or keys >= MOST_KEYS then break end
  local token, fence, ttl_ms = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local record, n = prefix .. 'record:' .. token, #said
  local row = rows[token]
  -- A notice may have been withdrawn since, for a waiter that was offered something else
  if not row or row[9] then row = call('HMGET', record, unpack(OF_LEASE)) end
  local held, ends_at_ms, hold_until_ms = row[2], row[4], row[5]
  local tag, why
  if row[1] ~= 'active' or fence ~= held and fence ~= '' or row[6]
    or row[9] and row[9] + 0 <= ctx.now or ends_at_ms + 0 < ctx.now
    or owner ~= '' and row[11] ~= owner then
    tag, why = outcome(token, fence)
  end
  if tag then
    said[n + 1], said[n + 2], said[n + 3] = tag, why, ''
  else
    local granted_ms = row[8] + 0
    ttl_ms, ends_at_ms = ttl_ms ~= '' and ttl_ms + 0 or granted_ms, ends_at_ms + 0
    if ctx.pool.teams > 0 and ttl_ms ~= granted_ms then
      ttl_ms = broker.renewal_ttl(ttl_ms, granted_ms, call('HGET', record, 'team'))
    end
    local expires_at_ms = ctx.now + (ttl_ms > 0 and ttl_ms or FOREVER_MS)
    if hold_until_ms then expires_at_ms = math.min(expires_at_ms, hold_until_ms + 0) end
    if row[9] and row[9] + 0 < expires_at_ms then expires_at_ms = row[9] + 0 end
    if ends_at_ms > expires_at_ms then expires_at_ms = ends_at_ms end
    if expires_at_ms > ctx.now then
      prolong(token, held, row[3], text(expires_at_ms - ctx.now))
    end
    if expires_at_ms < ctx.next_deadline then ctx.next_deadline = expires_at_ms end
    local shown, m = text(expires_at_ms), #due
    call('HSET', record, 'expires_at_ms', shown)
    due[m + 1], due[m + 2] = shown, token
    said[n + 1], said[n + 2], said[n + 3] = 'RENEWED', expires_at_ms,
      broker.told(row[7], row[9], row[10])
  end
end
if due[1] then call('ZADD', DEADLINES, unpack(due)) end
return reply('OUTCOMES', unpack(said))
