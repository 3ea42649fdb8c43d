-- line: who is next.
--
--   freed             the worklist: device:<id> of which more is free than before, want:<want> with another first
--   inbox:<client>    tokens that were offered something: hints, one list for each process
--
-- S11: what is not on `freed` fits no first of a want. So serving looks at what is on it and at nothing else, in the order of
-- the ranks of those who may have it: the firsts whose want a device can be, and the first of a want that has another, who
-- is placed like a newcomer. What no device frees (a policy, a pool that opens) the first's own polls find.
--
-- A device is offered: taken from the ledger, told to the waiter's process, without fence or lease key until the waiter
-- claims it by asking again. With nobody waiting no verb touches any of these keys.

local CLAIM_MS, KEEP_AFTER_MS = 10000, 30000
local SERVE_WORK, OFFER_WORK = 16, 4   -- looking at one entry is 1: four devices handed out by one script, or 16 looked at
local LOOKED_AT, HINTS, HINTS_MS = 4, 1000, 60000   -- devices, or groups of them, that may be kept; hints of one inbox

local line, waiters = {}, B.waiters
B.line = line
-- Does somebody come before a newcomer who asks for this?
function line.comes_first(q)
  return S.backlog or call('EXISTS', P .. 'line:' .. waiters.want(q)) == 1
end

