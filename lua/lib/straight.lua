-- straight: the common case of acquire, renew and release, in one line of steps: a lease of one
-- device while nothing waits and nothing is due. It reads little, by what the library keeps
-- (kept.lua), and writes exactly what the verb's own file would. Each answers nil before its first
-- write where the case is another one: then the verb's own file decides.

-- Remembered at most, of each kind, of so many bytes; one more, and all of the kind go
local MOST_MEMOS, LONGEST_MEMO = 256, 256

-- What is known of texts that were looked at before, whatever the pool: it never changes.
local requests, request_count = {}, 0
local words, word_count = {}, 0

-- The mark that is to be repeated, or nil; false: another protocol, a form for the plain path, a
-- pool in which something waits, or the library's first call.
local function mark_of(said)
  if not find or broker.queued[KEYS[1]] then return false end
  if said == PROTOCOL then return nil end
  if said and #said > 2 and #said <= 34 and string.sub(said, 1, 2) == '1 ' then
    return string.sub(said, 3)
  end
  return false
end

local function is_token(s) return s and #s >= 16 and #s <= 64 and find(s, '^[%w._-]+$') end

-- Does a text have this form, and at most so many bytes?
local function has_form(s, pattern, longest)
  local known = words[pattern]
  if known and known[s] then return true end
  if not s or #s > longest or not find(s, pattern) then return false end
  if word_count == MOST_MEMOS then words, word_count, known = {}, 0, nil end
  if not known then
    known = {}
    words[pattern] = known
  end
  known[s], word_count = true, word_count + 1
  return true
end

local function number_in(s, low, high)
  local n = s and #s <= 13 and find(s, '^%d+$') and tonumber(s)
  return n and n >= low and n <= high and n
end

