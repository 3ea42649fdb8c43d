-- set_teams: the quotas of all teams at once. Teams that are not named have none any more.
--
-- KEYS[1]  base      gpu:{pool}
-- ARGV[1]  protocol  int
-- ARGV[2]  by        str   the operator or key that does it
-- ARGV[3]  version   int   of the policy that it was written against, else it is refused; empty = any
-- ARGV[4+] teams     str   name and line in turn, a line as in `teams`: lib/teams.lua; none = no team has a policy
-- reply    POLICY version | REFUSED reason detail
-- keeps    SAFE_MODE: while it is on, nothing is set
-- cost     O(teams + notices + REAP_DEVICES log devices), O(parties) with the first and without the last policy, and the leases on devices of models with quotas

local FIRST, PAIR = 4, 2

local unready, safe_mode, policy_version, teams_before = begin('safe_mode', 'policy_version',
  'teams')
if unready then return reply('REFUSED', unready, ctx.schema or '') end
ctx.pool.safe_mode, ctx.pool.policy_version = safe_mode + 0, policy_version + 0
local by = word(2, 'by', '^[^%c]+$', 128)
local wanted = word(3, 'version', '^%d*$', 13)
local teams = {}
for i = FIRST, #ARGV, PAIR do broker.team_at(i, teams) end
if ctx.bad then return reply('REFUSED', 'bad_request', ctx.bad) end
if ctx.pool.safe_mode == 1 then return reply('REFUSED', 'safe_mode', '') end
if wanted ~= '' and wanted + 0 ~= ctx.pool.policy_version then
  return reply('REFUSED', 'conflict', text(ctx.pool.policy_version))
end

catch_up()

local version = ctx.pool.policy_version + 1
set_pool('policy_version', version)
broker.set_teams(teams, teams_before, version, by)
return reply('POLICY', version)
