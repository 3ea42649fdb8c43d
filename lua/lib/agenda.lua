-- agenda: what time does. One zset, `due`, holds the end of everything's present state: token -> expiry of an active lease,
-- end of a cooling one's grace, by when a waiter must have polled or claimed its offer; host:<h> -> the time by which that
-- host must have reported again.
--
-- Nothing waits for Redis to say that a key expired (it may say so minutes late): every verb looks at the first of the
-- agenda, takes back what is over until REAP_DEVICES devices are touched (the last member is finished whatever it has), and
-- says in `more` whether something is left.

local REAP_DEVICES = 16
local WORK_READ = '16'   -- one more than the work of one script

B.work = {}     -- what the line must look at: entry -> rank; see lib/line.lua
B.stored = {}   -- those of them that are in `freed`: entry -> rank there
B.moved = {}    -- members of the agenda whose time this script wrote, and when it is; false: taken away

function B.schedule(member, at)
  B.moved[member] = at
  redis.call('ZADD', P .. 'due', text(at), member)
end

function B.unschedule(member)
  B.moved[member] = false
  redis.call('ZREM', P .. 'due', member)
end

-- Every reply: its tag, now_ms, next_due_ms (when the agenda's first is due, or ''), epoch, more, then what the tag carries.
-- What this script freed is handed on before it answers.
function B.reply(tag, ...)
  if next(B.work) then B.line().serve() end
  B.flush()
  B.flush_agents()
  local due, moved, first = B.due or {}, B.moved, nil
  if due[1] and moved[due[1]] == nil then
    first = tonumber(due[2])
  elseif due[3] and moved[due[3]] == nil then
    first = tonumber(due[4])
  elseif due[3] then
    first = tonumber(redis.call('ZRANGE', P .. 'due', '0', '0', 'WITHSCORES')[2])
  end
  for _, at in pairs(moved) do
    if at and (not first or at < first) then first = at end
  end
  if B.run_id then B.changes[#B.changes + 1], B.changes[#B.changes + 2] = 'run_id', B.run_id end
  if B.changes[1] then redis.call('HSET', P .. 'pool', unpack(B.changes)) end
  if B.closing then B.event('closed', 'until_ms', text(B.closing)) end
  return { tag, B.now, first or '', B.epoch or '', B.more, ... }
end

-- The work of time, made only when something is due: most calls find nothing and need not pay for these functions.
function B.reaper()
  -- The grace is over: what a report has not given back already is free now, but for what its processes have been seen to
  -- hold on to.
  local function cool(r)
    local touched = 0
    for uuid, mb in string.gmatch(r.devices, '([^,]+)=(%d+)') do
      local key, d = P .. 'device:' .. uuid, B.device(uuid)
      touched = touched + 1
      redis.call('SREM', P .. 'holders:' .. uuid, r.token)
      local v = redis.call('HMGET', key, 'cooled_at_ms', 'lingering_mb')
      if d and r.ended_at_ms > (v[1] or 0) + 0 then
        local lingering_mb = tonumber(v[2] or '') or 0
        local stays_mb = math.min(mb + 0, lingering_mb)
        d.withheld_mb, d.foreign_mb = d.withheld_mb - mb, d.foreign_mb + stays_mb
        redis.call('HSET', key, 'withheld_mb', text(d.withheld_mb), 'foreign_mb', text(d.foreign_mb), 'lingering_mb',
          text(lingering_mb - stays_mb))
        B.index(d)
      end
    end
    B.unschedule(r.token)
    B.bury(r.token, r.outcome)
    B.event('cooled', 'token', r.token, 'agent', r.agent, 'devices', r.devices)
    return touched
  end

  -- A host that stopped reporting takes no new leases; those on it run on to their own end.
  local function lose_host(host)
    local touched = 0
    for _, uuid in ipairs(redis.call('SMEMBERS', P .. 'devices:' .. host)) do
      local d = B.device(uuid)
      if d and d.host == host then
        if d.kept_for ~= '' then B.waiters().unkept(d) end
        touched, d.state = touched + 1, 'away'
        redis.call('HSET', P .. 'device:' .. uuid, 'state', 'away')
        B.index(d)
      end
    end
    B.unschedule('host:' .. host)
    B.event('host_away', 'host', host)
    return touched
  end

  -- End the present state of one member of the agenda. Returns the devices touched, at least 1.
  local function settle_member(member)
    local host, touched = string.match(member, '^host:(.*)$'), 0
    if host then
      touched = lose_host(host)
    else
      local v = redis.call('HMGET', P .. 'record:' .. member, 'state', 'agent', 'devices', 'fence', 'expires_at_ms',
        'outcome', 'revoked')
      local r = { token = member, agent = v[2], devices = v[3], fence = v[4], ended_at_ms = tonumber(v[5]), outcome = v[6] }
      if not v[1] then   -- removed by hand or evicted: nothing is known that could be given back
        B.unschedule(member)
      elseif v[1] == 'active' then
        touched = B.end_lease(r, v[7] and 'revoked' or 'expired')
      elseif v[1] == 'cooling' then
        touched = cool(r)
      else
        touched = B.waiters().quit(member, 'lapsed')
      end
    end
    return math.max(1, touched)
  end

  -- First the member that the call names, so that its answer does not hang on a backlog; then whatever is over.
  return function(named)
    local left = REAP_DEVICES
    local at = named and redis.call('ZSCORE', P .. 'due', named)
    if at and B.over(tonumber(at)) then left = left - settle_member(named) end
    while true do
      local due = redis.call('ZRANGE', P .. 'due', '0', '1', 'WITHSCORES')
      B.due, B.moved = due, {}
      if not due[1] or not B.over(tonumber(due[2])) then return end
      if left <= 0 then
        B.more = 1
        return
      end
      left = left - settle_member(due[1])
    end
  end
end

-- Bring the pool up to the present before a verb decides anything: what is over comes back, and goes to who waits for it.
function B.catch_up(named)
  local due = redis.call('ZRANGE', P .. 'due', '0', '1', 'WITHSCORES')
  B.due = due
  if due[1] and due[2] + 0 < B.now then B.reaper()(named) end
  if B.pool.waiting > 0 then
    local freed = redis.call('ZRANGE', P .. 'freed', '0', WORK_READ, 'WITHSCORES')
    for i = 1, #freed, 2 do
      local entry, rank = freed[i], freed[i + 1] + 0
      B.work[entry], B.stored[entry] = B.work[entry] or rank, rank
    end
    B.caught_up = true   -- from here on `stored` tells what is in `freed`
    if next(B.work) then B.line().serve() end
  end
end
