-- scheduler: offers of devices to waiters, in order.
--
--   worklist          device:<id> of which more is free than before, queue:<id> with another head
--
-- S11: what is not on `worklist` fits no head of a queue. So the scheduler checks what is on it and
-- nothing else, in the order of those that may have it: the heads whose size class a device can
-- satisfy, and the new head of a queue, which is placed like a newcomer. What no device brings (a
-- policy, a pool that opens) the head's own polls find.
--
-- The order is that of ranks. Where teams have policies (teams.lua) it is: heads that stay within
-- their team's nominal quota, by rank; then those that borrow, by their team's share, then by rank.
-- Of more entries than one script may look at, those of the best ranks are looked at first, so the
-- order between teams holds among these.

-- Checking one entry is 1, offering a device 4: four offered by one script, or 16 checked
local SCHEDULE_WORK = 16

local queue = broker.queue

-- Can this device be what a queue asks for? By its size class alone; of a share what is asked lies
-- between 2^(n-1) and 2^n.
local function suits(d, id)
  local kind, n = string.match(id, '^[^/]*/[^/]*/([mx])(%d+)')
  if kind == 'x' then return d.empty end
  local may = d.sharable
  if ctx.pool.allow_fractional_shares == 0 then may = d.empty end
  return may and (n == '0' or 2 ^ (n - 1) < d.free_mb)
end

-- MiB that the head of a queue asks for, on d if it wants whole devices: at least, and at most. By
-- its size class, and by its record where `exact`.
local function asks_mb(one, d, exact)
  local kind, n = string.match(one.id, '^[^/]*/[^/]*/([mx])(%d+)')
  local mb = d and (kind == 'x' or ctx.pool.allow_fractional_shares == 0) and d.free_mb
  if exact then
    local known = ctx.asks[one.id]
    if not known or known.rank ~= one.rank then
      local w = queue.head(one.id)
      known = { rank = one.rank, mb = w and w.q.memory_mb or 0, devices = w and w.q.devices or 0 }
      ctx.asks[one.id] = known
    end
    mb = known.devices * math.max(mb or 0, known.mb)
    return mb, mb
  end
  local count = kind == 'x' and 2 ^ math.floor(n / 100) or 1
  local least = count > 1 and count / 2 or 1
  n = 2 ^ (n % 100)
  -- What a device has free may be less: one that is in use can be reserved too
  if mb then return least * math.max(mb, n / 2), count * math.max(mb, n) end
  return least * n / 2, count * n
end

-- Give a candidate its place between teams: `tier` 0 within its nominal quota, and the `share` of
-- its team where it borrows. Without a device one that names no model is within the quota of any.
local function place(one, d)
  one.tier, one.share = 0, 0
  if ctx.pool.teams == 0 then return one end
  local asked, team = string.match(one.id, '^[^/]*/([^/]*)/[^/]*/?(.*)$')
  if team == '' then team = DEFAULT_TEAM end
  local model, by_model = d and d.model or asked, broker.team_policy(team).models ~= nil
  local key = by_model and team .. '/' .. model or team
  local known = ctx.teams[key]
  if not known then
    local _, _, sums = broker.sums_of(team, nil, 'team ' .. team)
    known = { left_mb = broker.quotas.left_mb(team, sums, model),
      share = broker.share(team, sums) }
    ctx.teams[key] = known
  end
  one.own_first = by_model and model == '*'
  local least_mb, most_mb = asks_mb(one, d)
  local own = known.left_mb >= most_mb
  if not own and known.left_mb >= least_mb then own = known.left_mb >= asks_mb(one, d, true) end
  if one.own_first and ctx.borrows[one.id] == one.rank then own = false end
  if not own then one.tier, one.share = 1, known.share end
  return one
end

local function before(a, b)
  if a.tier ~= b.tier then return a.tier < b.tier end
  if a.share ~= b.share then return a.share < b.share end
  return a.rank < b.rank
end

-- Does a head come before the owner of a reservation by what their teams have? The rank alone takes
-- no reservation away.
function broker.comes_before(w, owner, d)
  local function placed(x)
    ctx.asks[x.queue_id] = { rank = x.rank + 0, mb = x.q.memory_mb, devices = x.q.devices }
    return place({ rank = x.rank + 0, id = x.queue_id }, d)
  end
  local one, other = placed(w), placed(owner)
  if one.tier ~= other.tier then return one.tier < other.tier end
  return one.share < other.share
end

