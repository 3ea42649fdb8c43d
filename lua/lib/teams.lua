-- teams: quotas, and the order between teams that wait.
--
--   teams   team -> its policy as one line of words, `weight=2 nominal_mb=98304`; a word that is
--           not there means no limit, and of `weight` 1, of `nominal_mb` 0; `nominal_mb@L4=1024`
--           is of a model: quotas.lua
--
-- A pool in which no team has a policy (field `teams` of the pool is 0) knows sums by team and no
-- more. With policies, a team's nominal quota is its own: a head whose lease stays within it comes
-- before all that would borrow. What a team leaves of its quota the others may borrow, up to its
-- `lend_mb` and their `borrow_mb`. Borrowers go by their share: what their team has used lately and
-- what it has now, by its weight.
--
-- `team <name>#use` of `agents` is MiB-seconds and, behind a @, when that was: use halves in
-- `half_life_s`, and what a team holds accrues. Both are exact at each change of what it holds, so
-- there is no period (0 = use never decays).

local LOOK_AHEAD_S = 60    -- of what a team holds, which counts as used already
local CREDIT_S = 60
local LN2 = 0.6931471805599453
local NO_POLICY = { weight = 1, nominal_mb = 0, borrow_mb = NEVER, lend_mb = NEVER,
  max_priority = 9,
  max_leases = NEVER, max_waiters = NEVER, max_hold_ms = 0, max_ttl_ms = 0, listed = false }
local parsed, parsed_count, MOST_PARSED = {}, 0, 256

