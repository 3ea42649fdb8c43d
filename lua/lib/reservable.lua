-- reservable: the devices that a head may reserve.
--
-- It reserves devices that can become what it asks, whatever holds them now: first the ones that
-- were given up longest ago, then those with most room. One poll reads a page of what is
-- registered, and the next poll goes on behind it, so that neither devices that are lost, away or
-- drained nor ones that others use hide those behind them, however many they are.

local DEVICES_READ, GROUPS_READ = 64, 8   -- by one poll
local FREEST, MODELS_READ = 8, 64

local reservations = broker.reservations

-- Is one that was given up longer ago, or of which more is free, the better choice?
local function before(a, b)
  if a.reservable_ms ~= b.reservable_ms then return a.reservable_ms < b.reservable_ms end
  return a.free_mb > b.free_mb or a.free_mb == b.free_mb and a.uuid < b.uuid
end

-- Filter the ids by what w may reserve, the best first.
local function reservable(w, ids)
  local found, seen, rooms = {}, {}, {}
  local function within_quota(d)
    local mb = reservations.charge(w, d)
    if mb and not rooms[d.model] then rooms[d.model] = broker.room_on(w, d.model, NEVER) end
    return mb and mb <= rooms[d.model]
  end
  for _, uuid in ipairs(ids) do
    local d = not seen[uuid] and broker.device(uuid)
    seen[uuid] = true
    if d and (d.reserved_for == '' or reservations.may_take(w, d)) and d.reservable_ms <= ctx.now
      and within_quota(d) then
      found[#found + 1] = d
    end
  end
  table.sort(found, before)
  return found
end

-- Choose as many of the devices as w asks, within its agent's cap: the best, else the smallest.
-- Nil: too few.
local function within_cap(w, found, room_mb)
  local function first_ones()
    local devices, sum = {}, 0
    for i = 1, w.q.devices do
      devices[i], sum = found[i], sum + reservations.charge(w, found[i])
    end
    return sum <= room_mb and devices
  end
  if #found < w.q.devices then return nil end
  local best = first_ones()
  if best then return best end
  table.sort(found, function(a, b) return reservations.charge(w, a) < reservations.charge(w, b) end)
  return first_ones() or nil
end

-- The one device to reserve: of those with most room, and of the next page of all that are large
-- enough.
local function one(w, room_mb)
  local q, ids = w.q, call('ZRANGE', prefix .. 'free:' .. broker.selector(w.q), '0', FREEST - 1,
    'REV')
  local of = q.host ~= '*' and q.model ~= '*' and 'host/' .. q.host .. '/' .. q.model
    or broker.selector(q)
  local page = call('ZRANGE', prefix .. 'fits:' .. of, text(q.memory_mb), '+inf', 'BYSCORE',
    'LIMIT', text(w.reservation_seen),
    text(DEVICES_READ))
  for _, uuid in ipairs(page) do ids[#ids + 1] = uuid end
  return within_cap(w, reservable(w, ids), room_mb), #page == DEVICES_READ
    and w.reservation_seen + #page or 0
end

-- The next page of groups, <host>/<model>, with as many devices as q asks.
function reservations.groups_from(q, skip, most)
  local found, least = {}, text(q.devices)
  local models = q.model ~= '*' and { q.model } or
    call('ZRANGE', prefix .. 'models', text(q.memory_mb), '+inf', 'BYSCORE', 'LIMIT', '0',
      MODELS_READ)
  for _, model in ipairs(models) do
    local key, left = prefix .. 'hosts:' .. model, most - #found
    if left <= 0 then break end
    local count = q.host ~= '*' and 1 or call('ZCOUNT', key, least, '+inf')
    if skip < count then
      local hosts = q.host ~= '*' and { q.host } or
        call('ZRANGE', key, least, '+inf', 'BYSCORE', 'LIMIT', text(skip), text(left))
      for _, host in ipairs(hosts) do found[#found + 1] = host .. '/' .. model end
    end
    skip = math.max(0, skip - count)
  end
  return found
end

-- The devices of one group to reserve: the group whose worst choice is the best.
local function several(w, room_mb)
  local q, best, at, read = w.q, nil, w.reservation_seen, 0
  local groups = reservations.groups_from(q, at, GROUPS_READ)
  for _, group in ipairs(groups) do
    if read >= DEVICES_READ then break end
    local ids = call('ZRANGE', prefix .. 'fits:host/' .. group, text(q.memory_mb), '+inf',
      'BYSCORE', 'LIMIT', '0',
      text(DEVICES_READ))
    at = at + 1
    if #ids >= q.devices then
      read = read + #ids
      local found = reservable(w, ids)
      local most_mb = found[1] and broker.room_on(w, found[1].model, room_mb)
      local devices = within_cap(w, found, most_mb)
      if devices and (not best or before(devices[q.devices], best[q.devices])) then
        best = devices
      end
    end
  end
  return best, (#groups == GROUPS_READ or read >= DEVICES_READ) and at or 0
end

-- The devices that w reserves, nil: none on this page; and where its next page begins.
function reservations.choose(w, room_mb)
  local look = w.q.devices > 1 and several or one
  return look(w, room_mb)
end
