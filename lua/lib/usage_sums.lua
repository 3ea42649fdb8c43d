-- usage_sums: sums of use, as words, by day: usage.lua has what they are for.

local DAY_MS, HOUR_MS = 86400000, 3600000
-- Sums by name; those that grow with each ms are the first
local SUMS = { 'held_ms', 'gpu_ms', 'mb_ms', 'known_gpu_ms', 'busy_gpu_ms', 'above_mb_ms',
  'energy_mj', 'leases', 'waits', 'waited_ms' }
local LEASES, WAITS, WAITED = 8, 9, 10
local SHOWN = { LEASES, 1, 2, 3, 4, 5, 6, 7, WAITS, WAITED }   -- the order in which they are shown
local words_of, whole = broker.words_of, broker.whole_text

local sums = {}
broker.sums = sums

-- The day's name, as 2026-11-30: the calendar of Gregory, with years that begin in March.
function sums.day_name(at_ms)
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

-- The sums of a field that are to be added to, by their order in SUMS.
function sums.of(fields, field)
  local of = fields[field]
  if not of then
    of = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }
    fields[field] = of
  end
  return of
end

-- Add a time, by what each ms of it adds to the first sums. `e`: the lease counts, and its wait.
function sums.add(of, rates, ms, e)
  for i = 1, #rates do of[i] = of[i] + rates[i] * ms end
  if e then
    of[LEASES] = of[LEASES] + 1
    if e.waited_ms ~= '' then of[WAITS], of[WAITED] = of[WAITS] + 1, of[WAITED] + e.waited_ms end
  end
end

-- Spread what so many GPUs lent within a day over its hours.
function sums.add_hours(of, day_ms, from_ms, to_ms, gpus)
  local hours = of.hours or {}
  of.hours = hours
  repeat
    local hour = math.floor((from_ms - day_ms) / HOUR_MS) + 1
    local until_ms = math.min(to_ms, day_ms + hour * HOUR_MS)
    hours[hour] = (hours[hour] or 0) + (until_ms - from_ms) * gpus
    from_ms = until_ms
  until from_ms == to_ms
end

-- Sums as words, with what was there before. A word that is no number counts as 0.
local function sums_text(line, of)
  local before, out = words_of(line or ''), {}
  for _, i in ipairs(SHOWN) do
    local name = SUMS[i]
    local was = before[name]
    local n = (was and find(was, '^%d+$') and was or 0) + of[i]
    if n >= 0.5 then out[#out + 1] = name .. '=' .. whole(n) end
  end
  if of.hours then
    local hours = {}
    for n in string.gmatch(before.hours or '', '%d+') do hours[#hours + 1] = n end
    for hour = 1, 24 do
      local more = of.hours[hour]
      hours[hour] = more and whole((hours[hour] or 0) + more) or hours[hour] or '0'
    end
    out[#out + 1] = 'hours=' .. table.concat(hours, ',')
  end
  return table.concat(out, ' ')
end

-- Add what is to be added to one field to what is to be added to another.
local function join(into, of)
  for i = 1, #SUMS do into[i] = into[i] + of[i] end
  if of.hours then
    into.hours = into.hours or {}
    for hour, ms in pairs(of.hours) do into.hours[hour] = (into.hours[hour] or 0) + ms end
  end
end

-- The name under which a new field of a key with so many is added: its own, or that of the others.
local function name_in(field, count, others)
  for i = #others, 1, -1 do
    local of = others[i]
    if count >= of.from then return (string.gsub(field, of.each, of.as)) end
  end
  return field
end

-- The fields, sorted, and what a key has in each. New ones of a full key are joined.
local function read_fields(key, by_field, others)
  local fields, joined, count = {}, false, nil
  for field in pairs(by_field) do fields[#fields + 1] = field end
  table.sort(fields)
  local lines = call('HMGET', key, unpack(fields))
  for i, field in ipairs(fields) do
    if not lines[i] then
      count = count or call('HLEN', key)
      local name = name_in(field, count, others)
      if name == field then
        count = count + 1
      else
        join(sums.of(by_field, name), by_field[field])
        by_field[field], joined = nil, true
      end
    end
  end
  if joined then return read_fields(key, by_field, others) end
  return fields, lines
end

-- Add to `all` a key's fields as they are to be written, with what is to be added to them; they are
-- read here. `ends_ms`: the end of the key's day. Is the key what it has to be?
function sums.prepare(all, key, by_field, others, ends_ms)
  local read, fields, lines = pcall(read_fields, key, by_field, others)
  if not read then return false end
  local set = {}
  for i, field in ipairs(fields) do
    set[2 * i - 1], set[2 * i] = field, sums_text(lines[i], by_field[field])
  end
  all[#all + 1] = { key = key, set = set, ends_ms = ends_ms }
  return true
end
