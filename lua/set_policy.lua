-- set_policy: what may be leased, for every door at once. All fields or none.
--
-- KEYS[1]  base      gpu:{pool}
-- ARGV[1]  protocol  int
-- ARGV[2]  by        str   who does it
-- ARGV[3+] policy    str   field and value in turn
-- reply    POLICY version | REFUSED reason detail
-- keeps    SAFE_MODE: while it is on, and this call does not switch it off, nothing else is set
-- cost     O(REAP_DEVICES log devices)

local FIRST, PAIR = 3, 2
local FIELDS = {   -- the least and the most of each
  safe_mode = { 0, 1 }, max_memory_per_agent_mb = { 256, 9999999999999 }, allow_fractional_shares = { 0, 1 },
  kill_on_oom = { 0, 1 }, default_memory_mb = { 1, 9999999999999 }, expiry_grace_s = { 0, 3600 },
  max_leases_per_agent = { 1, 1000000 }, max_waiters_per_agent = { 1, 1000000 },
}

local unready = B.open('safe_mode', 'policy_version')
if unready then return B.reply('REFUSED', unready, B.schema or '') end
local by, fields, said = B.word(2, 'by', '^[^%c]+$', 128), {}, {}
for i = FIRST, #ARGV, PAIR do
  local field, bounds = ARGV[i], FIELDS[ARGV[i]]
  if not bounds then B.bad = B.bad or 'policy' break end
  fields[field] = B.int(i + 1, field, bounds[1], bounds[2])
  said[#said + 1] = field .. '=' .. text(fields[field])
end
if #said == 0 then B.bad = B.bad or 'policy' end
if B.bad then return B.reply('REFUSED', 'bad_request', B.bad) end
local allowed = fields.safe_mode == 0 or fields.safe_mode == 1 and #said == 1
if B.pool.safe_mode == 1 and not allowed then return B.reply('REFUSED', 'safe_mode', '') end

B.catch_up()

for field, value in pairs(fields) do B.set_pool(field, value) end
local version = B.pool.policy_version + 1
B.set_pool('policy_version', version)
B.event('policy', 'policy', table.concat(said, ' '), 'version', text(version), 'by', by)
return B.reply('POLICY', version)
