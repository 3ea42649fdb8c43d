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
local HISTORY_LEASES, USAGE_DAYS = '10000', 400   -- where a policy of an older pool says nothing
-- Sums by name; those that grow with each ms are the first
local SUMS = { 'held_ms', 'gpu_ms', 'mb_ms', 'known_gpu_ms', 'busy_gpu_ms', 'above_mb_ms',
  'energy_mj', 'leases', 'waits', 'waited_ms' }
local LEASES, WAITS, WAITED = 8, 9, 10
local SHOWN = { LEASES, 1, 2, 3, 4, 5, 6, 7, WAITS, WAITED }   -- the order in which they are shown
local LINE = '^(token=(%S+) agent=(%S+) team=(%S+) owner=%S* devices=(%S*) gpus=(%S+) outcome=%l+'
  .. ' granted_at_ms=(%d+) ended_at_ms=(%d+) waited_ms=(%d*)) on ([^|]*)|(.*)$'
local SEEN = { 'known_ms', 'busy_ms', 'peak_mb', 'energy_mj' }
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

-- A lease of a line, or nil: it is no such line, a hand has put it there.
local function read_line(line)
  local _, _, words, token, agent, team, devices, gpus, granted_ms, ended_ms, waited_ms, host,
    model = find(line, LINE)
  if not words then return nil end
  granted_ms, ended_ms = granted_ms + 0, ended_ms + 0
  return { words = words, token = token, team = team, who = team .. ' ' .. agent .. ' ' .. model,
    where = host .. '|' .. model, devices = devices, gpus = tonumber(gpus) or 0,
    granted_ms = granted_ms, ended_ms = math.max(granted_ms, ended_ms),
    waited_ms = waited_ms ~= '' and waited_ms + 0, mb = 0, known_ms = false, busy_ms = false,
    peak_mb = false, energy_mj = false }
end

-- What each ms of a lease adds to the first sums, by what hosts have seen of it, in their order.
-- What `history` tells of that goes into e.
local function reckon(e, uses)
  local held_ms, gpus = e.ended_ms - e.granted_ms, e.gpus
  local devices, mb, peak_mb, known_ms, busy_ms, energy_mj, seen = 0, 0, 0, 0, 0, 0, false
  for uuid, each_mb in string.gmatch(e.devices, '([^,]+)=(%d+)') do
    local use = uses and uses[uuid]
    devices, mb = devices + 1, mb + each_mb
    peak_mb = peak_mb and use and use.peak_mb and peak_mb + use.peak_mb
    if use then
      known_ms, busy_ms = known_ms + (use.known_ms or 0), busy_ms + (use.busy_ms or 0)
      energy_mj, seen = energy_mj + (use.energy_mj or 0), seen or use.energy_mj
    end
  end
  e.mb, e.peak_mb, e.energy_mj = mb, devices > 0 and peak_mb or false, seen and energy_mj
  if known_ms > 0 then e.known_ms, e.busy_ms = known_ms, busy_ms end
  if not uses then return { 1, gpus, mb } end
  local all_ms = math.max(1, held_ms * devices, known_ms)   -- more than all: a clock stepped
  return { 1, gpus, mb, gpus * known_ms / all_ms, gpus * busy_ms / all_ms,
    e.peak_mb and math.max(0, mb - e.peak_mb) or 0, energy_mj / math.max(1, held_ms) }
end

-- Sums, and what is to be added to them.

-- The sums of a field that are to be added to, by their order in SUMS.
local function sums_in(fields, field)
  local sums = fields[field]
  if not sums then
    sums = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }
    fields[field] = sums
  end
  return sums
end

local function add(sums, rates, ms)
  for i = 1, #rates do sums[i] = sums[i] + rates[i] * ms end
end

-- A lease, and its wait, count on the day on which it ended.
local function add_once(sums, e)
  sums[LEASES] = sums[LEASES] + 1
  if e.waited_ms then
    sums[WAITS], sums[WAITED] = sums[WAITS] + 1, sums[WAITED] + e.waited_ms
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

-- The day that begins then, among those that are to be added to: fields by who and by where.
local function day_in(days, day_ms)
  local day = days[day_ms]
  if not day then
    day = { key = prefix .. 'usage:' .. day_name(day_ms), who = {}, where = {} }
    days[day_ms] = day
  end
  return day
end

-- Add an ended lease to the days on which it ran, but for those before `oldest_ms`.
local function add_days(days, e, rates, oldest_ms)
  local from_ms, ended_ms = e.granted_ms, e.ended_ms
  if from_ms < oldest_ms then from_ms = math.min(oldest_ms, ended_ms) end
  repeat
    local day_ms = from_ms - from_ms % DAY_MS
    local day, to_ms = day_in(days, day_ms), math.min(ended_ms, day_ms + DAY_MS)
    local who, where = sums_in(day.who, e.who), sums_in(day.where, e.where)
    add(who, rates, to_ms - from_ms)
    add(where, rates, to_ms - from_ms)
    add_hours(where, day_ms, from_ms, to_ms, e.gpus)
    if to_ms == ended_ms then
      add_once(who, e)
      add_once(where, e)
    end
    from_ms = to_ms
  until to_ms == ended_ms
