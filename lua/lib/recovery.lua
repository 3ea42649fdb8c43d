-- recovery: a lease that the pool has forgotten, and its holder has not. Only renew needs this
-- file.

-- Recover the lease that its holder had, if its devices have room for it, whatever the policy and
-- the driver say. Younger ones, and any in a pool that has lost nothing, ended long ago: they are
-- unknown. `waits`: the pool knows it as it was before its grant, `whose`: its agent. Returns
-- nil, or what to answer: UNKNOWN, AGAIN, LOST and how it ended.
function broker.recover(token, fence, recovery, waits, whose)
  local lost_us, closed_until_ms, last_fence = unpack(call('HMGET', POOL, 'lost_us',
    'closed_until_ms', 'fence'))
  lost_us = ctx.pool.lost_us or (lost_us or 0) + 0
  closed_until_ms = ctx.pool.closed_until_ms or closed_until_ms + 0
  local granted_us, agent, held = fence + 0, recovery.agent, recovery.held
  if granted_us > lost_us + FAILOVER_MS * 1000 then return 'UNKNOWN' end

  -- The time of the grant on the pool's clock: fences are of the server's, which has stepped back
  -- by the offset since.
  local granted_ms = math.min(ctx.now,
    (granted_us - granted_us % 1000) / 1000 + ctx.now - (ctx.now_us - ctx.now_us % 1000) / 1000)
  local hold_until_ms = recovery.hold_ms > 0 and granted_ms + recovery.hold_ms
  local default_ms = broker.team_policy(recovery.team).max_hold_ms
  if not hold_until_ms and default_ms > 0 then
    -- Past that it was extended, or is older than the limit: it has as long from now on
    hold_until_ms = granted_ms + default_ms
    if hold_until_ms < ctx.now then hold_until_ms = ctx.now + default_ms end
  end
  -- A head for which leases end keeps them noticed until it is known what becomes of the recovery
  local w = waits and broker.queue.read(token)
  local function end_wait()
    if waits then broker.queue.end_wait(token, 'cancelled', true) end
    waits = false
  end
  local function over(outcome)   -- from now on its late calls are told so
    end_wait()
    broker.bury(token, outcome)
    return 'LOST', outcome
  end
  if w and (w.preempts == '' or w.state ~= 'waiting') then end_wait() end
  if hold_until_ms and hold_until_ms < ctx.now then return over('expired') end
  local alone, sum = recovery.alone, 0
  for _, each in ipairs(held) do
    local d, pending = broker.device(each.uuid), false
    local function lacks()
      local room = d and d.exclusive == '' and d.total_mb - d.system_mb - d.leased_mb or 0
      return room < each.mb or alone and d.leases > 0
    end
    if d and waits and lacks() then pending = broker.preemption.give_way(w, d, granted_us) end
    if lacks() then
      -- Its host has yet to report, or the holder of its room to give it up; but a later holder of
      -- the whole device keeps it.
      local younger = d and d.exclusive ~= '' and (call('HGET', prefix .. 'record:' .. d.exclusive,
        'fence') or 0) + 0 > granted_us
      if pending or ctx.now < closed_until_ms and not younger then
        if waits then broker.heartbeat(token, 0, NEVER) end
        return 'AGAIN'
      end
      return over('superseded')
    end
    each.d, sum = d, sum + each.mb
  end
  end_wait()
  local counted = { agent = agent, owner = whose, team = recovery.team }
  broker.parties(counted)

  for _, each in ipairs(held) do
    local d = each.d
    if d.reserved_for ~= '' then broker.reservations.cancel_on(d) end
    d.leased_mb, d.leases, d.leased = d.leased_mb + each.mb, d.leases + 1, true
    if ctx.pool.models then broker.model_sums.count(counted, d.model, each.mb) end
    if alone then d.exclusive = token end
    call('SADD', prefix .. 'holders:' .. d.uuid, token)
    -- Its device was registered anew: what it uses was a stranger's
    if granted_us < ctx.epoch + 0 and d.unleased_mb > 0 then
      d.unleased_mb = math.max(0, d.unleased_mb - each.mb)
      call('HSET', prefix .. 'device:' .. d.uuid, 'unleased_mb', text(d.unleased_mb))
    end
    broker.index(d)
  end
  broker.add_to_parties(counted, sum, 1)
  set_pool('fence', math.max(last_fence + 0, granted_us))
  call('HSET', prefix .. 'record:' .. token, 'state', 'active', 'agent', agent, 'devices',
    recovery.taken, 'fence', fence, 'granted_at_ms',
    text(granted_ms), 'expires_at_ms', text(ctx.now), 'ttl_ms', recovery.ttl_ms, 'request',
    recovery.request,
    'client', recovery.client, 'pid', recovery.pid)
  if hold_until_ms then
    call('HSET', prefix .. 'record:' .. token, 'hold_until_ms', text(hold_until_ms))
  end
  if recovery.team ~= DEFAULT_TEAM then
    call('HSET', prefix .. 'record:' .. token, 'team', recovery.team)
  end
  if whose ~= '' then call('HSET', prefix .. 'record:' .. token, 'owner', whose) end
  broker.count(recovery.taken == '' and 'cpu_recovered' or 'recovered')
  broker.event('recovered', 'token', token, 'agent', agent, 'devices', recovery.taken, 'fence',
    fence, team_of(recovery))
end
