-- time: the one place that asks what time it is. A test may put its own file here; nothing else calls TIME.

-- The broker as this run of the script sees it: what it read, and what it can do. All in one table, since a function of Lua
-- pays for every variable that it closes over each time it is made, and these are made at every call.
local B = {}

-- Redis's clock in µs since the epoch, asked once, so that every line of the script means the same moment.
do
  local t = redis.call('TIME')
  B.now_us = t[1] * 1000000 + t[2]
end
