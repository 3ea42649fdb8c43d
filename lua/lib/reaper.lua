-- reaper: the work of time, which most calls need not do: nothing is over.

local REAP_DEVICES = 16

-- The grace is over: what a report has not given back already is free now, but for what its
-- processes have been seen to hold on to.
local function cool(r)
  local touched = 0
  for uuid, mb in string.gmatch(r.devices, '([^,]+)=(%d+)') do
    local key, d = prefix .. 'device:' .. uuid, broker.device(uuid)
    touched = touched + 1
    call('SREM', prefix .. 'holders:' .. uuid, r.token)
    local cooling, cooling_used_mb, raised_mb, cooled_at_ms = unpack(call('HMGET', key, 'cooling',
      'cooling_used_mb', 'raised_mb', 'cooled_at_ms'))
    if d and r.ended_at_ms > (cooled_at_ms or 0) + 0 then
      local unlisted_mb = tonumber(cooling_used_mb or '') or 0
      broker.end_withholding(d, r.token, mb + 0, cooling or '', unlisted_mb, (raised_mb or 0) + 0)
    end
  end
  clear_deadline(r.token)
  broker.bury(r.token, r.outcome)
  broker.event('cooled', 'token', r.token, 'agent', r.agent, 'devices', r.devices, team_of(r))
  return touched
end

-- A host that stopped reporting takes no new leases; those on it run on to their own end.
local function lose_host(host)
  local touched = 0
  for _, uuid in ipairs(call('SMEMBERS', prefix .. 'devices:' .. host)) do
    local d = broker.device(uuid)
    if d and d.host == host then
      if d.reserved_for ~= '' then broker.reservations.cancel_on(d) end
      touched, d.state = touched + 1, 'away'
      call('HSET', prefix .. 'device:' .. uuid, 'state', 'away')
      broker.index(d)
    end
  end
  clear_deadline('host:' .. host)
  broker.event('host_away', 'host', host)
  return touched
end

-- End the present state of one member of `deadlines`. Returns the devices touched, at least 1.
local function settle_member(member)
  local host, touched = string.match(member, '^host:(.*)$'), 0
  if host then
    touched = lose_host(host)
  else
    local state, agent, devices, fence, expires_at_ms, outcome, revoked, owner, team,
      preempt_at_ms, granted_at_ms, enqueued_ms = unpack(call('HMGET',
      prefix .. 'record:' .. member, 'state', 'agent', 'devices', 'fence', 'expires_at_ms',
      'outcome', 'revoked', 'owner', 'team', 'preempt_at_ms', 'granted_at_ms', 'enqueued_ms'))
    local r = { token = member, agent = agent, owner = owner, team = team, devices = devices,
      fence = fence, granted_at_ms = granted_at_ms, enqueued_ms = enqueued_ms,
      ended_at_ms = tonumber(expires_at_ms), outcome = outcome }
    if not state then   -- removed by hand or evicted: nothing is known that could be given back
      clear_deadline(member)
    elseif state == 'active' then
      local preempted = preempt_at_ms and preempt_at_ms + 0 <= ctx.now
      touched = broker.end_lease(r, revoked and 'revoked' or preempted and 'preempted'
        or 'expired')
    elseif state == 'cooling' then
      touched = cool(r)
    else
      touched = broker.queue.end_wait(member, 'timed_out')
    end
  end
  return math.max(1, touched)
end

-- End the present state of a token if that is over. Returns the devices touched, 0 if it is not.
function broker.settle_if_over(token)
  local at = call('ZSCORE', DEADLINES, token)
  return at and broker.over(tonumber(at)) and settle_member(token) or 0
end

-- Take back a lease that is over although its end was not noted in the pool: an older version has
-- scheduled it. Was it one?
function broker.unnoticed(token, ends_at_ms)
  if not broker.over(ends_at_ms) then return false end
  broker.reap(token)
  return true
end

-- First the member that the call names, so that its answer does not hang on a backlog; then
-- whatever is over.
function broker.reap(named)
  local left = REAP_DEVICES
  if named then left = left - broker.settle_if_over(named) end
  while true do
    local first = call('ZRANGE', DEADLINES, '0', '0', 'WITHSCORES')
    ctx.next_deadline = tonumber(first[2]) or NEVER
    if not broker.over(ctx.next_deadline) then return end
    if left <= 0 then
      ctx.more = 1
      return
    end
    left = left - settle_member(first[1])
  end
end
