-- ledger: the record of each lease. It never expires by itself: without it nothing could be given
-- back.
--
-- record:<token>   the lease as it stands; how it ended: lib/tombstones.lua
-- agents           <agent> -> MiB held, <agent>#leases -> how many leases, offers included; no
--                  field once both are 0;
--                  <agent>#waiters -> how many wait, <agent>#reserved -> MiB reserved for them; no
--                  field at 0

-- What a repeated acquire needs of a record.
function broker.asked(record)
  local state, agent, request, devices, fence, expires_at_ms, reason, queue_id, wait_until_ms,
    owner, reserved = unpack(call('HMGET', record, 'state', 'agent', 'request', 'devices', 'fence',
    'expires_at_ms', 'reason', 'queue_id', 'wait_until_ms', 'owner', 'reserved'))
  return {
    state = state, agent = agent, request = request, devices = devices, fence = fence,
    expires_at_ms = tonumber(expires_at_ms), reason = reason, queue_id = queue_id,
    wait_until_ms = wait_until_ms, owner = owner, reserved = reserved,
  }
end

-- What renew and release need of it: state, fence, devices, expires_at_ms, ttl_ms, hold_until_ms,
-- revoked, owner, notice, agent. Once as the straight path has read it for this call.
function broker.read(record)
  local read = ctx.read
  if read then
    ctx.read = nil
    return unpack(read, 1, 10)
  end
  return unpack(call('HMGET', record, 'state', 'fence', 'devices', 'expires_at_ms', 'ttl_ms',
    'hold_until_ms', 'revoked', 'owner', 'notice', 'agent'))
end

-- The agent's sums: MiB and leases that it holds, its waiting requests, MiB reserved for them.
function broker.agent(agent)
  local a = ctx.agents[agent]
  if a then return a end
  local sums
  if ctx.pool.waiting > 0 then
    sums = call('HMGET', prefix .. 'agents', agent, agent .. '#leases', agent .. '#waiters',
      agent .. '#reserved')
  else
    sums = call('HMGET', prefix .. 'agents', agent, agent .. '#leases')
  end
  local mb, leases, waiters, reserved_mb = unpack(sums)
  a = { mb = (mb or 0) + 0, leases = (leases or 0) + 0, waiters = (waiters or 0) + 0,
    reserved_mb = (reserved_mb or 0) + 0 }
  ctx.agents[agent] = a
  return a
end

function broker.add_to_agent(agent, mb, leases)
  local a = broker.agent(agent)
  a.mb, a.leases, a.held = a.mb + mb, a.leases + leases, true
end

function broker.count_reserved(agent, mb)
  local a = broker.agent(agent)
  if mb ~= 0 then a.reserved_mb, a.reserved = math.max(0, a.reserved_mb + mb), true end
end

-- Write what has become of the agents that this script touched.
function broker.flush_agents()
  local key = prefix .. 'agents'
  for agent, a in pairs(ctx.agents) do
    if a.held and a.leases > 0 then
      call('HSET', key, agent, text(a.mb), agent .. '#leases', text(a.leases))
    elseif a.held then
      call('HDEL', key, agent, agent .. '#leases')
    end
    if a.waited and a.waiters > 0 then
      call('HSET', key, agent .. '#waiters', text(a.waiters))
    elseif a.waited then
      call('HDEL', key, agent .. '#waiters', agent .. '#reserved')
    end
    if a.waited and a.waiters == 0 then
      a.reserved = false
    elseif a.reserved and a.reserved_mb > 0 then
      call('HSET', key, agent .. '#reserved', text(a.reserved_mb))
    elseif a.reserved then
      call('HDEL', key, agent .. '#reserved')
    end
  end
end
