-- findings: what a host makes of its devices beside their memory: unused leases, processes without
-- one, errors of the GPU. Only report needs this file.

broker.FINDINGS = { 'idle', 'overuse', 'squatter', 'orphan', 'degraded' }

-- Each name of the list `now` that is not in `before`.
local function fresh(now, before)
  local known, found = {}, {}
  for name in string.gmatch(before, '[^,]+') do known[name] = true end
  for name in string.gmatch(now, '[^,]+') do
    if not known[name] then found[#found + 1] = name end
  end
  return found
end

-- What the host finds now, and what it finds no more. The lists of before are in `was`, by kind.
function broker.compare(d, said, was)
  for i = 1, #broker.FINDINGS do
    local kind = broker.FINDINGS[i]
    local now, before = said[kind], was[kind] or ''
    if now and now ~= before then
      local of_lease = kind ~= 'squatter' and kind ~= 'orphan'
      local function whose(name)
        if not of_lease then return '' end
        local agent, team = unpack(call('HMGET', prefix .. 'record:' .. name, 'agent', 'team'))
        return agent or '', team_of({ team = team })
      end
      for _, name in ipairs(fresh(before, now)) do
        broker.event('finding_cleared', 'finding', kind, 'device', d.uuid, 'host', d.host, of_lease
          and 'token' or 'pid', name, 'agent',
          whose(name))
      end
      for _, name in ipairs(fresh(now, before)) do
        broker.event('finding_raised', 'finding', kind, 'device', d.uuid, 'host', d.host, of_lease
          and 'token' or 'pid', name, 'agent',
          whose(name))
      end
    end
  end
end

-- Let the holders of leases know, at their next renewal, what is found of them.
local function let_know(told)
  for token, kinds in string.gmatch(told, '([^,=]+)=([^,]*)') do
    local record = prefix .. 'record:' .. token
    if call('HGET', record, 'state') == 'active' then
      if kinds == '' then call('HDEL', record, 'notice') else
        call('HSET', record, 'notice', (string.gsub(kinds, '+', ',')))
      end
    end
  end
end

local function tell_of_xids(d, xids)
  for code, action in string.gmatch(xids, '(%d+):(%l+)') do
    call('HSET', prefix .. 'device:' .. d.uuid, 'xid', code, 'xid_ms', text(ctx.now))
    broker.event('xid', 'device', d.uuid, 'host', d.host, 'xid', code, 'action', action)
  end
end

local function tell_of_end(d, ended)
  local pid, sent, token, why = string.match(ended, '^(%d+) (%u+) (%S+) (.*)$')
  if not pid then return end
  broker.event('process_ended', 'device', d.uuid, 'host', d.host, 'pid', pid, 'signal', sent,
    'token', token ~= '-' and token or '',
    'reason', why)
end

-- Holders without a record: a version without holders has ended their leases.
local function forget_holders(d, gone)
  for token in string.gmatch(gone, '[^,]+') do
    if call('EXISTS', prefix .. 'record:' .. token) == 0 then
      call('SREM', prefix .. 'holders:' .. d.uuid, token)
    end
  end
end

-- What befell the GPU and the processes on it. `before`: its quarantine until now.
function broker.note(d, said, before)
  if said.xids then tell_of_xids(d, said.xids) end
  if said.quarantine and said.quarantine ~= before then
    if said.quarantine ~= '' then
      broker.event('quarantined', 'device', d.uuid, 'host', d.host, 'reason', said.quarantine)
    else
      broker.event('unquarantined', 'device', d.uuid, 'host', d.host)
    end
  end
  if said.ended then tell_of_end(d, said.ended) end
  if said.tell then let_know(said.tell) end
  if said.gone then forget_holders(d, said.gone) end
end