-- Candidates for a device of the worklist, the first one first: the head of every queue whose size
-- class the device can satisfy. A reserved device goes to heads that come before the reservation's
-- owner, then to the owner; to the owner alone where leases end for it. `at`: the next candidate.
local function candidates(entry)
  local d = broker.device(string.sub(entry, 8))
  local found = { at = 1, d = d }
  if not d then return found end
  local owner = d.reserved_for ~= '' and queue.read(d.reserved_for) or nil
  -- Its record was removed by hand
  if d.reserved_for ~= '' and not owner then broker.reservations.cancel_on(d) end
  local last, alone = nil, owner and owner.preempts ~= ''
  if owner then
    last = { rank = owner.rank + 0, id = owner.queue_id }
    ctx.asks[last.id] = { rank = last.rank, mb = owner.q.memory_mb, devices = owner.q.devices }
    place(last, d)
  end
  for _, of in ipairs({ d.host .. '/' .. d.model, d.host .. '/*', '*/' .. d.model, '*/*' }) do
    local ids = queue.ids(of)
    for id, rank in pairs(ids) do
      local one = not alone and suits(d, id) and place({ rank = rank, id = id, ids = ids }, d)
      if one and (not last or before(one, last)) then found[#found + 1] = one end
    end
  end
  table.sort(found, function(a, b)
    return before(a, b) or not before(b, a) and a.id < b.id
  end)
  if alone then last.tier, last.share = 0, 0 end
  if last then
    last.id = nil   -- the owner need not be a head
    found[#found + 1] = last
  end
  found.reserved_for = d.reserved_for
  return found
end

-- The next candidate of an entry, or nil: there is none. One that is no head any more is passed
-- over: its queue is on the worklist itself.
local function upcoming(entry, lists)
  local id, list = string.match(entry, '^queue:(.*)$'), lists[entry]
  if id then return place({ rank = ctx.work[entry], id = id }) end
  if not list or list.d and list.d.reserved_for ~= list.reserved_for then
    list = candidates(entry)
    lists[entry] = list
  end
  local d, one = list.d, list[list.at]
  while one and one.id and one.ids[one.id] ~= one.rank do
    list.at = list.at + 1
    one = list[list.at]
  end
  return d and (d.sharable or d.empty) and one or nil
end

-- The entry of the next step, but for the deferred ones, and its candidate: the best rank of all,
-- so that it may take what it finds, on the worklist or not: no waiter before it could have had
-- that. Or an entry that has no candidate left.
local function next_step(lists, deferred)
  local entries, found, best = {}, nil, nil
  for entry in pairs(ctx.work) do
    if not deferred[entry] then entries[#entries + 1] = entry end
  end
  for _, entry in ipairs(entries) do
    local one = upcoming(entry, lists)
    if not one then
      lists[entry] = nil
      return entry, nil
    end
    if not found or before(one, best) or not before(best, one) and entry < found then
      found, best = entry, one
    end
  end
  return found, best
end

local function finished(entry)
  ctx.work[entry] = nil
  if ctx.stored[entry] then call('ZREM', prefix .. 'worklist', entry) end
  ctx.stored[entry] = nil
end

-- Do one step, and return the work that it was. An entry with no candidate left, and a queue, which
-- is checked once, leave the worklist.
local function step(entry, one, list)
  if not one or not list then finished(entry) end
  if one and not list and one.own_first and one.tier == 0 then
    local work = broker.offers.try(queue.head(one.id), nil, true)
    if work then return work end
    -- What it would borrow it gets in its place among those that borrow
    ctx.borrows[one.id], ctx.work[entry] = one.rank, one.rank
    return 1
  end
  if not list then return one and broker.offers.try(queue.head(one.id)) or 1 end
  list.at = list.at + 1
  local w = one.id and queue.head(one.id) or not one.id and queue.read(list.reserved_for)
  return broker.offers.try(w, list.d, one.tier == 0) or 0
end

-- Defer the entries of a worklist that are beyond one script's work: entry -> true. Then the best
-- rank of what is deferred, or was not read.
local function defer()
  local entries, deferred, unread = {}, {}, ctx.unread_rank or NEVER
  for entry in pairs(ctx.work) do entries[#entries + 1] = entry end
  if #entries <= SCHEDULE_WORK then return deferred, unread end
  table.sort(entries, function(a, b)
    local one, other = ctx.work[a], ctx.work[b]
    return one < other or one == other and a < b
  end)
  for i = SCHEDULE_WORK + 1, #entries do deferred[entries[i]] = true end
  return deferred, math.min(unread, ctx.work[entries[SCHEDULE_WORK + 1]])
end

-- What is deferred may go to a waiter of a better rank than the next step's. So the entries that
-- were looked at get the ranks of their next candidates, and the next script begins with others.
local function rank_anew(lists)
  for entry in pairs(lists) do
    local one = upcoming(entry, lists)
    if one then ctx.work[entry] = one.rank end
  end
end

-- Offer what is on the worklist, as much as one script may; what is left goes to `worklist`, and
-- ctx.more says so.
function broker.schedule()
  local pool, left, lists = broker.policy(), SCHEDULE_WORK, {}
  ctx.teams = {}   -- the verb may have changed what they hold
  ctx.borrows = {}
  -- Then `worklist` holds the work
  local shut = pool.safe_mode == 1 or ctx.now < pool.closed_until_ms
  local deferred, before = defer()
  while left > 0 and not shut do
    local entry, one = next_step(lists, deferred)
    if not entry then break end
    if one and one.rank > before then
      rank_anew(lists)
      break
    end
    left = left - step(entry, one, lists[entry])
    -- A team has got something: its place is another
    if ctx.offered and pool.teams > 0 then ctx.offered, ctx.teams, lists = false, {}, {} end
  end
  ctx.backlog = next(ctx.work) ~= nil
  if ctx.backlog and not shut then ctx.more = 1 end
  for each, rank in pairs(ctx.work) do
    -- New, or with another head
    if ctx.stored[each] ~= rank then call('ZADD', prefix .. 'worklist', text(rank), each) end
    ctx.stored[each] = rank
  end
end
