-- unleased: memory of a device that others than our leases use. Only report needs this file, and
-- the end of a cooling.
--
-- A lease that cools has its memory withheld until its grace is over, or a sample proves it free.
-- What its processes use then is unleased; what they use before is withheld already. Which of both
-- it is differs from lease to lease on one device, so a host says it of each.

-- Parse the report of the leases that cool on a device; ctx.bad remembers what is not well-formed.
function broker.cooling_said(list)
  local found = {}
  for each in string.gmatch(list, '[^,]+') do
    local token, ended_ms, uses_mb, unsure_mb = string.match(each, '^([%w._-]+)=(%d+):(%d+):(%d+)$')
    if not token or #ended_ms > 13 or #uses_mb > 13 or #unsure_mb > 13 then
      ctx.bad = ctx.bad or 'cooling'
      break
    end
    found[#found + 1] = { token = token, ended_ms = ended_ms + 0, uses_mb = uses_mb + 0,
      unsure_mb = unsure_mb + 0 }
  end
  return found
end

-- Sums of MiB over the leases that cool. `stays_mb` is still used by those that are withheld here,
-- `gone_mb` by those that are not any more: a proof has ended their grace early, or it was over
-- before this report came. `unlisted_mb`: part of `stays_mb` of which the host names no lease.
-- `unsure_mb` is held by those that are withheld and whose processes are not known, `lost_mb` by
-- such as are not withheld any more.
local function cooling(d, said, cooled_at_ms)
  local listed_mb, sums = 0, { gone_mb = 0, lost_mb = 0 }
  for _, each in ipairs(said.cools or {}) do
    listed_mb = listed_mb + each.uses_mb
    if each.ended_ms <= cooled_at_ms or not call('ZSCORE', DEADLINES, each.token) then
      sums.gone_mb, sums.lost_mb = sums.gone_mb + each.uses_mb, sums.lost_mb + each.unsure_mb
    end
  end
  local cooling_used_mb = math.max((said.cooling_used_mb or 0) + 0, listed_mb)
  sums.stays_mb = math.min(cooling_used_mb - sums.gone_mb, d.withheld_mb)
  sums.gone_mb = cooling_used_mb - sums.stays_mb
  sums.unlisted_mb = math.min(cooling_used_mb - listed_mb, sums.stays_mb)
  sums.unsure_mb = math.max(0, (said.cooling_unattributed_mb or 0) - sums.lost_mb)
  return sums
end

-- Settle the memory that is used by others than our leases: at most `most`, at least `least`. What
-- lies between is of leases or of others: there unleased falls only when `most` proves it. A sample
-- older than one that came before can only raise it. `was`: the device's fields `withheld_at_ms`
-- (of the last lease that began to cool), `newest_ms` (of the newest sample), `cooled_at_ms`,
-- `raised_mb`. What is to be written is added to `fields`.
function broker.settle_unleased(d, said, sampled_ms, was, fields)
  local used_mb, reported_unleased_mb = tonumber(said.used_mb), tonumber(said.reported_unleased_mb)
  local most, least, cools = used_mb, nil, nil
  if reported_unleased_mb then
    cools = cooling(d, said, was.cooled_at_ms)
    most = reported_unleased_mb + cools.gone_mb
    least = most - math.max(0, (said.unattributed_mb or 0) - cools.lost_mb)
  elseif used_mb then
    least = used_mb - d.leased_mb - d.withheld_mb
  else
    return
  end
  local n, unleased_mb, raised_mb = #fields, math.max(d.unleased_mb, least), was.raised_mb
  local function write(field, value) fields[n + 1], fields[n + 2], n = field, value, n + 2 end
  if sampled_ms >= was.newest_ms then
    local gone
    if cools then
      gone = cools.stays_mb == 0 and (cools.unsure_mb == 0 or most <= d.unleased_mb)
    else
      gone = used_mb <= d.leased_mb + d.unleased_mb
    end
    if d.withheld_mb > 0 and sampled_ms > was.withheld_at_ms and gone then
      if not cools then least = least + d.withheld_mb end
      d.withheld_mb = 0
      write('withheld_mb', '0')
      write('cooled_at_ms', text(was.withheld_at_ms))
    end
    unleased_mb, raised_mb = math.min(most, math.max(d.unleased_mb, least)), 0
    write('sampled_ms', text(sampled_ms))
    if cools then
      write('cooling', said.cooling or '')
      write('cooling_used_mb', text(cools.unlisted_mb))
    end
  elseif unleased_mb > d.unleased_mb then
    raised_mb = raised_mb + unleased_mb - math.max(0, d.unleased_mb)
  end
  d.unleased_mb = math.max(0, unleased_mb)
  write('unleased_mb', text(d.unleased_mb))
  if raised_mb ~= was.raised_mb then write('raised_mb', text(raised_mb)) end
end

-- The grace of a lease that had `mb` of d is over: what its processes have been seen to use is
-- unleased from now on, but for what an older sample has counted already. `cooling`, `unlisted_mb`
-- and `raised_mb`: the device's fields `cooling`, `cooling_used_mb` and `raised_mb`.
function broker.end_withholding(d, token, mb, cooling, unlisted_mb, raised_mb)
  local key, stays_mb, of = prefix .. 'device:' .. d.uuid, nil, ',' .. token .. '='
  local _, at = find(',' .. cooling, of, 1, true)
  if at then
    stays_mb = math.min(mb, string.match(cooling, '^%d+:(%d+)', at) + 0)
  else
    stays_mb = math.min(mb, unlisted_mb)
    unlisted_mb = unlisted_mb - stays_mb
  end
  local known_mb = math.min(stays_mb, raised_mb)
  d.withheld_mb, d.unleased_mb = d.withheld_mb - mb, d.unleased_mb + stays_mb - known_mb
  call('HSET', key, 'withheld_mb', text(d.withheld_mb), 'unleased_mb', text(d.unleased_mb),
    'cooling_used_mb', text(unlisted_mb),
    'raised_mb', text(raised_mb - known_mb))
  broker.index(d)
end
