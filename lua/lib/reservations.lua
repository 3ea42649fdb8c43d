-- reservations: devices that are reserved for a head that has waited long, and their horizon.
--
-- After 30 s a head reserves devices that can become what it asks: they are live, reserved for no
-- other, large enough beside the memory that is used without a lease, and within what its agent's
-- cap leaves. No waiter behind it gets them. A reservation counts against that cap as a lease does.
-- Where teams have policies (teams.lua), a head of a team that comes before takes over what is
-- reserved for a head of one that comes after: else the first to reserve, and not the first in
-- order, would collect several devices.
--
-- It has a horizon. Devices that have room and go unused for `reservation_idle_s` without progress
-- go back to the others, and the head keeps its rank. Progress is the end of a lease that was older
-- than the reservation. No head reserves those devices again for as long; the head reserves nothing
-- for as long, twice as long after each further time, at most 16 times.
--
--   backfill   device -> by when (ms) a lease must have ended to use what is reserved there; see
--              broker.offers.backfill
--
-- Which devices those are, lib/reservable.lua chooses. The fields that older versions wrote are
-- `reserved` (of a record: the devices) and `reserved_for` (of a device: the token).

local RESERVE_AFTER_MS, RESERVATION_IDLE_S = 30000, 60
-- A rest grows to 16 times the first; of a device with more leases no end is known
local DOUBLINGS, HOLDERS_READ = 4, 16

local reservations, queue = {}, broker.queue
broker.reservations = reservations

-- Time that reserved devices may go unused, in ms; 0: nothing is reserved.
local function idle_ms()
  local pool = ctx.pool
  if not pool.reservation_idle_s then   -- a pool of an older version has none
    pool.reservation_idle_s = (call('HGET', POOL, 'reservation_idle_s') or RESERVATION_IDLE_S) + 0
  end
  return pool.reservation_idle_s * 1000
end

