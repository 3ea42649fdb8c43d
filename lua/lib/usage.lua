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

local MOST_FOLDED = 128
local DAY_MS = 86400000
local HISTORY_LEASES, USAGE_DAYS = '10000', 400   -- where a policy of an older pool says nothing
-- A line: what is the lease's own, and what it has in common with others
local LINE = '^token=(%S+) granted_at_ms=(%d+) ended_at_ms=(%d+) waited_ms=(%d*) ()'
local COMMON = '^outcome=%l+ agent=(%S+) team=(%S+) owner=%S* devices=(%S*) gpus=(%S+)'
  .. ' on ([^|]*|(.*))$'
local SEEN = { 'known_ms', 'busy_ms', 'peak_mb', 'energy_mj' }
local PEAKS = { 0.1, 0.25, 0.5, 0.75, 0.9, 1 }
-- From so many fields of a key on, how a new one is named: names of each job would fill the store
local OTHERS = {
  who = { { from = 500, each = '^(%S+) %S+', as = '%1 (others)' },
    { from = 1000, each = '^%S+ %S+', as = '(others) (others)' } },
  where = { { from = 5000, each = '^[^|]*', as = '(others)' } },
  teams = { { from = 500, each = '^.*$', as = '(others)' } } }
local sums, whole = broker.sums, broker.whole_text