end

-- Sums as words, with what was there before. A word that is no number counts as 0.
local function sums_text(line, sums)
  local before, out = words_of(line or ''), {}
  for _, i in ipairs(SHOWN) do
    local name = SUMS[i]
    local was = before[name]
    local n = (was and find(was, '^%d+$') and was or 0) + sums[i]
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

-- Add to `all` a key's fields as they are to be written, with what is to be added to them; they are
-- read here. `ends_ms`: the end of the key's day. Is the key what it has to be?
local function new_sums(all, key, sums, ends_ms)
  local fields, set = {}, {}
  for field in pairs(sums) do fields[#fields + 1] = field end
  local read, lines = pcall(call, 'HMGET', key, unpack(fields))
  if not read then return false end
  for i, line in ipairs(lines) do
    set[2 * i - 1], set[2 * i] = fields[i], sums_text(line, sums[fields[i]])
  end
  all[#all + 1] = { key = key, set = set, ends_ms = ends_ms }
  return true
end

local function add_peaks(key, peaks)
  for bucket, n in pairs(peaks) do call('HINCRBY', key, bucket, text(n)) end
end

-- Remember finished leases: their lines, with what hosts have seen of them.
local function tell_history(ended, most)
  for _, e in ipairs(ended) do
    local seen = ''
    for _, name in ipairs(SEEN) do
      if e[name] then seen = seen .. ' ' .. name .. '=' .. whole(e[name]) end
    end
    call('XADD', prefix .. 'history', 'MAXLEN', '~', most, '*', 'lease', e.words .. ' mb='
      .. text(e.mb) .. seen .. ' on ' .. e.where)
  end
end

-- The bucket of a lease by the part of what it asked that it used.
local function peak_bucket(e)
  local part = e.peak_mb / math.max(1, e.mb)
  for _, most in ipairs(PEAKS) do
    if part <= most then return most end
  end
  return '+Inf'
end

-- Fold the oldest lines, of leases that ended before that time. Is something left? A key that a
-- hand has spoilt goes without these leases, which is counted; all others have them.
local function fold(before_ms)
  local lines, ended, folded = call('LRANGE', prefix .. 'ended', '0', text(MOST_FOLDED - 1)), {}, 0
  for i, line in ipairs(lines) do
    local e = read_line(line)
    if e and e.ended_ms > before_ms then break end
    ended[#ended + 1], folded = e, i
  end
  if folded == 0 then return false end
  local keep_days, most = unpack(call('HMGET', POOL, 'usage_days', 'history_leases'))
  local keep_ms, days, teams, peaks = (keep_days or USAGE_DAYS) * DAY_MS, {}, {}, {}
  local oldest_ms, total = ctx.now - ctx.now % DAY_MS - keep_ms, prefix .. 'usage_total'
  local uses, seen_of = broker.uses_of(ended)
  for _, e in ipairs(ended) do
    local rates, team = reckon(e, uses[e.token]), sums_in(teams, e.team)
    add_days(days, e, rates, oldest_ms)
    add(team, rates, e.ended_ms - e.granted_ms)
    add_once(team, e)
    if e.peak_mb then
      local bucket = 'peak ' .. peak_bucket(e)
      peaks[bucket] = (peaks[bucket] or 0) + 1
    end
  end
  local all, sound = {}, true
  for day_ms, day in pairs(days) do
    sound = new_sums(all, day.key, day.who, day_ms + DAY_MS) and sound
    sound = new_sums(all, day.key .. ':hosts', day.where, day_ms + DAY_MS) and sound
  end
  if ended[1] then sound = new_sums(all, total, teams) and sound end

  call('LTRIM', prefix .. 'ended', text(folded), '-1')
  for uuid, tokens in pairs(seen_of) do call('HDEL', prefix .. 'use:' .. uuid, unpack(tokens)) end
  for _, of in ipairs(all) do
    call('HSET', of.key, unpack(of.set))
    local keep_for_ms = of.ends_ms and math.max(1, of.ends_ms + keep_ms - ctx.now)
    if keep_for_ms then call('PEXPIRE', of.key, text(keep_for_ms)) end
  end
  sound = pcall(add_peaks, total, peaks) and sound
  sound = pcall(tell_history, ended, most or HISTORY_LEASES) and sound
  if not sound then broker.count('folds_failed') end
  return folded == MOST_FOLDED
end

-- Fold what ended before that time. Is something left? What a hand has spoilt stops no release and
-- no reaper: lines that cannot be folded at all are dropped, and counted.
function broker.fold(before_ms)
  local done, more = pcall(fold, before_ms)
  if done then return more end
  call('LTRIM', prefix .. 'ended', text(MOST_FOLDED), '-1')
  broker.count('folds_failed')
  return false
end