-- What acquire asks for in its arguments 4 to 13, or false: not for the straight path.
local function parse_request()
  local memory_mb, ttl_ms = number_in(ARGV[4], 0, 9999999999999), number_in(ARGV[7], 0, 604800000)
  local max_hold_ms, host, model = number_in(ARGV[8], 0, 9999999999999), ARGV[10], ARGV[11]
  local form, placement = '^[%w._ -]+$', ARGV[12]
  if ARGV[5] ~= '1' or ARGV[6] ~= '0' or not memory_mb or not ttl_ms or ttl_ms > 0 and ttl_ms < 1000
    or not max_hold_ms or not number_in(ARGV[9], 0, 9) or host ~= '*' and model ~= '*'
    or host ~= '*' and (#host > 64 or not find(host, form))
    or model ~= '*' and (#model > 64 or not find(model, form))
    or placement ~= 'spread' and placement ~= 'pack'
    or ARGV[13] ~= 'refuse' and ARGV[13] ~= 'cpu' then
    return false
  end
  local selector = host ~= '*' and 'host/' .. host or model ~= '*' and 'model/' .. model or '*'
  return { memory_mb = memory_mb, mb = memory_mb > 0 and text(memory_mb), ttl_ms = ttl_ms,
    max_hold_ms = max_hold_ms, priority = ARGV[9] + 0,
    selector = selector, model = model ~= '*' and model, pack = placement == 'pack' }
end

local function request_of(text_of_it)
  local asked = requests[text_of_it]
  if asked == nil then
    asked = parse_request()
    if #text_of_it > LONGEST_MEMO then return asked end
    if request_count == MOST_MEMOS then requests, request_count = {}, 0 end
    requests[text_of_it], request_count = asked, request_count + 1
  end
  return asked
end

-- The free device that a request gets, or nil: it is another case.
local function free_device(k, asked, memory_mb)
  local key, mb, found = prefix .. 'free:' .. asked.selector, asked.mb or text(memory_mb), nil
  if asked.pack then
    found = call('ZRANGE', key, mb, '+inf', 'BYSCORE', 'LIMIT', '0', '1')
  else
    found = call('ZRANGE', key, '+inf', mb, 'BYSCORE', 'REV', 'LIMIT', '0', '1')
  end
  if not found[1] then
    k.none_free = asked.selector
    return nil
  end
  local d = kept_device(k, found[1])
  return d and d.shared and d.free_mb >= memory_mb and d.one_lease == '' and d or nil
end

local keys_of = broker.keys_of

-- Is it plain that the team's policy lets it have so much? Else the plain path decides.
local function within_policy(k, asked, team, t, memory_mb)
  local of = broker.team_policy(team)
  if of.models then   -- of which quota, the device decides where no model is named
    if not asked.model then return false end
    local quota = broker.quota(team, t, asked.model)
    local most_mb = quota.mb + memory_mb
    if most_mb > quota.nominal_mb + quota.borrow_mb or most_mb > quota.nominal_mb
      and k.pool.team_lend_limits > 0 then
      return false
    end
  end
  return (of.listed or team == DEFAULT_TEAM) and asked.priority <= of.max_priority
    and t.leases < of.max_leases and of.max_ttl_ms == 0 and of.max_hold_ms == 0
    and (of.models or t.mb + memory_mb <= of.nominal_mb + of.borrow_mb
    and (t.mb + memory_mb <= of.nominal_mb or k.pool.team_lend_limits == 0))
end

local function straight_acquire()
  local mark, agent, client, pid, owner = mark_of(ARGV[1]), ARGV[3], ARGV[14], ARGV[15], ARGV[16]
  local token, wait = ARGV[2], ARGV[17]
  if mark == false or not owner or broker.offered_to[token] or ARGV[21]
    or ARGV[18] and ARGV[18] ~= '' or ARGV[19] and ARGV[19] ~= '' then
    return nil
  end
  local team = ARGV[20] and ARGV[20] ~= '' and ARGV[20] or DEFAULT_TEAM
  local request = table.concat(ARGV, '|', 4, 13)
  local asked = request_of(request)
  if not asked or not is_token(token) or not has_form(agent, '^[%w._:@/-]+$', 128)
    or not has_form(client, '^[%w._-]*$', 64) or not has_form(pid, '^[%d:]*$', 40)
    or owner ~= '' and not has_form(owner, '^[%w._:@/-]*$', 128)
    or team ~= DEFAULT_TEAM and not has_form(team, '^[%w._-]+$', 64)
    or wait and wait ~= '0' and not number_in(wait, 0, 604800000) then
    return nil
  end
  local k = recall()
  if not k or not k.shares or k.now < k.closed_until_ms then return nil end
  local memory_mb, of = asked.memory_mb, { agent = agent, owner = owner, team = team }
  local a, key, t = kept_parties(k, of)
  k.asker, k.asker_key, k.asker_team = agent, key and key.name, t.name
  if memory_mb == 0 then memory_mb = k.default_memory_mb end
  if a.leases >= k.max_leases or a.mb + memory_mb > k.max_mb
    or key and (key.leases >= k.max_leases or key.mb + memory_mb > k.max_mb)
    or k.pool.teams > 0 and not within_policy(k, asked, team, t, memory_mb) then
    return nil
  end
  if k.records[token] or broker.ended(token) then return nil end
  local d = free_device(k, asked, memory_mb)
  if not d then return nil end

  -- All that a token ever has, has a deadline too: so no token is granted twice
  local now_ms, ttl_ms, uuid, mb = k.now, asked.ttl_ms, d.uuid, asked.mb or text(memory_mb)
  local expires_at_ms = now_ms + (ttl_ms > 0 and ttl_ms or FOREVER_MS)
  local hold_until_ms = asked.max_hold_ms > 0 and now_ms + asked.max_hold_ms
  if hold_until_ms and hold_until_ms < expires_at_ms then expires_at_ms = hold_until_ms end
  local left_ms, expires_at, now = expires_at_ms - now_ms, text(expires_at_ms), text(now_ms)
  k.sequence = false
  if call('ZADD', DEADLINES, 'NX', expires_at, token) == 0 then return nil end
  if expires_at_ms < k.next_deadline then k.next_deadline = expires_at_ms end
  local number = k.fence + 1
  if k.now_us > number then number = k.now_us end
  local fence, taken, keys = text(number), uuid .. '=' .. mb, keys_of(d)
  call('SADD', keys.holders, token)
  call('SET', keys.lease .. token, fence, 'PX', text(left_ms))
  if owner ~= '' or hold_until_ms or team ~= DEFAULT_TEAM then
    local record = prefix .. 'record:' .. token
    if owner ~= '' then call('HSET', record, 'owner', owner) end
    if team ~= DEFAULT_TEAM then call('HSET', record, 'team', team) end
    if hold_until_ms then call('HSET', record, 'hold_until_ms', text(hold_until_ms)) end
  end
  call('HSET', prefix .. 'record:' .. token, 'state', 'active', 'fence', fence, 'devices', taken,
    'expires_at_ms', expires_at, 'ttl_ms', ARGV[7], 'agent', agent, 'granted_at_ms', now, 'request',
    request, 'client', client, 'pid', pid)
  call('XADD', k.EVENTS, 'MAXLEN', '~', '10000', '*', 'event', 'granted', 'token', token, 'agent',
    agent, 'devices', taken, 'fence', fence, team_of(of))
  d.leased_mb, d.leases = d.leased_mb + memory_mb, d.leases + 1
  broker.write_lease(d)
  count_lease(k, a, key, t, d, memory_mb, 1)
  k.fence, k.granted = number, k.granted + 1
  keep_record(k, token, { token = token, fence = fence, devices = taken,
    expires_at_ms = expires_at_ms, ttl_ms = ttl_ms, hold_until_ms = hold_until_ms, owner = owner,
    notice = '', agent = agent, team = team, granted_at_ms = now })
  keep(k, now, number == k.now_us and fence, 'fence', fence, 'granted', text(k.granted))
  return { tagged('GRANTED', mark), now_ms, next_deadline_of(k), k.epoch, 0, fence,
    expires_at_ms, left_ms, '', uuid, mb, d.index, d.host, d.name, d.total_mb, d.used_mb,
    d.runtime_id }
end

local function straight_renew()
  local mark, token, fence, ttl, owner = mark_of(ARGV[1]), ARGV[2], ARGV[3], ARGV[4], ARGV[5]
  if mark == false or ARGV[6] or not fence
    or owner and owner ~= '' and not has_form(owner, '^[%w._:@/-]*$', 128) then
    return nil
  end
  local ttl_ms = nil
  if ttl ~= '' then
    ttl_ms = number_in(ttl, 0, 604800000)
    if not ttl_ms or ttl_ms > 0 and ttl_ms < 1000 then return nil end
  end
  local k = recall()
  -- A token that is kept, and a fence that is its lease's, have the form of one
  local r = k and (k.records[token] or is_token(token) and read_record(k, token))
  if not r or fence ~= '' and fence ~= r.fence or owner and owner ~= '' and owner ~= r.owner
    or r.expires_at_ms < k.now or k.pool.teams > 0 and ttl_ms and ttl_ms ~= r.ttl_ms then
    return nil
  end

  k.sequence = false
  local held, hold_until_ms, now_ms = r.fence, r.hold_until_ms, k.now
  ttl_ms = ttl_ms or r.ttl_ms
  local expires_at_ms = now_ms + (ttl_ms > 0 and ttl_ms or FOREVER_MS)
  if hold_until_ms and hold_until_ms < expires_at_ms then expires_at_ms = hold_until_ms end
  if expires_at_ms < r.expires_at_ms then expires_at_ms = r.expires_at_ms end
  local left_ms, expires_at = expires_at_ms - now_ms, text(expires_at_ms)
  if left_ms > 0 then
    local left = text(left_ms)
    for uuid in string.gmatch(r.devices, '([^,]+)=') do
      -- PEXPIRE does for half of what SET costs; a key that is gone is set anew
      local key = prefix .. 'lease:' .. uuid .. ':' .. token
      if call('PEXPIRE', key, left) == 0 then call('SET', key, held, 'PX', left) end
    end
  end
  call('HSET', prefix .. 'record:' .. token, 'expires_at_ms', expires_at)
  call('ZADD', DEADLINES, expires_at, token)
  if expires_at_ms < k.next_deadline then k.next_deadline = expires_at_ms end
  r.expires_at_ms = expires_at_ms
  keep_record(k, token, r)
  keep(k, text(now_ms))
  return { tagged('RENEWED', mark), now_ms, next_deadline_of(k), k.epoch, 0, expires_at_ms,
    left_ms, r.notice }
end

local function straight_release()
  local mark, token, plant, owner = mark_of(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]
  if mark == false or plant ~= '0' and plant ~= '1'
    or owner and owner ~= '' and not has_form(owner, '^[%w._:@/-]*$', 128) then
    return nil
  end
  local k = recall()
  local r = k and (k.records[token] or is_token(token) and read_record(k, token))
  if not r or owner and owner ~= '' and owner ~= r.owner then return nil end
  local devices, agent = r.devices, r.agent
  local uuid, mb = string.match(devices, '^([^,]+)=(%d+)$')
  local d = uuid and kept_device(k, uuid)
  if not d or d.reserved_for ~= '' then return nil end
  local a, key, t = kept_parties(k, r)
  local keys = keys_of(d)

  k.sequence = false
  local now, part = text(k.now), broker.part_of(d, mb, token)
  d.leased_mb, d.leases = d.leased_mb - mb, d.leases - 1
  if d.exclusive == token then d.exclusive = '' end
  call('DEL', prefix .. 'record:' .. token, keys.lease .. token)
  call('SREM', keys.holders, token)
  clear_deadline(token)
  broker.leave_outcome(token, 'released')
  broker.note_end(r, 'released', now, part, d.host .. '|' .. d.model)
  call('XADD', k.EVENTS, 'MAXLEN', '~', '10000', '*', 'event', 'released', 'token', token, 'agent',
    agent, 'devices', devices, 'fence', r.fence, 'ended_at_ms', now, team_of(r))
  broker.write_lease(d)
  count_lease(k, a, key, t, d, -mb, -1)
  k.released = k.released + 1
  forget_record(k, token)
  keep(k, now, nil, 'released', text(k.released))
  return { tagged('RELEASED', mark), k.now, next_deadline_of(k), k.epoch, 0 }
end
