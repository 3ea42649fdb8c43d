-- usage: who used what, in sums by day.
--
--   ended              list     a line of words for each lease that ended lately, the oldest first:
--                               lib/lease_end.lua
--   history            stream   the last leases that are over
--   usage:<day>        hash     <team> <agent> <model> -> sums, as words
--   usage:<day>:hosts  hash     <host>|<model> -> the same, and `hours` with gpu_ms of each hour
--   usage_total        hash     <team> -> sums since the pool began; peak <bucket> -> leases by the
--                               part of what they asked that they used at their peak
--
-- The script that ends a lease appends a line, which is all that it costs. `reap` folds lines into
-- the sums once hosts have had the time to say the last of it, a release when there are too many. A
-- fold takes a line and adds it to the sums in one script, so each lease counts once, and lines and
-- sums together are all that has ended.
--
-- Days and hours are of UTC, by the pool's clock. A lease that runs over midnight is split: its
-- time exactly, what hosts have seen of it in proportion.

local MOST_FOLDED = 64
local DAY_MS, HOUR_MS = 86400000, 3600000
local HISTORY_LEASES, USAGE_DAYS = 10000, 400   -- where a policy of an older pool says nothing
-- Sums by name, in the order in which they are shown
local SUMS = { 'leases', 'held_ms', 'gpu_ms', 'mb_ms', 'known_gpu_ms', 'busy_gpu_ms',
  'above_mb_ms', 'energy_mj', 'waits', 'waited_ms' }
local PEAKS = { 0.1, 0.25, 0.5, 0.75, 0.9, 1 }
local words_of, whole = broker.words_of, broker.whole_text