-- A team's policy from its line. Lines are the same for many calls.
local function parse(line)
  local known = parsed[line]
  if known then return known end
  local said = {}
  local models, named = nil, nil
  for part in string.gmatch(line, '[^ ]+') do
    local name, model, number = string.match(part, '^([%l_]+)@?([^=]*)=(%d+)$')
    if name and model == '' then said[name] = number + 0 end
    if name and model ~= '' then
      models, named, model = models or {}, named or {}, string.gsub(model, '%+', ' ')
      if not models[model] then
        models[model], named[#named + 1] = { nominal_mb = 0, borrow_mb = NEVER }, model
      end
      models[model][name] = number + 0
    end
  end
  local function of(name) return said[name] or NEVER end
  known = { weight = said.weight or 1, nominal_mb = said.nominal_mb or 0,
    borrow_mb = of('borrow_mb'), lend_mb = of('lend_mb'), max_priority = said.max_priority or 9,
    max_leases = of('max_leases'), max_waiters = of('max_waiters'),
    max_hold_ms = (said.max_hold_s or 0) * 1000, max_ttl_ms = (said.max_ttl_s or 0) * 1000,
    listed = true, models = models, named = named }
  if parsed_count == MOST_PARSED then parsed, parsed_count = {}, 0 end
  parsed[line], parsed_count = known, parsed_count + 1
  return known
end

broker.policy_of_line = parse

-- The policy of a team, as it stands at this moment; of none, that of the default team.
function broker.team_policy(team)
  if ctx.pool.teams == 0 then return NO_POLICY end
  team = team or DEFAULT_TEAM
  local known = ctx.policies[team]
  if not known then
    local line = call('HGET', prefix .. 'teams', team)
    known = line and parse(line) or NO_POLICY
    ctx.policies[team] = known
  end
  return known
end

-- Is it a team that may ask? Without policies any is, with them those that have one, and `default`.
function broker.team_known(team)
  return ctx.pool.teams == 0 or team == DEFAULT_TEAM or broker.team_policy(team).listed
end

-- What all other teams keep: what they hold, and of the nominal quota what they do not lend. The
-- default team keeps what it holds without a policy, too.
local function kept_by_others(team)
  local lines, sum = call('HGETALL', prefix .. 'teams'), 0
  local fields, policies, names, listed = {}, {}, {}, false
  for i = 1, #lines, 2 do listed = listed or lines[i] == DEFAULT_TEAM end
  if not listed then lines[#lines + 1], lines[#lines + 2] = DEFAULT_TEAM, '' end
  for i = 1, #lines, 2 do
    if lines[i] ~= (team or DEFAULT_TEAM) then
      local n = #fields + 1
      fields[n], policies[n], names[n] = 'team ' .. lines[i], parse(lines[i + 1]), lines[i]
    end
  end
  if not fields[1] then return 0 end
  local held = call('HMGET', prefix .. 'agents', unpack(fields))
  for i, of in ipairs(policies) do
    local known = ctx.agents[fields[i]]
    local mb = known and known.mb or (held[i] or 0) + 0
    local own_mb = of.nominal_mb - of.lend_mb
    if of.models and own_mb > 0 then   -- what it has of those models is no part of this quota
      local _, _, sums = broker.sums_of(names[i], nil, fields[i])
      own_mb = own_mb + mb - broker.quota(names[i], sums, '*').mb
    end
    sum = sum + math.max(mb, own_mb)
  end
  return sum
end

-- The most MiB that a team may hold now of one of its quotas: the nominal one, and beyond it what
-- it may borrow and others lend. `has`: what it holds of that; the team's sums, without quotas by
-- model.
function broker.team_limit_mb(team, sums, has)
  local of = has.nominal_mb and has or broker.team_policy(team)
  local most_mb = of.nominal_mb + of.borrow_mb
  if ctx.pool.team_lend_limits == 0 or of.borrow_mb == 0 then return most_mb end
  local left_mb = broker.policy_of('capacity_mb') - kept_by_others(team) - (sums.mb - has.mb)
  return math.max(of.nominal_mb, math.min(most_mb, left_mb), has.mb > most_mb and most_mb or 0)
end

-- Use, and the share by which borrowers are ordered.

-- The use that was written for a team, into its sums.
function broker.read_use(t, said)
  local use, at_ms = string.match(said or '', '^([^@]+)@(%d+)$')
  t.use, t.use_ms = (use or 0) + 0, (at_ms or ctx.now) + 0
end

function broker.use_text(t) return format('%.17g', t.use) .. '@' .. text(t.use_ms) end

-- What a use has become after so long, in which `mb` were held.
local function decayed(use, mb, for_ms, half_life_ms)
  if for_ms <= 0 then return use end
  if half_life_ms == 0 then return use + mb * for_ms / 1000 end
  local left = 2 ^ (-for_ms / half_life_ms)
  return use * left + mb * (half_life_ms / 1000 / LN2) * (1 - left)
end

-- F1: bring a team's use up to now, before what it holds changes.
function broker.accrue(t)
  t.use = decayed(t.use, t.mb, ctx.now - t.use_ms, ctx.pool.half_life_ms)
  t.use_ms, t.used = math.max(t.use_ms, ctx.now), true
end

-- F2: the smaller comes first. A team of weight 0 comes after all others.
function broker.share(team, t)
  local weight = broker.team_policy(team).weight
  local use = decayed(t.use, t.mb, ctx.now - t.use_ms, ctx.pool.half_life_ms)
    + LOOK_AHEAD_S * t.mb
  if weight == 0 then return 1e300 + use * 1e280 end
  return use / weight
end

-- Teams with a policy, the default team, and `team`: each name once.
local function teams_with(team)
  local names, there = call('HKEYS', prefix .. 'teams'), {}
  for _, name in ipairs(names) do there[name] = true end
  for _, name in ipairs({ DEFAULT_TEAM, team }) do
    if not there[name] then names[#names + 1], there[name] = name, true end
  end
  return names
end

-- Teams of which a use is written.
local function teams_with_use()
  local names = {}
  for _, field in ipairs(call('HKEYS', prefix .. 'agents')) do
    names[#names + 1] = string.match(field, '^team (.*)#use$')
  end
  return names
end

-- The half-life is another from now on: bring the use of all teams up to now by the one before.
function broker.accrue_all()
  for _, name in ipairs(teams_with_use()) do
    local _, _, t = broker.sums_of(name, nil, 'team ' .. name)
    broker.accrue(t)
  end
end

-- The use of each team that may wait by these policies, names and lines in turn, begins now, unless
-- it is known. Of what teams used before any had a policy nothing is.
local function begin_use(teams, before)
  local agents = prefix .. 'agents'
  if before == 0 or not teams[1] then
    for _, name in ipairs(teams_with_use()) do call('HDEL', agents, 'team ' .. name .. '#use') end
  end
  if not teams[1] then return end
  local function begin_at_zero(name)
    local field = 'team ' .. name .. '#use'
    if not call('HGET', agents, field) then call('HSET', agents, field, '0@' .. text(ctx.now)) end
  end
  begin_at_zero(DEFAULT_TEAM)
  for i = 1, #teams, 2 do begin_at_zero(teams[i]) end
end

-- F3: a team begins to wait. Use of an idle pool took nothing from those that wait now, so past use
-- counts for CREDIT_S of the largest device at most: what a team has used less than that behind the
-- others that wait is taken as used.
function broker.join_team(q)
  if ctx.pool.teams == 0 or ctx.pool.waiting == 0 then return end
  local _, _, joins = broker.parties(q)
  if joins.waiters > 0 then return end
  local waits, top = {}, 0
  for _, name in ipairs(teams_with(q.team)) do
    local _, _, t = broker.sums_of(q.agent, nil, 'team ' .. name)
    local weight = broker.team_policy(name).weight
    if (t.waiters > 0 or t == joins) and weight > 0 then
      broker.accrue(t)
      waits[#waits + 1], top = { t, weight }, math.max(top, t.use / weight)
    end
  end
  local largest = call('ZRANGE', prefix .. 'fits:*', '0', '0', 'REV', 'WITHSCORES')[2] or 0
  local floor = top - CREDIT_S * largest
  for _, one in ipairs(waits) do one[1].use = math.max(one[1].use, one[2] * floor) end
end

-- Policies that an operator sets.

local MOST_TEAMS, LONGEST_LINE, MOST_MODELS = 256, 4096, 16
local FIELDS = {   -- the least and the most of each
  weight = { 0, 10000 }, nominal_mb = { 0, 9999999999999 }, borrow_mb = { 0, 9999999999999 },
  lend_mb = { 0, 9999999999999 }, max_priority = { 0, 9 }, max_leases = { 0, 1000000 },
  max_waiters = { 0, 1000000 }, max_hold_s = { 0, 315360000 }, max_ttl_s = { 0, 604800 },
}
local OF_MODELS = { nominal_mb = true, borrow_mb = true }

-- Take one team of the arguments, name and line, into the list; what is wrong is `ctx.bad`.
function broker.team_at(i, teams)
  local name, line = word(i, 'team', '^[%w._-]+$', 64), ARGV[i + 1] or ''
  if not ARGV[i + 1] or #line > LONGEST_LINE or teams[name] or #teams == 2 * MOST_TEAMS then
    ctx.bad = ctx.bad or 'teams'
  end
  for part in string.gmatch(line, '[^ ]+') do
    local field, model, number = string.match(part, '^([%l_]+)(@?[^=]*)=(%d+)$')
    local bounds = FIELDS[field or '']
    local n = bounds and #number <= 13 and number + 0
    if model and model ~= '' and not (OF_MODELS[field] and #model <= 65
      and find(model, '^@[%w._+-]+$')) then
      n = nil
    end
    if not n or n < bounds[1] or n > bounds[2] then ctx.bad = ctx.bad or field or 'teams' end
  end
  if not ctx.bad and #(parse(line).named or {}) > MOST_MODELS then ctx.bad = 'teams' end
  teams[name], teams[#teams + 1], teams[#teams + 2] = true, name, line
end

-- Set the policies of all teams; `before`: how many there were.
function broker.set_teams(teams, before, version, by)
  local key, lends = prefix .. 'teams', false
  broker.flush_agents()   -- they were read without their use, or by another policy
  broker.model_sums.forget()
  call('DEL', key)
  if teams[1] then call('HSET', key, unpack(teams)) end
  for i = 2, #teams, 2 do lends = lends or string.find(teams[i], 'lend_mb=', 1, true) ~= nil end
  ctx.agents, ctx.policies, ctx.teams = {}, {}, {}
  begin_use(teams, (before or 0) + 0)
  broker.model_sums.count_anew(teams)
  set_pool('teams', #teams / 2)
  set_pool('team_lend_limits', lends and 1 or 0)
  broker.preemption.withdraw_all()
  broker.event('teams', 'teams', text(#teams / 2), 'version', text(version), 'by', by)
end