-- As many whole devices of one group as w wants: of those that `held` has for it, then of the idle ones.
local function whole_of(w, host, model, held, room_mb)
  local q, devices, has, sum = w.q, {}, {}, 0
  local function add(d)
    if #devices == q.devices or has[d] then return end
    devices[#devices + 1], has[d], sum = d, true, sum + d.free_mb
  end
  for _, d in ipairs(held) do
    if d.empty and d.free_mb >= q.memory_mb and d.host == host and d.model == model then add(d) end
  end
  if #devices < q.devices then
    B.flush()
    local ids = call('ZRANGE', P .. 'idle:' .. host .. '/' .. model, text(q.memory_mb), '+inf', 'BYSCORE', 'LIMIT', '0',
      text(q.devices))
    for _, uuid in ipairs(ids) do add(B.device(uuid)) end
  end
  if #devices < q.devices then return nil, 'no_capacity' end
  if sum > room_mb then return nil, 'agent_cap' end
  return devices
end

local function kept_devices(w)
  local held = {}
  for uuid in string.gmatch(w.kept, '[^,]+') do held[#held + 1] = B.device(uuid) end
  return held
end

-- What w gets of device d, alone or with what is kept for it, or idle, of the same host and model; or anywhere. Nil and why not.
local function fit(w, d)
  local q, room_mb = w.q, waiters.room(w.agent)
  if q.memory_mb * q.devices > room_mb then return nil, 'agent_cap' end
  if not d then
    local devices, why = B.pick(q, room_mb)
    if devices or w.kept == '' then return devices, why end
    d = B.device(string.match(w.kept, '[^,]+'))
  end
  if B.whole(q) then return whole_of(w, d.host, d.model, { d, unpack(kept_devices(w)) }, room_mb) end
  if d.sharable and d.free_mb >= q.memory_mb then return { d } end
  return nil, 'no_capacity'
end

local function offer(w, devices)
  waiters.leave(w, true)
  local taken, sum = B.take(w.q, devices)
  B.add_to_agent(w.agent, sum, 1)
  call('HSET', P .. 'record:' .. w.token, 'state', 'offered', 'devices', taken, 'policy_version',
    text(waiters.policy().policy_version))
  schedule(w.token, S.now + CLAIM_MS)
  if w.client ~= '' then
    local inbox = P .. 'inbox:' .. w.client
    if call('RPUSH', inbox, w.token) > HINTS then call('LTRIM', inbox, -HINTS, -1) end
    call('PEXPIRE', inbox, HINTS_MS)
  end
  B.count('offered')
  B.event('offered', 'token', w.token, 'agent', w.agent, 'devices', taken)
  return OFFER_WORK * #devices
end

-- An offer that the policy has overtaken: its waiter stands again where it stood.
function line.withdraw(w)
  B.give_back(w, false)
  call('HSET', P .. 'record:' .. w.token, 'state', 'waiting', 'devices', '')
  w.state, w.devices = 'waiting', ''
  B.event('withdrawn', 'token', w.token, 'agent', w.agent)
  waiters.stand(w)
end

-- Can this device be what a want asks for? By its shape alone; what is asked lies between 2^(n-1) and 2^n.
local function suits(d, want)
  local kind, n = string.match(want, '/([mx])(%d+)$')
  if kind == 'x' then return d.empty end
  local may = d.sharable
  if S.pool.allow_fractional_shares == 0 then may = d.empty end
  return may and (n == '0' or 2 ^ (n - 1) < d.free_mb)
end

-- Whom a device of the worklist may go to, by rank: the firsts whose want it can be. A kept one: those before its keeper, then
-- its keeper. `at`: who of them is next.
local function candidates(entry)
  local d = B.device(string.sub(entry, 8))
  local found = { at = 1, d = d }
  if not d then return found end
  local keeper = d.kept_for ~= '' and waiters.read(d.kept_for) or nil
  if d.kept_for ~= '' and not keeper then waiters.unkept(d) end   -- its record was removed by hand
  local last = keeper and keeper.rank + 0 or NEVER
  for _, of in ipairs({ d.host .. '/' .. d.model, d.host .. '/*', '*/' .. d.model, '*/*' }) do
    local wants = waiters.wants(of)
    for want, rank in pairs(wants) do
      if rank < last and suits(d, want) then found[#found + 1] = { rank = rank, want = want, wants = wants } end
    end
  end
  table.sort(found, function(a, b) return a.rank < b.rank or a.rank == b.rank and a.want < b.want end)
  if keeper then found[#found + 1] = { rank = last } end
  found.kept_for = d.kept_for
  return found
end

-- Who is next of an entry, or nil: nobody. One that is first no more is passed over: its want is on the worklist itself.
local function upcoming(entry, lists)
  local want, list = string.match(entry, '^want:(.*)$'), lists[entry]
  if want then return { rank = S.work[entry], want = want } end
  if not list or list.d and list.d.kept_for ~= list.kept_for then
    list = candidates(entry)
    lists[entry] = list
  end
  local d, one = list.d, list[list.at]
  while one and one.want and one.wants[one.want] ~= one.rank do
    list.at = list.at + 1
    one = list[list.at]
  end
  return d and (d.sharable or d.empty) and one or nil
end

-- The entry whose turn it is, and for whom: the best rank of all, so that whoever has it may take what it finds, on the
-- worklist or not: nobody before it could have had that. Or an entry that has nobody left.
local function next_turn(lists)
  local entries, found, best = {}, nil, nil
  for entry in pairs(S.work) do entries[#entries + 1] = entry end
  for _, entry in ipairs(entries) do
    local one = upcoming(entry, lists)
    if not one then
      lists[entry] = nil
      return entry, nil
    end
    if not found or one.rank < best.rank or one.rank == best.rank and entry < found then found, best = entry, one end
  end
  return found, best
end

-- Offer w what d is part of, or find that only its agent's cap is in the way. The work that it was, or nil.
local function try(w, d)
  if not w then return nil end
  local devices, why = fit(w, d)
  if why == 'agent_cap' and d and B.whole(w.q) then devices, why = fit(w) end   -- a smaller one may be within its cap
  if devices then return offer(w, devices) end
  if why ~= 'agent_cap' or B.agent(w.agent).leases == 0 then return nil end
  waiters.park(w)
  return 1   -- its want has another first
end

local function finished(entry)
  S.work[entry] = nil
  if S.stored[entry] then call('ZREM', P .. 'freed', entry) end
  S.stored[entry] = nil
end

-- One turn: the work that was done. An entry with nobody left, and a want, which is looked at once, are off the worklist.
local function turn(entry, one, list)
  if not one or not list then finished(entry) end
  if not list then return one and try(waiters.first(one.want)) or 1 end
  list.at = list.at + 1
  local w = one.want and waiters.first(one.want) or not one.want and waiters.read(list.kept_for)
  return try(w, list.d) or 0
end

-- Hand on what is on the worklist, as much as one script may; what is left goes to `freed`, and S.more says so.
function line.serve()
  local pool, left, lists = waiters.policy(), SERVE_WORK, {}
  local shut = pool.safe_mode == 1 or S.now < pool.closed_until_ms   -- then `freed` keeps the work
  while next(S.work) and left > 0 and not shut do
    local entry, one = next_turn(lists)
    left = left - turn(entry, one, lists[entry])
  end
  S.backlog = next(S.work) ~= nil
  if S.backlog and not shut then S.more = 1 end
  for each, rank in pairs(S.work) do
    if S.stored[each] ~= rank then call('ZADD', P .. 'freed', text(rank), each) end   -- new, or with another first
    S.stored[each] = rank
  end
end

-- Which devices to keep for a first that has waited long: one that could hold it, most free first, or as many of one host.
local function keepable(w)
  local q = w.q
  B.flush()
  local function fits(uuid)
    local d = B.device(uuid)
    local up = d and d.state == 'ok' and d.drained ~= '1' and d.kept_for == ''
    local suits_q = up and (q.model == '*' or d.model == q.model) and (q.host == '*' or d.host == q.host)
    return suits_q and d.total_mb - d.reserve_mb >= q.memory_mb and d
  end
  if q.devices == 1 then
    for _, key in ipairs({ 'free:', 'fits:' }) do
      for _, uuid in ipairs(call('ZRANGE', P .. key .. B.selector(q), '0', LOOKED_AT - 1, 'REV')) do
        local d = fits(uuid)
        if d then return { d } end
      end
    end
    return nil
  end
  for i, group in ipairs(B.whole_devices.groups(q, 'hosts:')) do
    local devices = {}
    if i > LOOKED_AT then break end
    for _, uuid in ipairs(call('ZRANGE', P .. 'fits:host/' .. group, q.memory_mb, '+inf', 'BYSCORE')) do
      devices[#devices + 1] = #devices < q.devices and fits(uuid) or nil
    end
    if #devices == q.devices then return devices end
  end
  return nil
end

-- A waiter asks again. What it gets now; or nil, why not, and how many of its want are ahead (-1: parked). Only firsts are
-- tried, and only when nothing is left that may belong to others.
function line.poll(w, open)
  local place = call('ZRANK', P .. 'line:' .. w.want, w.token)
  local parked = not place
  local turn = place == 0 or parked and call('ZRANK', P .. 'parked:' .. w.agent, w.token) == 0
  if not open or not turn or S.backlog then return nil, parked and 'agent_cap' or 'no_capacity', place or -1 end
  local devices, why = fit(w)
  if devices then return devices end
  if parked and why ~= 'agent_cap' then
    place = waiters.unparked(w)
  elseif place == 0 and why == 'agent_cap' and B.agent(w.agent).leases > 0 then
    waiters.park(w)
    place = -1
  elseif place == 0 and S.now - w.joined_ms >= KEEP_AFTER_MS then
    for _, d in ipairs(kept_devices(w)) do
      if d.total_mb - d.reserve_mb < w.q.memory_mb then waiters.unkeep(w) end   -- it shrank: kept in vain
    end
    local found = w.kept == '' and keepable(w)
    if found then waiters.keep(w, found) end
  end
  return nil, why, place or -1
end