-- The day's name, as 2026-11-30: the calendar of Gregory, with years that begin in March.
local function day_name(at_ms)
  local z = math.floor(at_ms / DAY_MS) + 719468
  local era = math.floor(z / 146097)
  local of_era = z - era * 146097
  local year = math.floor((of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524)
    - math.floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local march = math.floor((5 * of_year + 2) / 153)
  local month = march < 10 and march + 3 or march - 9
  local day = of_year - math.floor((153 * march + 2) / 5) + 1
  return format('%04d-%02d-%02d', year + era * 400 + (month <= 2 and 1 or 0), month, day)
end

-- How many ms a lease was held, and what each of them adds to the sums, by what hosts have seen of
-- it. What `history` tells goes into e.
local function reckon(e, uses)
  local held_ms, gpus = math.max(0, e.ended_at_ms - e.granted_at_ms), e.gpus + 0
  local devices, mb, peak_mb, known_ms, busy_ms, energy_mj = 0, 0, 0, 0, 0, nil
  for uuid, each_mb in string.gmatch(e.devices or '', '([^,]+)=(%d+)') do
    local use = uses[uuid] or {}
    devices, mb = devices + 1, mb + each_mb
    peak_mb = peak_mb and use.peak_mb and peak_mb + use.peak_mb
    known_ms, busy_ms = known_ms + (use.known_ms or 0), busy_ms + (use.busy_ms or 0)
    if use.energy_mj then energy_mj = (energy_mj or 0) + use.energy_mj end
  end
  e.mb, e.held_ms, e.peak_mb, e.energy_mj = mb, held_ms, devices > 0 and peak_mb or nil, energy_mj
  if known_ms > 0 then e.known_ms, e.busy_ms = known_ms, busy_ms end
  local all_ms = math.max(1, held_ms * devices, known_ms)   -- more than all is a clock that stepped
  return held_ms, { held_ms = 1, gpu_ms = gpus, mb_ms = mb, known_gpu_ms = gpus * known_ms / all_ms,
    busy_gpu_ms = gpus * busy_ms / all_ms,
    above_mb_ms = e.peak_mb and math.max(0, mb - e.peak_mb) or 0,
    energy_mj = (energy_mj or 0) / math.max(1, held_ms) }
end

-- Sums, and what is to be added to them.

-- Add to the sums of a field of a key, which are written at the end: so many ms at those rates.
-- `ends_ms`: the end of the key's day.
local function add(adds, key, field, rates, ms, ends_ms)
  local of = adds[key] or { fields = {}, ends_ms = ends_ms }
  local sums = of.fields[field] or {}
  adds[key], of.fields[field] = of, sums
  for name, rate in pairs(rates) do sums[name] = (sums[name] or 0) + rate * ms end
  return sums
end

-- A lease, and its wait, count on the day on which it ended.
local function add_once(sums, e)
  sums.leases = (sums.leases or 0) + 1
  if e.waited_ms then
    sums.waits, sums.waited_ms = (sums.waits or 0) + 1, (sums.waited_ms or 0) + e.waited_ms
  end
end

-- Spread what a host lent within a day over its hours.
local function add_hours(sums, day_ms, from_ms, to_ms, gpus)
  local hours = sums.hours or {}
  sums.hours = hours
  local first = math.floor((from_ms - day_ms) / HOUR_MS)
  for hour = first, math.min(23, math.floor((to_ms - day_ms) / HOUR_MS)) do
    local at_ms = day_ms + hour * HOUR_MS
    local ms = math.min(to_ms, at_ms + HOUR_MS) - math.max(from_ms, at_ms)
    hours[hour + 1] = (hours[hour + 1] or 0) + ms * gpus
  end
end

-- Add an ended lease to the days on which it ran, but for those before `oldest_ms`.
local function add_days(adds, e, rates, oldest_ms)
  local from_ms, ended_ms = e.granted_at_ms + 0, math.max(e.granted_at_ms, e.ended_at_ms)
  if from_ms < oldest_ms then from_ms = math.min(oldest_ms, ended_ms) end
  repeat
    local day_ms = from_ms - from_ms % DAY_MS
    local next_ms, key = day_ms + DAY_MS, prefix .. 'usage:' .. day_name(day_ms)
    local to_ms = math.min(ended_ms, next_ms)
    local who = add(adds, key, e.team .. ' ' .. e.agent .. ' ' .. e.model, rates, to_ms - from_ms,
      next_ms)
    local where = add(adds, key .. ':hosts', e.host .. '|' .. e.model, rates, to_ms - from_ms,
      next_ms)
    add_hours(where, day_ms, from_ms, to_ms, e.gpus + 0)
    if to_ms == ended_ms then
      add_once(who, e)
      add_once(where, e)
    end
    from_ms = to_ms
  until to_ms == ended_ms
end

-- Sums as words, with what was there before.
local function sums_text(line, sums)
  local before, out = words_of(line or ''), {}
  for _, name in ipairs(SUMS) do
    local n = (before[name] or 0) + (sums[name] or 0)
    if n >= 0.5 then out[#out + 1] = name .. '=' .. whole(n) end
  end
  if sums.hours then
    local hours, at = {}, 0
    for n in string.gmatch(before.hours or '', '%d+') do at, hours[at + 1] = at + 1, n + 0 end
    for hour = 1, 24 do hours[hour] = whole((hours[hour] or 0) + (sums.hours[hour] or 0)) end
    out[#out + 1] = 'hours=' .. table.concat(hours, ',')
  end
  return table.concat(out, ' ')
end

-- The sums of all keys that are to be added to, as they are to be written. They are read here.
local function new_sums(adds)
  local all = {}
  for key, of in pairs(adds) do
    local fields, set = {}, {}
    for field in pairs(of.fields) do fields[#fields + 1] = field end
    for i, line in ipairs(call('HMGET', key, unpack(fields))) do
      set[2 * i - 1], set[2 * i] = fields[i], sums_text(line, of.fields[fields[i]])
    end
    all[#all + 1] = { key = key, set = set, ends_ms = of.ends_ms }
  end
  return all
end

local function tell_history(e, most)
  local said = {}
  for _, name in ipairs({ 'token', 'agent', 'team', 'owner', 'host', 'model', 'devices', 'outcome',
    'granted_at_ms', 'ended_at_ms', 'waited_ms', 'gpus', 'mb', 'known_ms', 'busy_ms', 'peak_mb',
    'energy_mj' }) do
    local value = e[name]
    if value and value ~= '' then
      said[#said + 1], said[#said + 2] = name, type(value) == 'number' and whole(value) or value
    end
  end
  call('XADD', prefix .. 'history', 'MAXLEN', '~', text(most), '*', unpack(said))
end

-- The bucket of a lease by the part of what it asked that it used.
local function peak_bucket(e)
  local part = e.peak_mb / math.max(1, e.mb)
  for _, most in ipairs(PEAKS) do
    if part <= most then return most end
  end
  return '+Inf'
end

-- Fold the oldest lines, of leases that ended before that time. Is something left?
local function fold(before_ms)
  local lines, ended = call('LRANGE', prefix .. 'ended', '0', text(MOST_FOLDED - 1)), {}
  for i, line in ipairs(lines) do
    local e = words_of(line)
    if e.ended_at_ms + 0 > before_ms then break end
    e.host, e.model = string.match(line, ' on ([^|]*)|(.*)$')
    ended[i] = e
  end
  if not ended[1] then return false end
  local keep_days, most = unpack(call('HMGET', POOL, 'usage_days', 'history_leases'))
  local keep_ms, adds, peaks = (keep_days or USAGE_DAYS) * DAY_MS, {}, {}
  local oldest_ms, total = ctx.now - ctx.now % DAY_MS - keep_ms, prefix .. 'usage_total'
  local uses, seen_of = broker.uses_of(ended)
  for _, e in ipairs(ended) do
    local held_ms, rates = reckon(e, uses[e.token])
    add_days(adds, e, rates, oldest_ms)
    add_once(add(adds, total, e.team, rates, held_ms), e)
    if e.peak_mb then
      local bucket = 'peak ' .. peak_bucket(e)
      peaks[bucket] = (peaks[bucket] or 0) + 1
    end
  end
  local sums = new_sums(adds)

  call('LTRIM', prefix .. 'ended', text(#ended), '-1')
  for uuid, tokens in pairs(seen_of) do call('HDEL', prefix .. 'use:' .. uuid, unpack(tokens)) end
  for _, of in ipairs(sums) do
    call('HSET', of.key, unpack(of.set))
    local keep_for_ms = of.ends_ms and math.max(1, of.ends_ms + keep_ms - ctx.now)
    if keep_for_ms then call('PEXPIRE', of.key, text(keep_for_ms)) end
  end
  for bucket, n in pairs(peaks) do call('HINCRBY', total, bucket, text(n)) end
  for _, e in ipairs(ended) do tell_history(e, (most or HISTORY_LEASES) + 0) end
  return #ended == MOST_FOLDED
end

-- Fold what ended before that time. Is something left? A sum that a hand has made another type of
-- key stops no release and no reaper: the lines are dropped, and counted.
function broker.fold(before_ms)
  local done, more = pcall(fold, before_ms)
  if done then return more end
  call('LTRIM', prefix .. 'ended', text(MOST_FOLDED), '-1')
  broker.count('folds_failed')
  return false
end
