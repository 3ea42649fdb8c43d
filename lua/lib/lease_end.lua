-- lease_end: the end of a lease, the memory that it gives back, and the line about it for the sums
-- of usage.lua.

local MOST_ENDED = 1024   -- lines; one more, and its call folds some of them
local MOST_PARTS = 256   -- that are remembered as texts
local parts, part_count = {}, 0

-- It is over: forget the record, leave its outcome.
function broker.bury(token, outcome)
  call('DEL', prefix .. 'record:' .. token)
  broker.leave_outcome(token, outcome)
end

-- The part of a device that a lease of so much has; all of it, where no other may be there.
function broker.part_of(d, mb, token)
  local total_mb = d.total_mb - d.system_mb
  return (d.exclusive == token or mb + 0 >= total_mb) and 1 or mb / total_mb
end

-- When its right ended: a lease that expired is noticed later.
local function ended_ms(r)
  return r.ended_at_ms and r.ended_at_ms < ctx.now and r.ended_at_ms or ctx.now
end

-- Devices by the part of each that a lease had, as text: the same come again.
local function part_text(gpus)
  local known = parts[gpus]
  if not known then
    known = format('%.9g', gpus)
    if part_count == MOST_PARTS then parts, part_count = {}, 0 end
    parts[gpus], part_count = known, part_count + 1
  end
  return known
end

-- Append the line of a lease that ends: who had what, from when until when. Each word is there, in
-- this order, perhaps empty: usage.lua reads it. What many lines have in common is together.
-- `ended`: when, as text. `gpus`: devices by the part of each that it had. `where`: host|model,
-- blanks included.
function broker.note_end(r, outcome, ended, gpus, where)
  local waited_ms = r.enqueued_ms and text(r.granted_at_ms - r.enqueued_ms) or ''
  local lines = call('RPUSH', prefix .. 'ended', 'token=' .. r.token .. ' granted_at_ms='
    .. r.granted_at_ms .. ' ended_at_ms=' .. ended .. ' waited_ms=' .. waited_ms
    .. ' outcome=' .. outcome .. ' agent=' .. r.agent .. ' team=' .. (r.team or DEFAULT_TEAM)
    .. ' owner=' .. (r.owner or '') .. ' devices=' .. r.devices .. ' gpus='
    .. part_text(gpus) .. ' on ' .. where)
  if lines > MOST_ENDED then broker.fold(ctx.now) end
end

-- Take back the devices of the record {token, agent, owner, team, devices} and its parties' sums.
-- `withhold`: the memory is not free yet, its holder died with it. `record`: its key, when it goes
-- too. Returns how many devices that were; r has then what note_end() needs of them. All is read
-- before the first write.
function broker.deallocate(r, withhold, record)
  local keys, devices, touched, sum, removed = { record }, {}, 0, 0, {}
  r.gpus, r.where = 0, r.devices == '' and '-|cpu' or '-|-'
  for uuid, mb in string.gmatch(r.devices, '([^,]+)=(%d+)') do
    keys[#keys + 1] = prefix .. 'lease:' .. uuid .. ':' .. r.token
    touched, sum = touched + 1, sum + mb
    local d = broker.device(uuid)
    if d then
      d.leased_mb, d.leases = d.leased_mb - mb, d.leases - 1
      if ctx.pool.models then broker.model_sums.count(r, d.model, -mb) end
      r.gpus, r.where = r.gpus + broker.part_of(d, mb, r.token), d.host .. '|' .. d.model
      if d.exclusive == r.token then d.exclusive = '' end
      if withhold then d.withheld_mb = d.withheld_mb + mb end
      if d.reserved_for ~= '' and r.fence then broker.reservations.progress(d, r.fence) end
      devices[#devices + 1] = d
    else
      removed[#removed + 1] = uuid   -- by hand
    end
  end
  broker.add_to_parties(r, -sum, -1)
  if keys[1] then call('DEL', unpack(keys)) end
  for i = 1, #removed do call('SREM', prefix .. 'holders:' .. removed[i], r.token) end
  for i = 1, #devices do
    local d = devices[i]
    if withhold then
      call('HSET', prefix .. 'device:' .. d.uuid, 'withheld_mb', text(d.withheld_mb),
        'withheld_at_ms', text(ctx.now))
    else
      call('SREM', prefix .. 'holders:' .. d.uuid, r.token)
    end
    d.leased = true
    broker.index(d)
  end
  if ctx.pool.waiting > 0 then broker.queue.recheck_capped(r) end
  return touched
end

-- Leases on a GPU and leases on the CPU are counted apart. What is lent of a reservation on its
-- devices is lent by the ends of those that are left.
local function tell(r, outcome)
  if ctx.pool.waiting > 0 then broker.reservations.end_moved(r.devices) end
  broker.count(r.devices == '' and 'cpu_' .. outcome or outcome)
  local ended = text(ended_ms(r))
  broker.note_end(r, outcome, ended, r.gpus, r.where)
  broker.event(outcome, 'token', r.token, 'agent', r.agent, 'devices', r.devices, 'fence', r.fence,
    'ended_at_ms', ended, team_of(r))
end

-- End the lease {token, agent, owner, team, devices, fence, granted_at_ms, enqueued_ms}: what it
-- had is free. Returns the devices touched.
function broker.close_lease(r, outcome)
  local touched = broker.deallocate(r, false, prefix .. 'record:' .. r.token)
  clear_deadline(r.token)
  broker.leave_outcome(r.token, outcome)
  tell(r, outcome)
  return touched
end

-- End it without its holder's word. Its memory is withheld for a while, unless on simulated
-- devices: the process that held it may be dead or may still be there.
function broker.end_lease(r, outcome)
  if outcome == 'preempted' then broker.preemption.remember(r.token) end
  local grace_ms = 0
  for uuid in string.gmatch(r.devices, '([^,]+)=') do
    if call('HGET', prefix .. 'device:' .. uuid, 'simulated') ~= '1' then
      grace_ms = call('HGET', POOL, 'expiry_grace_s') * 1000
      break
    end
  end
  if grace_ms == 0 then return broker.close_lease(r, outcome) end
  local touched = broker.deallocate(r, true)
  call('HSET', prefix .. 'record:' .. r.token, 'state', 'cooling', 'expires_at_ms', text(ctx.now),
    'outcome', outcome)
  set_deadline(r.token, ctx.now + grace_ms)
  tell(r, outcome)
  return touched
end

-- How a lease that is cooling ended.
function broker.outcome(token)
  return call('HGET', prefix .. 'record:' .. token, 'outcome')
end
