-- serving: whose turn it is.
--
--   freed             the worklist: device:<id> of which more is free than before, queue:<id> with another first
--
-- S11: what is not on `freed` fits no first of a queue. So serving looks at what is on it and at nothing else, in the order of
-- the ranks of those who may have it: the firsts whose queue a device can be, and the first of a queue that has another, who
-- is placed like a newcomer. What no device frees (a policy, a pool that opens) the first's own polls find.

local SERVE_WORK = 16   -- looking at one entry is 1, handing out a device 4: four handed out by one script, or 16 looked at

local queue = B.queue

-- Can this device be what a queue asks for? By its size class alone; of a share what is asked lies
-- between 2^(n-1) and 2^n.
local function suits(d, id)
  local kind, n = string.match(id, '/([mx])(%d+)$')
  if kind == 'x' then return d.empty end
  local may = d.sharable
  if S.pool.allow_fractional_shares == 0 then may = d.empty end
  return may and (n == '0' or 2 ^ (n - 1) < d.free_mb)
end

-- Whom a device of the worklist may go to, by rank: the firsts whose queue it can be. A kept one: those before its keeper, then
-- its keeper. `at`: who of them is next.
local function candidates(entry)
  local d = B.device(string.sub(entry, 8))
  local found = { at = 1, d = d }
  if not d then return found end
  local keeper = d.kept_for ~= '' and queue.read(d.kept_for) or nil
  if d.kept_for ~= '' and not keeper then B.reservations.cancel_on(d) end   -- its record was removed by hand
  local last = keeper and keeper.rank + 0 or NEVER
  for _, of in ipairs({ d.host .. '/' .. d.model, d.host .. '/*', '*/' .. d.model, '*/*' }) do
    local ids = queue.ids(of)
    for id, rank in pairs(ids) do
      if rank < last and suits(d, id) then found[#found + 1] = { rank = rank, id = id, ids = ids } end
    end
  end
  table.sort(found, function(a, b) return a.rank < b.rank or a.rank == b.rank and a.id < b.id end)
  if keeper then found[#found + 1] = { rank = last } end
  found.kept_for = d.kept_for
  return found
end

-- Who is next of an entry, or nil: nobody. One that is first no more is passed over: its queue is on the worklist itself.
local function upcoming(entry, lists)
  local id, list = string.match(entry, '^queue:(.*)$'), lists[entry]
  if id then return { rank = S.work[entry], id = id } end
  if not list or list.d and list.d.kept_for ~= list.kept_for then
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

-- The entry whose turn it is, but for those that come `later`, and for whom: the best rank of all, so that whoever has it may
-- take what it finds, on the worklist or not: nobody before it could have had that. Or an entry that has nobody left.
local function next_turn(lists, later)
  local entries, found, best = {}, nil, nil
  for entry in pairs(S.work) do
    if not later[entry] then entries[#entries + 1] = entry end
  end
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

local function finished(entry)
  S.work[entry] = nil
  if S.stored[entry] then call('ZREM', P .. 'freed', entry) end
  S.stored[entry] = nil
end

-- One turn: the work that was done. An entry with nobody left, and a queue, which is looked at once, are off the worklist.
local function turn(entry, one, list)
  if not one or not list then finished(entry) end
  if not list then return one and B.offers.try(queue.first(one.id)) or 1 end
  list.at = list.at + 1
  local w = one.id and queue.first(one.id) or not one.id and queue.read(list.kept_for)
  return B.offers.try(w, list.d) or 0
end

-- Of a worklist longer than one script's work the entries after that: entry -> true.
local function put_off()
  local entries, later = {}, {}
  for entry in pairs(S.work) do entries[#entries + 1] = entry end
  if #entries <= SERVE_WORK then return later end
  table.sort(entries, function(a, b)
    local one, other = S.work[a], S.work[b]
    return one < other or one == other and a < b
  end)
  for i = SERVE_WORK + 1, #entries do later[entries[i]] = true end
  return later
end

-- Hand on what is on the worklist, as much as one script may; what is left goes to `freed`, and S.more says so.
function B.offers.serve()
  local pool, left, lists = queue.policy(), SERVE_WORK, {}
  local shut = pool.safe_mode == 1 or S.now < pool.closed_until_ms   -- then `freed` keeps the work
  local later = put_off()
  while left > 0 and not shut do
    local entry, one = next_turn(lists, later)
    if not entry then break end
    left = left - turn(entry, one, lists[entry])
  end
  S.backlog = next(S.work) ~= nil
  if S.backlog and not shut then S.more = 1 end
  for each, rank in pairs(S.work) do
    if S.stored[each] ~= rank then call('ZADD', P .. 'freed', text(rank), each) end   -- new, or with another first
    S.stored[each] = rank
  end
end
