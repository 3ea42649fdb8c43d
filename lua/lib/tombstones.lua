-- tombstones: ends of leases, for late duplicates of their calls.
--
--   done:<shard>   string   the last of that shard, 28 bytes each, the oldest first: 16 digits of
--                  the SHA-1 of the token, a letter
--                           for how it ended, when it did (11 hexadecimal digits, ms)
--
-- A key of its own for each took nine times as much, and so filled a small store within minutes.
-- One is good for 15 min, and while fewer than MOST ended in its shard since: the most that clients
-- can make the pool remember is SHARDS x MOST x 28 bytes, 21 MiB, and below 400 ends a second none
-- goes before its time. Two tokens of one shard with the same 64 bits are as unlikely as two equal
-- tokens.

local SHARDS, MOST, SIZE = 8192, 96, 28
local TOMBSTONE_MS = 900000   -- longer than any retry of a call may last
local LETTERS = { released = 'r', expired = 'e', revoked = 'v', cancelled = 'c', timed_out = 't',
  superseded = 's', preempted = 'p' }
local OUTCOMES = { r = 'released', e = 'expired', v = 'revoked', c = 'cancelled', t = 'timed_out',
  s = 'superseded', p = 'preempted' }

local function digest(token)
  if redis.sha1hex then return redis.sha1hex(token) end
  -- Fakeredis
  return (string.gsub(string.reverse(token), '.', function(c) return format('%02x',
    string.byte(c)) end))
end

-- The shard of a token: its key, its `list`, and the token's mark there; read once by a call that
-- asks and then writes.
local function shard(token)
  if ctx.shard and ctx.shard.token == token then return ctx.shard end
  local hex = digest(token)
  local key = prefix .. 'done:' .. text(tonumber(string.sub(hex, 1, 4), 16) % SHARDS)
  ctx.shard = { token = token, key = key, list = call('GET', key) or '', mark = string.sub(hex, 5,
    20) }
  return ctx.shard
end

-- The position of the mark's entry in a shard, or nil.
local function entry_at(list, mark)
  local at = find(list, mark, 1, true)
  while at and at % SIZE ~= 1 do at = find(list, mark, at + 1, true) end
  return at
end

-- Is the entry that begins there no longer good?
local function stale(list, at)
  return tonumber(string.sub(list, at + 17, at + 27), 16) + TOMBSTONE_MS <= ctx.now
end

-- The outcome of the lease of a token that has no record, or nil: nothing is known of it.
function broker.ended(token)
  local of = shard(token)
  local list, at = of.list, entry_at(of.list, of.mark)
  return at and not stale(list, at) and OUTCOMES[string.sub(list, at + 16, at + 16)] or nil
end

-- Remember how it ended.
function broker.leave_outcome(token, outcome)
  local of = shard(token)
  local list, at, first = of.list, entry_at(of.list, of.mark), 1
  if at then list = string.sub(list, 1, at - 1) .. string.sub(list, at + SIZE) end
  while first <= #list and (stale(list, first)
    or #list - first + 1 > (MOST - 1) * SIZE) do first = first + SIZE end
  local entry = of.mark .. LETTERS[outcome] .. format('%011x', ctx.now)
  call('SET', of.key, string.sub(list, first) .. entry, 'PX', text(TOMBSTONE_MS))
  ctx.shard = nil   -- another token of this call may be of the same
end
