-- set_policy: what may be leased, and the quotas of teams, at once. All or none.
--
-- KEYS[1]  base      gpu:{pool}
-- ARGV[1]  protocol  int
-- ARGV[2]  by        str   who does it
-- ARGV[3+] policy    str   field and value in turn; `version` among them is that of the policy that it was written against, else it is refused; behind `teams` and their number come name and line of each, as in set_teams
-- reply    POLICY version | REFUSED reason detail
-- keeps    SAFE_MODE: while it is on, and this call does not switch it off, nothing else is set
-- cost     O(REAP_DEVICES log devices); with teams as set_teams; with `half_life_s` O(parties) too

local FIRST, PAIR = 3, 2
local FIELDS = {   -- the least and the most of each
  safe_mode = { 0, 1 }, max_memory_per_agent_mb = { 256, 9999999999999 },
    allow_fractional_shares = { 0, 1 },
  kill_on_oom = { 0, 1 }, mps_thread_share = { 0, 1 }, expiry_grace_s = { 0, 3600 },
  default_memory_mb = { 1, 9999999999999 },
  max_leases_per_agent = { 1, 1000000 }, max_waiters_per_agent = { 1, 1000000 },
  idle_after_s = { 10, 604800 }, enforce_after_s = { 0, 86400 }, overuse_slack_mb = { 0,
  9999999999999 },
  idle_foreign_mb = { 0, 9999999999999 }, reservation_idle_s = { 0, 604800 },
  half_life_s = { 0, 315360000 }, reclaim_after_s = { 0, 604800 }, min_runtime_s = { 0, 604800 },
  preempt_grace_s = { 1, 86400 },
  forget_devices_after_s = { 10, 315360000 }, forget_hosts_after_s = { 60, 315360000 },
  usage_days = { 1, 3650 }, history_leases = { 0, 1000000 },
}
local ACTIONS = { observe = true, notify = true, enforce = true }
local XID_ACTIONS = { ignore = true, suspect = true, probe = true, hold = true }
local MEMORY_LIMITS = { off = true, where_possible = true, required = true }
local function action(s) return ACTIONS[s] end
local function memory_limit(s) return MEMORY_LIMITS[s] end
local function xid_actions(s)   -- 79=hold,94=ignore
  local rest = string.gsub(s .. ',', '(%d+)=(%l+),', function(code, what) return #code <= 4
    and XID_ACTIONS[what] and '' end)
  return s == '' or #s <= 256 and rest == ''
end
local function prices(s)   -- NVIDIA H200=3.2,*=1
  for part in string.gmatch(s .. ',', '([^,]*),') do
    local model, n, cents = string.match(part, '^([%w._ -]+)=(%d+)(%.?%d*)$')
    if not model then n, cents = string.match(part, '^%*=(%d+)(%.?%d*)$') end
    if s ~= '' and not (n and #(model or '') <= 64 and #n <= 6 and #cents <= 5 and cents ~= '.')
      then return false end
  end
  return #s <= 512
end
local WORDS = {
  idle_action = action, overuse_action = action, squatter_action = action, orphan_action = action,
  memory_limit = memory_limit, xid_actions = xid_actions, price_per_gpu_hour = prices,
}

local unready, safe_mode, policy_version, teams_before = begin('safe_mode', 'policy_version',
  'teams')
if unready then return reply('REFUSED', unready, ctx.schema or '') end
ctx.pool.safe_mode, ctx.pool.policy_version = safe_mode + 0, policy_version + 0
local by, fields, said = word(2, 'by', '^[^%c]+$', 128), {}, {}
local teams, against
for i = FIRST, #ARGV, PAIR do
  local field, bounds, known = ARGV[i], FIELDS[ARGV[i]], WORDS[ARGV[i]]
  if field == 'teams' then
    teams = {}
    for at = i + PAIR, #ARGV, PAIR do broker.team_at(at, teams) end
    if int(i + 1, 'teams', 0, 256) * PAIR ~= #teams then ctx.bad = ctx.bad or 'teams' end
    break
  end
  if field == 'version' then
    against = int(i + 1, field, 0, 9999999999999)
  elseif known then
    if not ARGV[i + 1] or not known(ARGV[i + 1]) then ctx.bad = ctx.bad or field break end
    fields[field] = ARGV[i + 1]
  elseif bounds then
    fields[field] = text(int(i + 1, field, bounds[1], bounds[2]))
  else
    ctx.bad = ctx.bad or 'policy' break
  end
  if fields[field] then said[#said + 1] = field .. '=' .. fields[field] end
end
if #said == 0 and not teams then ctx.bad = ctx.bad or 'policy' end
if ctx.bad then return reply('REFUSED', 'bad_request', ctx.bad) end
local allowed = fields.safe_mode == '0'
  or fields.safe_mode == '1' and #said == 1 and not teams
if ctx.pool.safe_mode == 1 and not allowed then return reply('REFUSED', 'safe_mode', '') end
if against and against ~= ctx.pool.policy_version then
  return reply('REFUSED', 'conflict', text(ctx.pool.policy_version))
end

catch_up()

if fields.half_life_s and ctx.pool.teams > 0 then broker.accrue_all() end
for field, value in pairs(fields) do
  -- What is handed on before the answer is handed on under it
  ctx.pool[field] = tonumber(value) or value
  ctx.changes[#ctx.changes + 1], ctx.changes[#ctx.changes + 2] = field, value
end
local version = ctx.pool.policy_version + 1
set_pool('policy_version', version)
if said[1] then
  broker.event('policy', 'policy', table.concat(said, ' '), 'version', text(version), 'by', by)
end
if fields.reclaim_after_s == '0' then broker.preemption.withdraw_all() end
if teams then broker.set_teams(teams, teams_before, version, by) end
return reply('POLICY', version)
