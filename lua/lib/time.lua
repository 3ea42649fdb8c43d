-- time: the one place that asks what time it is. A test may put its own file here; nothing else
-- calls TIME.

-- Redis's clock in µs since the epoch.
local function time_us()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end
