-- recovery: a lease that the pool has forgotten, and its holder has not. Only renew needs this file.

-- Recover the lease that its holder had, if its devices have room for it, whatever the policy and the driver say. Younger
-- ones, and any in a pool that has lost nothing, ended long ago: they are unknown. `waits`: the pool knows it as it was before
-- its grant, `whose`: and for whom. Returns nil, or what to answer: UNKNOWN, AGAIN, LOST and how it ended.
function B.recover(token, fence, recovery, waits, whose)
  local v, pool = call('HMGET', POOL, 'lost_us', 'closed_until_ms', 'fence'), S.pool
  local lost_us, closed_until_ms = pool.lost_us or (v[1] or 0) + 0, pool.closed_until_ms or v[2] + 0
  local granted_us, agent, held = fence + 0, recovery.agent, recovery.held
  if granted_us > lost_us + FAILOVER_MS * 1000 then return 'UNKNOWN' end

  -- The time of the grant on the pool's clock: fences are of the server's, which has stepped back
  -- by the offset since.
  local granted_ms = math.min(S.now, (granted_us - granted_us % 1000) / 1000 + S.now - (S.now_us - S.now_us % 1000) / 1000)
  local hold_until_ms = recovery.hold_ms > 0 and granted_ms + recovery.hold_ms
  local function over(outcome)   -- from now on its late calls are told so
    B.bury(token, outcome)
    return 'LOST', outcome
  end
  if waits then B.queue.end_wait(token, 'cancelled', true) end
  if hold_until_ms and hold_until_ms < S.now then return over('expired') end
  local alone, sum = recovery.alone, 0
  for _, each in ipairs(held) do
    local d = B.device(each.uuid)
    local room = d and d.exclusive == '' and d.total_mb - d.system_mb - d.leased_mb or 0
    if room < each.mb or alone and d.leases > 0 then
      -- Its host has yet to report, or the holder of its room to give it up; but a later holder of
      -- the whole device keeps it.
      local younger = d and d.exclusive ~= '' and (call('HGET', P .. 'record:' .. d.exclusive, 'fence') or 0) + 0 > granted_us
      if S.now < closed_until_ms and not younger then return 'AGAIN' end
      return over('superseded')
    end
    each.d, sum = d, sum + each.mb
  end
  B.agent(agent)

  for _, each in ipairs(held) do
    local d = each.d
    if d.kept_for ~= '' then B.reservations.cancel_on(d) end
    d.leased_mb, d.leases, d.leased = d.leased_mb + each.mb, d.leases + 1, true
    if alone then d.exclusive = token end
    call('SADD', P .. 'holders:' .. d.uuid, token)
    if granted_us < S.epoch + 0 and d.unleased_mb > 0 then   -- its device was registered anew: what it uses was a stranger's
      d.unleased_mb = math.max(0, d.unleased_mb - each.mb)
      call('HSET', P .. 'device:' .. d.uuid, 'unleased_mb', text(d.unleased_mb))
    end
    B.index(d)
  end
  B.add_to_agent(agent, sum, 1)
  set_pool('fence', math.max(v[3] + 0, granted_us))
  call('HSET', P .. 'record:' .. token, 'state', 'active', 'agent', agent, 'devices', recovery.taken, 'fence', fence, 'granted_at_ms',
    text(granted_ms), 'expires_at_ms', text(S.now), 'ttl_ms', recovery.ttl_ms, 'request', recovery.request,
    'client', recovery.client, 'pid', recovery.pid)
  if hold_until_ms then call('HSET', P .. 'record:' .. token, 'hold_until_ms', text(hold_until_ms)) end
  if whose ~= '' then call('HSET', P .. 'record:' .. token, 'owner', whose) end
  B.count(recovery.taken == '' and 'cpu_recovered' or 'recovered')
  B.event('recovered', 'token', token, 'agent', agent, 'devices', recovery.taken, 'fence', fence)
end