-- The devices that are reserved for a waiter.
function reservations.devices(w)
  local devices = {}
  for uuid in string.gmatch(w.reserved, '[^,]+') do devices[#devices + 1] = broker.device(uuid) end
  return devices
end

-- May w have a device that is reserved for another? Where its team comes before the other's, and no
-- lease ends for that one.
function reservations.may_take(w, d)
  if ctx.pool.teams == 0 or not w.takes then return false end
  local may = w.takes[d.reserved_for]
  if may == nil then
    local owner = queue.read(d.reserved_for)
    may = owner and owner.preempts == '' and broker.comes_before(w, owner, d) or false
    w.takes[d.reserved_for] = may
  end
  return may
end

-- MiB that device d would count against the cap of w's agent; nil: it cannot become what w asks.
function reservations.charge(w, d)
  local q = w.q
  local live = d.state == 'ok' and d.drained ~= '1' and (d.reserved_for == ''
    or d.reserved_for == w.token or reservations.may_take(w, d))
  local suits = (q.model == '*' or d.model == q.model) and (q.host == '*' or d.host == q.host)
    and broker.joins(q, d)
  local most_mb, whole = d.total_mb - d.system_mb - d.unleased_mb, broker.whole(q)
  if not live or not suits or most_mb < math.max(1, q.memory_mb) then return nil end
  if whole and d.unleased_mb > d.idle_unleased_mb then return nil end
  return whole and most_mb or q.memory_mb
end

-- Could a waiter use some of d, were it not reserved?
local function has_room(d)
  if broker.policy().allow_fractional_shares == 0 then return d.empty end
  return d.sharable
end

-- By when what w waits for on these devices has surely ended; nil: not known of all of it.
local function known_end_ms(w, devices)
  local last_ms, whole = nil, broker.whole(w.q)
  for _, d in ipairs(devices) do
    local share = d.sharable and d.free_mb >= w.q.memory_mb
    if whole and not d.empty or not whole and not share then
      local key = prefix .. 'holders:' .. d.uuid
      if call('SCARD', key) > HOLDERS_READ then return nil end
      for _, token in ipairs(call('SMEMBERS', key)) do
        local state, hold_until_ms, revoked, expires_at_ms = unpack(call('HMGET',
          prefix .. 'record:' .. token, 'state', 'hold_until_ms', 'revoked', 'expires_at_ms'))
        local ends_ms = state == 'active' and (revoked and expires_at_ms or hold_until_ms)
        if not ends_ms and state ~= 'cooling' then return nil end
        if ends_ms then last_ms = math.max(last_ms or 0, ends_ms + 0) end
      end
    end
  end
  return last_ms
end

-- Let what is reserved for a waiter be had by all. `satisfied`: it got what it asked, so its
-- agent's sum has not fallen.
function reservations.cancel(w, satisfied)
  if w.reserved == '' then return end
  call('HDEL', prefix .. 'record:' .. w.token, 'reserved', 'reservation_mb', 'reservation_since_ms',
    'reservation_until_ms',
    'reservation_fence')
  local model = nil
  for _, d in ipairs(reservations.devices(w)) do
    model = d.model
    if d.reserved_for == w.token then
      d.reserved_for = ''
      call('HSET', prefix .. 'device:' .. d.uuid, 'reserved_for', '')
      call('ZREM', prefix .. 'backfill', d.uuid)
      broker.index(d)
    end
  end
  w.reserved = ''
  if w.preempts and w.preempts ~= '' then broker.preemption.withdraw(w) end
  if not w.agent or w.reservation_mb == 0 then return end
  broker.count_reserved(w, -w.reservation_mb, model)
  w.reservation_mb = 0
  if not satisfied then queue.recheck_capped(w) end
end

-- End the reservation of a device.
function reservations.cancel_on(d)
  reservations.cancel(queue.read(d.reserved_for) or { token = d.reserved_for, reserved = d.uuid })
end

-- Reserve devices for w: for as long as they are of use, or, where leases end for it, until then.
function reservations.reserve(w, devices, until_ms)
  local ids, sum, record = {}, 0, prefix .. 'record:' .. w.token
  -- Where leases end for it, it has the devices to itself
  local ends_ms = (w.preempts or '') == '' and known_end_ms(w, devices)
  for i, d in ipairs(devices) do
    sum = sum + reservations.charge(w, d)
    if d.reserved_for ~= '' and d.reserved_for ~= w.token then reservations.cancel_on(d) end
    ids[i], d.reserved_for = d.uuid, w.token
    call('HSET', prefix .. 'device:' .. d.uuid, 'reserved_for', w.token)
    if ends_ms then call('ZADD', prefix .. 'backfill', text(ends_ms), d.uuid) else call('ZREM',
      prefix .. 'backfill', d.uuid) end
    broker.index(d)
  end
  w.reserved, w.reservation_mb = table.concat(ids, ','), sum
  call('HSET', record, 'reserved', w.reserved, 'reservation_mb', text(sum), 'reservation_since_ms',
    text(ctx.now), 'reservation_until_ms', text(until_ms or ctx.now + idle_ms()),
    'reservation_fence', call('HGET', POOL, 'fence'))
  broker.count_reserved(w, sum, devices[1].model)
  broker.event('reserved', 'token', w.token, 'agent', w.agent, 'devices', w.reserved, team_of(w))
end

-- A lease of this fence ended on a device that is reserved: the reservation goes on, if it is
-- older.
function reservations.progress(d, fence)
  local record = prefix .. 'record:' .. d.reserved_for
  local at_fence, preempts, until_ms = unpack(call('HMGET', record, 'reservation_fence', 'preempts',
    'reservation_until_ms'))
  if at_fence and fence + 0 <= at_fence + 0 then
    local longer_ms = ctx.now + idle_ms()
    -- Where leases end for its waiter it lasts until they have ended
    if preempts then longer_ms = math.max(longer_ms, (until_ms or 0) + 0) end
    call('HSET', record, 'reservation_until_ms', text(longer_ms))
  end
end

-- Another lease has come to a device that is reserved for this token: it is not known any more when
-- the last one ends.
function reservations.unsure(token)
  for uuid in string.gmatch(call('HGET', prefix .. 'record:' .. token, 'reserved') or '',
    '[^,]+') do
    call('ZREM', prefix .. 'backfill', uuid)
  end
end

-- The end of a lease on these devices, `uuid=mb,...`, is another one, or has come: so may be the
-- time until which what is reserved there is lent.
function reservations.end_moved(taken)
  local noted = {}
  for uuid in string.gmatch(taken, '([^,]+)=') do
    local d = broker.device(uuid)
    local token = d and d.reserved_for or ''
    local w = token ~= '' and not noted[token] and call('ZSCORE', prefix .. 'backfill', uuid)
      and queue.read(token)
    noted[token] = true
    local devices = w and reservations.devices(w)
    local ends_ms = w and known_end_ms(w, devices)
    for _, each in ipairs(devices or {}) do
      if ends_ms then call('ZADD', prefix .. 'backfill', text(ends_ms), each.uuid) else call('ZREM',
        prefix .. 'backfill', each.uuid) end
    end
  end
end

-- By when a lease of this fence must have ended, since what it has of devices, `uuid=mb,...`, is
-- lent from a reservation; nil: it is not. It came after that, and others that did forbid lending.
function reservations.lent_until(taken, fence)
  local first_ms = nil
  for uuid in string.gmatch(taken, '([^,]+)=') do
    local d = broker.device(uuid)
    local until_ms = d and d.reserved_for ~= '' and call('ZSCORE', prefix .. 'backfill', uuid)
    local at_fence = until_ms and call('HGET', prefix .. 'record:' .. d.reserved_for,
      'reservation_fence')
    if at_fence and fence + 0 > at_fence + 0 then
      first_ms = math.min(first_ms or NEVER, until_ms + 0)
    end
  end
  return first_ms
end

-- The horizon is reached: the devices go back, and w rests.
local function give_up(w, devices)
  local ids, times = w.reserved, w.reservations + 1
  reservations.cancel(w)
  for _, d in ipairs(devices) do
    d.reservable_ms = ctx.now + idle_ms()
    call('HSET', prefix .. 'device:' .. d.uuid, 'reservable_ms', text(d.reservable_ms))
  end
  w.reserves_ms = ctx.now + idle_ms() * 2 ^ math.min(times - 1, DOUBLINGS)
  call('HSET', prefix .. 'record:' .. w.token, 'reservations', text(times), 'reserves_ms',
    text(w.reserves_ms))
  broker.event('reservation_ended', 'token', w.token, 'agent', w.agent, 'devices', ids, team_of(w))
end

-- Is what is reserved for w still worth it? If not, it goes back.
function reservations.check(w)
  if w.reserved == '' then return end
  local devices, sum, room = reservations.devices(w), 0, false
  local _, count = string.gsub(w.reserved, '[^,]+', '')
  if #devices < count then return reservations.cancel(w) end   -- a hand has removed one
  for _, d in ipairs(devices) do
    local mb = reservations.charge(w, d)
    if not mb then return reservations.cancel(w) end
    sum, room = sum + mb, room or has_room(d)
  end
  if w.preempts == '' and sum > broker.room(w, w.reservation_mb, nil, devices[1]
    and devices[1].model) then
    return reservations.cancel(w)
  end
  local until_ms = ctx.now + idle_ms()
  if room and w.reservation_until_ms then
    if ctx.now > w.reservation_until_ms then give_up(w, devices) end
  elseif w.preempts == '' and until_ms > (w.reservation_until_ms or 0) then
    -- Nothing goes unused, or an older version has reserved it
    call('HSET', prefix .. 'record:' .. w.token, 'reservation_until_ms', text(until_ms))
  end
end

-- A head that fits nowhere reserves what it waits for, if it has waited long enough and does not
-- rest.
function reservations.consider(w)
  if w.reserved ~= '' or ctx.now - w.enqueued_ms < RESERVE_AFTER_MS or ctx.now < w.reserves_ms
    or idle_ms() == 0 then
    return
  end
  broker.flush()
  w.takes = {}
  local devices, seen = reservations.choose(w, broker.room(w))
  if devices then reservations.reserve(w, devices) end
  if seen ~= w.reservation_seen then
    call('HSET', prefix .. 'record:' .. w.token, 'reservation_seen', text(seen))
  end
end
