-- ledger: who was promised what. A record never expires by itself: were it to vanish, nobody would know what to give back.
--
-- record:<token>   the lease as it stands        done:<token>   how it ended, for late duplicates of its calls
-- agents           <agent> -> MiB held, <agent>#leases -> how many leases, offers included; no field once both are 0;
--                  <agent>#waiters -> how many wait; no field at 0

local TOMBSTONE_MS = '900000'   -- longer than any retry of a call may last

B.agents = {}   -- as this script sees them, by name

-- What the agent holds, MiB and leases, and how many of its requests wait.
function B.agent(agent)
  local a = B.agents[agent]
  if not a then
    local v
    if B.pool.waiting > 0 then
      v = redis.call('HMGET', P .. 'agents', agent, agent .. '#leases', agent .. '#waiters')
    else
      v = redis.call('HMGET', P .. 'agents', agent, agent .. '#leases')
    end
    a = { mb = (v[1] or 0) + 0, leases = (v[2] or 0) + 0, waiters = (v[3] or 0) + 0 }
    B.agents[agent] = a
  end
  return a
end

function B.add_to_agent(agent, mb, leases)
  local a = B.agent(agent)
  a.mb, a.leases, a.held = a.mb + mb, a.leases + leases, true
end

-- Write what has become of the agents that this script touched.
function B.flush_agents()
  for agent, a in pairs(B.agents) do
    local set, gone = {}, {}
    if a.held and a.leases > 0 then set = { agent, text(a.mb), agent .. '#leases', text(a.leases) } end
    if a.held and a.leases == 0 then gone = { agent, agent .. '#leases' } end
    if a.waited and a.waiters > 0 then set[#set + 1], set[#set + 2] = agent .. '#waiters', text(a.waiters) end
    if a.waited and a.waiters == 0 then gone[#gone + 1] = agent .. '#waiters' end
    if set[1] then redis.call('HSET', P .. 'agents', unpack(set)) end
    if gone[1] then redis.call('HDEL', P .. 'agents', unpack(gone)) end
  end
end

-- The lease is over: forget the record, leave its outcome.
function B.bury(token, outcome)
  redis.call('DEL', P .. 'record:' .. token)
  redis.call('SET', P .. 'done:' .. token, outcome, 'PX', TOMBSTONE_MS)
end

-- Take back the devices of the record {token, agent, devices} and its agent's sum. `withhold`: the memory is not free yet,
-- its holder died with it. Returns how many devices that were. All is read before the first write.
function B.give_back(r, withhold)
  local keys, devices, sum = {}, {}, 0
  for uuid, mb in string.gmatch(r.devices, '([^,]+)=(%d+)') do
    keys[#keys + 1] = P .. 'lease:' .. uuid .. ':' .. r.token
    sum = sum + mb
    local d = B.device(uuid)
    if d then
      d.reserved_mb, d.leases = d.reserved_mb - mb, d.leases - 1
      if d.exclusive == r.token then d.exclusive = '' end
      if withhold then d.withheld_mb = d.withheld_mb + mb end
      devices[#devices + 1] = d
    end
  end
  B.agent(r.agent)
  if keys[1] then redis.call('DEL', unpack(keys)) end
  for _, d in ipairs(devices) do
    if withhold then
      redis.call('HSET', P .. 'device:' .. d.uuid, 'withheld_mb', text(d.withheld_mb), 'withheld_at_ms', text(B.now))
    else
      redis.call('SREM', P .. 'holders:' .. d.uuid, r.token)
    end
    d.leased = true
    B.index(d)
  end
  B.add_to_agent(r.agent, -sum, -1)
  if B.pool.waiting > 0 then B.waiters().unpark(r.agent) end
  return #keys
end

-- End the lease {token, agent, devices, fence} without its holder's word. Its memory is withheld for a while, unless on
-- simulated devices: the process that held it may be dead or may still be there. Returns the devices touched.
function B.end_lease(r, outcome)
  local grace_ms = 0
  for uuid in string.gmatch(r.devices, '([^,]+)=') do
    if redis.call('HGET', P .. 'device:' .. uuid, 'simulated') ~= '1' then
      grace_ms = redis.call('HGET', P .. 'pool', 'expiry_grace_s') * 1000
      break
    end
  end
  local touched = B.give_back(r, grace_ms > 0)
  if grace_ms > 0 then
    redis.call('HSET', P .. 'record:' .. r.token, 'state', 'cooling', 'expires_at_ms', text(B.now), 'outcome', outcome)
    B.schedule(r.token, B.now + grace_ms)
  else
    B.unschedule(r.token)
    B.bury(r.token, outcome)
  end
  B.count_lease(r, outcome)
  B.event(outcome, 'token', r.token, 'agent', r.agent, 'devices', r.devices, 'fence', r.fence)
  return touched
end

-- How a lease that is cooling ended.
function B.outcome(token)
  return redis.call('HGET', P .. 'record:' .. token, 'outcome')
end

-- Leases on a GPU and leases on the CPU are counted apart.
function B.count_lease(r, outcome)
  B.count(r.devices == '' and 'cpu_' .. outcome or outcome)
end
