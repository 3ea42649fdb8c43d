-- names: which machine has a host's name, and which host was meant.
--
-- A reporter identifies itself: by a word that begins with its machine's boot and names its
-- process. Two that live and use one name would have their GPUs taken for each other's, so the
-- second is refused until the first is silent past its deadline, or known by the second to be over.
-- Several reporters of one machine are as one while they see devices in common: they are replicas.
-- Likewise a device stays with the host that listed it while that one's reporter lives. The
-- reporter that was refused last stands on the host or the device as `rival`, with `rival_ms`.

local RIVAL_MS = 60000   -- for so long after a refusal a rival counts as there

local function boot_of(reporter) return string.match(reporter, '^[^.]*') end

-- Write down the reporter that was refused. Is it another than before, or back?
local function note_rival(key, rival)
  local before, before_ms = unpack(call('HMGET', key, 'rival', 'rival_ms'))
  call('HSET', key, 'rival', rival, 'rival_ms', ctx.now)
  return before ~= rival or before_ms + RIVAL_MS <= ctx.now
end

-- The reporter that was refused under this name lately, or none: from a host's fields `rival` and
-- `rival_ms`.
function broker.rival(rival, rival_ms)
  return rival and rival_ms + RIVAL_MS > ctx.now and rival or ''
end

local function have_devices_in_common(host, reported)
  local key = prefix .. 'devices:' .. host
  if #reported == 0 or call('SCARD', key) == 0 then return true end
  for _, said in ipairs(reported) do
    if call('SISMEMBER', key, said.uuid) == 1 then return true end
  end
  return false
end

-- Does `other`, which lives and has the name of `host`, keep it from `me`?
function broker.has_name(host, other, me, reported)
  if boot_of(other) == boot_of(me) and have_devices_in_common(host, reported) then return false end
  if note_rival(prefix .. 'host:' .. host, me) then
    broker.event('host_contested', 'host', host, 'reporter', other, 'rival', me)
  end
  return true
end

-- Does the host that listed a device keep it from `host`? Then by which reporter. `over`: one that
-- is known to have ended.
function broker.has_device(d, host, over)
  if d.state == 'lost' or d.state == 'away' then return nil end
  local reporter, reported_ms, deadline_ms = unpack(call('HMGET', prefix .. 'host:' .. d.host,
    'reporter', 'reported_ms', 'deadline_ms'))
  if (reporter or '') == '' or reporter == over or reported_ms + deadline_ms <= ctx.now then
    return nil
  end
  if note_rival(prefix .. 'device:' .. d.uuid, host) then
    broker.event('device_contested', 'device', d.uuid, 'host', d.host, 'rival', host)
  end
  return reporter
end

-- The host with devices that is called as this one but for its case and its domain, or ''.
function broker.nearly(name)
  local function plain(host) return string.lower(string.match(host, '^[^.]*')) end
  local hosts = call('SMEMBERS', prefix .. 'hosts')
  table.sort(hosts)
  for _, host in ipairs(hosts) do
    if host ~= name and plain(host) == plain(name) and call('ZCARD',
      prefix .. 'fits:host/' .. host) > 0 then
      return host
    end
  end
  return ''
end
