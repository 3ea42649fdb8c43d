-- lease_use: what hosts have seen of leases on their devices.
--
--   use:<device>   hash   token -> until_ms, and up to then: known_ms it was looked at, busy_ms of
--                         that, peak_mb, energy_mj; each where the host knows it
--
-- Only report adds to it, and only a fold (usage.lua) takes from it.

-- The words of a line, by name.
function broker.words_of(line)
  local words = {}
  for name, value in string.gmatch(line, '([%l_]+)=([^ ]*)') do words[name] = value end
  return words
end

-- A sum as text; it may be beyond 2^53.
function broker.whole_text(n)
  return n < 9007199254740992 and format('%d', math.floor(n + 0.5)) or format('%.0f', n)
end

local MOST_DIGITS = 15   -- of a number: a sum of them stays one
local MOST_KEPT, SILENT_MS, MOST_GONE = 512, 3600000, 1000

-- Forget leases that run no more and of which nothing was told for an hour. No fold takes them: an
-- older version ended them without a line, or a hand has removed it.
local function forget_unfolded(key)
  local kept, gone = call('HGETALL', key), {}
  for i = 1, #kept, 2 do
    local until_ms = tonumber(broker.words_of(kept[i + 1]).until_ms or '') or 0
    if until_ms + SILENT_MS < ctx.now and #gone < MOST_GONE
      and call('HGET', prefix .. 'record:' .. kept[i], 'state') ~= 'active' then
      gone[#gone + 1] = kept[i]
    end
  end
  if gone[1] then call('HDEL', key, unpack(gone)) end
end

-- Take a host's word on the leases of a device: token=from:to:busy:peak:energy. An interval counts
-- once, however often it is told; a lease is known from the first word while it runs to its fold.
function broker.take_use(uuid, said)
  local key, tokens, told = prefix .. 'use:' .. uuid, {}, {}
  for token, from_ms, to_ms, busy_ms, peak_mb, energy_mj in string.gmatch(said,
    '([%w._-]+)=(%d+):(%d+):(%d*):(%d*):(%d*)') do
    if math.max(#from_ms, #to_ms, #busy_ms, #peak_mb, #energy_mj) <= MOST_DIGITS then
      local n = #tokens + 1
      tokens[n], told[n] = token, { from_ms + 0, to_ms + 0, tonumber(busy_ms), tonumber(peak_mb),
        tonumber(energy_mj) }
    end
  end
  if not tokens[1] then return end
  local lines, newest, set = call('HMGET', key, unpack(tokens)), {}, {}
  for i, token in ipairs(tokens) do
    local from_ms, to_ms, busy_ms, peak_mb, energy_mj = unpack(told[i], 1, 5)
    local line = newest[token] or lines[i]   -- one token may be told of twice
    local words = line and broker.words_of(line)
    if not words and call('HGET', prefix .. 'record:' .. token, 'state') == 'active' then
      words = { until_ms = text(from_ms) }
    end
    if words and from_ms >= words.until_ms + 0 and from_ms <= to_ms then
      local out = { 'until_ms=' .. text(to_ms) }
      local function say(name, n)
        if n then out[#out + 1] = name .. '=' .. broker.whole_text(n) end
      end
      local function sum(name, n)
        say(name, (n or words[name]) and (words[name] or 0) + (n or 0))
      end
      sum('known_ms', busy_ms and to_ms - from_ms)
      sum('busy_ms', busy_ms and math.min(busy_ms, to_ms - from_ms))
      say('peak_mb', (peak_mb or words.peak_mb) and math.max(peak_mb or 0, words.peak_mb or 0))
      sum('energy_mj', energy_mj)
      newest[token] = table.concat(out, ' ')
    end
  end
  for token, line in pairs(newest) do set[#set + 1], set[#set + 2] = token, line end
  if not set[1] then return end
  call('HSET', key, unpack(set))
  if call('HLEN', key) > MOST_KEPT then forget_unfolded(key) end
end

-- What hosts have seen of these leases: token -> device -> words, nil where there is nothing; and
-- of which devices there is something: device -> tokens.
function broker.uses_of(ended)
  local tokens, uses, found = {}, {}, {}
  for _, e in ipairs(ended) do
    for _, uuid in ipairs(e.of.uuids) do
      local of = tokens[uuid] or {}
      tokens[uuid], of[#of + 1] = of, e.token
    end
  end
  for uuid, of in pairs(tokens) do
    for i, line in ipairs(call('HMGET', prefix .. 'use:' .. uuid, unpack(of))) do
      if line then
        local token = of[i]
        uses[token], found[uuid] = uses[token] or {}, found[uuid] or {}
        uses[token][uuid] = broker.words_of(line)
        table.insert(found[uuid], token)
      end
    end
  end
  return uses, found
end