-- What leases have in common whose lines have the same second half, or nil: it is none. `rates`:
-- what each ms of one adds to the first sums. `days`: the sums that it adds to, by day.
local function common(known, half)
  local of = known[half]
  if of then return of end
  local _, _, agent, team, devices, gpus, where, model = find(half, COMMON)
  if not agent then return nil end
  gpus = tonumber(gpus) or 0
  of = { team = team, who = team .. ' ' .. agent .. ' ' .. model, where = where, gpus = gpus,
    uuids = {}, mb = 0, rates = { 1, gpus, 0 }, days = {} }
  for uuid, mb in string.gmatch(devices, '([^,]+)=(%d+)') do
    of.uuids[#of.uuids + 1], of.mb = uuid, of.mb + mb
  end
  of.rates[3], known[half] = of.mb, of
  return of
end

-- A lease of a line, or nil: it is no such line, a hand has put it there.
local function read_line(line, known)
  local _, _, token, granted_ms, ended_ms, waited_ms, at = find(line, LINE)
  local of = token and common(known, string.sub(line, at))
  if not of then return nil end
  granted_ms, ended_ms = granted_ms + 0, ended_ms + 0
  if ended_ms < granted_ms then ended_ms = granted_ms end
  return { line = line, token = token, of = of, granted_ms = granted_ms, ended_ms = ended_ms,
    waited_ms = waited_ms }
end

-- What each ms of a lease adds to the first sums, in their order, by what hosts have seen of it.
-- What `history` tells of that goes into e.
local function reckon(e, uses)
  local of, held_ms = e.of, e.ended_ms - e.granted_ms
  if not uses then return of.rates end
  local devices, peak_mb, known_ms, busy_ms, energy_mj, seen = #of.uuids, 0, 0, 0, 0, false
  for _, uuid in ipairs(of.uuids) do
    local use = uses[uuid]
    peak_mb = peak_mb and use and use.peak_mb and peak_mb + use.peak_mb
    if use then
      known_ms, busy_ms = known_ms + (use.known_ms or 0), busy_ms + (use.busy_ms or 0)
      energy_mj, seen = energy_mj + (use.energy_mj or 0), seen or use.energy_mj
    end
  end
  e.peak_mb, e.energy_mj = peak_mb, seen and energy_mj
  if known_ms > 0 then e.known_ms, e.busy_ms = known_ms, busy_ms end
  local all_ms = math.max(1, held_ms * devices, known_ms)   -- more than all: a clock stepped
  return { 1, of.gpus, of.mb, of.gpus * known_ms / all_ms, of.gpus * busy_ms / all_ms,
    peak_mb and math.max(0, of.mb - peak_mb) or 0, energy_mj / math.max(1, held_ms) }
end

-- What leases of this kind add to on the day that begins then: sums by who and by where.
local function sums_on(of, days, day_ms)
  local both, day = of.days[day_ms], days[day_ms]
  if both then return both end
  if not day then
    day = { key = prefix .. 'usage:' .. sums.day_name(day_ms), who = {}, where = {} }
    days[day_ms] = day
  end
  both = { who = sums.of(day.who, of.who), where = sums.of(day.where, of.where) }
  of.days[day_ms] = both
  return both
end

-- Add an ended lease to the days on which it ran, but for those before `oldest_ms`. It counts, and
-- its wait, on the day on which it ended.
local function add_days(days, e, rates, oldest_ms)
  local from_ms, ended_ms, of = e.granted_ms, e.ended_ms, e.of
  if from_ms < oldest_ms then from_ms = math.min(oldest_ms, ended_ms) end
  repeat
    local day_ms, to_ms = from_ms - from_ms % DAY_MS, ended_ms
    if to_ms - day_ms > DAY_MS then to_ms = day_ms + DAY_MS end
    local both, last = sums_on(of, days, day_ms), to_ms == ended_ms and e
    sums.add(both.who, rates, to_ms - from_ms, last)
    sums.add(both.where, rates, to_ms - from_ms, last)
    sums.add_hours(both.where, day_ms, from_ms, to_ms, of.gpus)
    from_ms = to_ms
  until to_ms == ended_ms
end

local function add_peaks(key, peaks)
  for bucket, n in pairs(peaks) do call('HINCRBY', key, bucket, text(n)) end
end

-- Remember finished leases: their lines, with what hosts have seen of them.
local function tell_history(ended, most)
  for _, e in ipairs(ended) do
    local line, seen = e.line, ''
    for _, name in ipairs(SEEN) do
      if e[name] then seen = seen .. ' ' .. name .. '=' .. whole(e[name]) end
    end
    if seen ~= '' then
      line = string.sub(line, 1, -5 - #e.of.where) .. seen .. ' on ' .. e.of.where
    end
    call('XADD', prefix .. 'history', 'MAXLEN', '~', most, '*', 'lease', line)
  end
end

-- The bucket of a lease by the part of what it asked that it used.
local function peak_bucket(e)
  local part = e.peak_mb / math.max(1, e.of.mb)
  for _, most in ipairs(PEAKS) do
    if part <= most then return most end
  end
  return '+Inf'
end

-- Fold the oldest lines, of leases that ended before that time. Is something left? A key that a
-- hand has spoilt goes without these leases, which is counted; all others have them.
local function fold(before_ms)
  local lines = call('LRANGE', prefix .. 'ended', '0', text(MOST_FOLDED - 1))
  local ended, known, folded = {}, {}, 0
  for i, line in ipairs(lines) do
    local e = read_line(line, known)
    if e and e.ended_ms > before_ms then break end
    ended[#ended + 1], folded = e, i
  end
  if folded == 0 then return false end
  local keep_days, most = unpack(call('HMGET', POOL, 'usage_days', 'history_leases'))
  local keep_ms, days, teams, peaks = (keep_days or USAGE_DAYS) * DAY_MS, {}, {}, {}
  local oldest_ms, total = ctx.now - ctx.now % DAY_MS - keep_ms, prefix .. 'usage_total'
  local uses, seen_of = broker.uses_of(ended)
  for _, e in ipairs(ended) do
    local rates = reckon(e, uses[e.token])
    add_days(days, e, rates, oldest_ms)
    sums.add(sums.of(teams, e.of.team), rates, e.ended_ms - e.granted_ms, e)
    if e.peak_mb then
      local bucket = 'peak ' .. peak_bucket(e)
      peaks[bucket] = (peaks[bucket] or 0) + 1
    end
  end
  local all, sound = {}, true
  for day_ms, day in pairs(days) do
    local ends_ms = day_ms + DAY_MS
    sound = sums.prepare(all, day.key, day.who, OTHERS.who, ends_ms) and sound
    sound = sums.prepare(all, day.key .. ':hosts', day.where, OTHERS.where, ends_ms) and sound
  end
  if ended[1] then sound = sums.prepare(all, total, teams, OTHERS.teams) and sound end

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
