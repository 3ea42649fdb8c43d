-- in_use: a lease for a process that uses a device already, without one. Only acquire needs this
-- file.
--
-- What the process uses is unleased memory of the device. It becomes leased, so nothing else is
-- needed for it; of what is free only the rest is taken, and that not past the queue. The caller
-- says what its process uses: what is not unleased there is not believed.

local in_use = {}
broker.in_use = in_use

-- The device that q's process uses, or nil and why not. `room_mb`: what its agent's caps leave.
function in_use.select(q, uuid, used_mb, room_mb)
  local d = broker.device(uuid)
  if not d or q.host ~= '*' and d.host ~= q.host or q.model ~= '*' and d.model ~= q.model then
    return nil, 'no_capacity'
  end
  local whole = broker.whole(q) or d.one_lease ~= ''
  local taken = d.exclusive ~= '' or whole and (d.leases > 0 or d.withheld_mb > 0)
  if d.state ~= 'ok' or d.drained == '1' or taken then return nil, 'no_capacity' end
  local credit_mb = math.min(used_mb, d.unleased_mb)
  local mb = broker.whole(q) and d.free_mb + credit_mb or q.memory_mb
  local more = mb > credit_mb or whole
  if mb < q.memory_mb or mb > d.free_mb + credit_mb
    or more and (d.reserved_for ~= '' or ctx.pool.waiting > 0 and broker.offers.must_queue(q)) then
    return nil, 'no_capacity'
  end
  if mb > broker.room_on(q, d.model, room_mb) then return nil, 'agent_cap' end
  d.credit_mb = credit_mb
  return { d }
end

-- What its process uses of d is leased from now on.
function in_use.take(d)
  d.unleased_mb = d.unleased_mb - d.credit_mb
  call('HSET', prefix .. 'device:' .. d.uuid, 'unleased_mb', text(d.unleased_mb))
  d.free_mb = d.free_mb + d.credit_mb
end
