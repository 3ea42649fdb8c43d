-- set_teams: the quotas of all teams at once. Teams that are not named have none any more.
--
-- KEYS[1]  base      gpu:{pool}
-- ARGV[1]  protocol  int
-- ARGV[2]  by        str   the operator or key that does it
-- ARGV[3]  version   int   of the policy that it was written against, else it is refused; empty = any
-- ARGV[4+] teams     str   name and line in turn, a line as in `teams`: lib/teams.lua; none = no team has a policy
-- reply    POLICY version | REFUSED reason detail
-- keeps    SAFE_MODE: while it is on, nothing is set
-- cost     O(teams + REAP_DEVICES log devices)

local FIRST, MOST = 4, 256
local LONGEST = 256
local FIELDS = {   -- the least and the most of each
  weight = { 0, 10000 }, nominal_mb = { 0, 9999999999999 }, borrow_mb = { 0, 9999999999999 },
  lend_mb = { 0, 9999999999999 }, max_priority = { 0, 9 }, max_leases = { 0, 1000000 },
  max_waiters = { 0, 1000000 }, max_hold_s = { 0, 315360000 }, max_ttl_s = { 0, 604800 },
}

local unready, safe_mode, policy_version, teams_before = begin('safe_mode', 'policy_version',
  'teams')
if unready then return reply('REFUSED', unready, ctx.schema or '') end
ctx.pool.safe_mode, ctx.pool.policy_version = safe_mode + 0, policy_version + 0
local by = word(2, 'by', '^[^%c]+$', 128)
local wanted = word(3, 'version', '^%d*$', 13)
local teams, names, lends = {}, {}, false
for i = FIRST, #ARGV, 2 do
  local name, line = word(i, 'team', '^[%w._-]+$', 64), ARGV[i + 1] or ''
  if #line > LONGEST or names[name] then ctx.bad = ctx.bad or 'teams' end
  for part in string.gmatch(line, '[^ ]+') do
    local field, number = string.match(part, '^([%l_]+)=(%d+)$')
    local bounds = FIELDS[field or '']
    local n = bounds and #number <= 13 and number + 0
    if not n or n < bounds[1] or n > bounds[2] then ctx.bad = ctx.bad or field or 'teams' end
    lends = lends or field == 'lend_mb'
  end
  names[name], teams[#teams + 1], teams[#teams + 2] = true, name, line
end
if #teams > 2 * MOST then ctx.bad = ctx.bad or 'teams' end
if ctx.bad then return reply('REFUSED', 'bad_request', ctx.bad) end
if ctx.pool.safe_mode == 1 then return reply('REFUSED', 'safe_mode', '') end
if wanted ~= '' and wanted + 0 ~= ctx.pool.policy_version then
  return reply('REFUSED', 'conflict', text(ctx.pool.policy_version))
end

catch_up()

local key = prefix .. 'teams'
call('DEL', key)
if teams[1] then call('HSET', key, unpack(teams)) end
broker.flush_agents()   -- they were read without their use, or by another policy
ctx.agents, ctx.policies, ctx.teams = {}, {}, {}
set_pool('teams', #teams / 2)
set_pool('team_lend_limits', lends and 1 or 0)
-- What teams used before is not known: it begins now
if (teams_before or 0) + 0 == 0 then
  for i = 1, #teams, 2 do
    call('HSET', prefix .. 'agents', 'team ' .. teams[i] .. '#use', '0@' .. text(ctx.now))
  end
end
local version = ctx.pool.policy_version + 1
set_pool('policy_version', version)
broker.event('teams', 'teams', text(#teams / 2), 'version', text(version), 'by', by)
return reply('POLICY', version)
