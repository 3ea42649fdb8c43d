-- deadlines: what time does. One zset, `deadlines`, holds the end of everything's present state:
-- token -> expiry of an active lease, end of a cooling one's grace, by when a waiter must have
-- polled or claimed its offer; host:<h> -> the time by which that host must have reported again.
--
-- Nothing waits for Redis to say that a key expired (it may say so minutes late): a verb that comes
-- when something may be due takes back what is over until REAP_DEVICES devices are touched (the
-- last member is finished whatever it has), and says in `more` whether something is left.
--
-- When that may be is in the pool, `next_deadline_ms`: no deadline is before it. Setting one brings
-- it forward; it is not put off when its member is, but when its time has come and a verb has read
-- the deadlines. `reap` always looks, so what a hand, or an older version, put there is found as
-- well.

local WORK_READ = '16'   -- one more than the work of one script
local WHOLE = 34         -- entries and ranks of so many: there may be more

local function set_deadline(member, at)
  if at < ctx.next_deadline then ctx.next_deadline = at end
  call('ZADD', DEADLINES, text(at), member)
end

local function clear_deadline(member) call('ZREM', DEADLINES, member) end

-- The end of every call: what it gave back is scheduled, and what is left to write is written.
-- Before when nothing is due, or ''.
local function finish()
  if next(ctx.work) then broker.schedule() end
  if ctx.behind[1] then broker.flush() end
  if next(ctx.agents) then broker.flush_agents() end
  local changes, next_deadline_ms = ctx.changes, ctx.next_deadline
  if next_deadline_ms == NEVER then next_deadline_ms = '' end
  if ctx.next_deadline ~= ctx.noted_deadline then
    changes[#changes + 1], changes[#changes + 2] = 'next_deadline_ms', next_deadline_ms == '' and ''
      or text(next_deadline_ms)
  end
  if changes[1] then
    local n = #changes
    changes[n + 1], changes[n + 2] = 'sequence', text(next_sequence(ctx.sequence, ctx.now_us))
    call('HSET', POOL, unpack(changes))
    if seen then
      seen[POOL], broker.queued[KEYS[1]] = ctx.now, ctx.pool.waiting > 0 or nil
    end
  end
  if ctx.closing then broker.event('closed', 'until_ms', text(ctx.closing)) end
  return next_deadline_ms
end

-- Every reply: its tag, with the call's mark behind a blank if it had one, now_ms,
-- next_deadline_ms, epoch, more, then what the tag carries.
local function reply(tag, ...)
  local next_deadline_ms = finish()
  if ctx.mark then tag = tag .. ' ' .. ctx.mark end
  return { tag, ctx.now, next_deadline_ms, ctx.epoch or '', ctx.more, ... }
end

-- Bring the pool up to the present before a verb decides anything: ended leases come back, and go
-- to waiters.
local function catch_up(named)
  if ctx.next_deadline < ctx.now then broker.reap(named) end
  if ctx.pool.waiting > 0 then
    local entries = call('ZRANGE', prefix .. 'worklist', '0', WORK_READ, 'WITHSCORES')
    for i = 1, #entries, 2 do
      local entry, rank = entries[i], entries[i + 1] + 0
      ctx.work[entry], ctx.stored[entry] = ctx.work[entry] or rank, rank
    end
    -- From here on `stored` tells what is in `worklist`, if all of it was read
    ctx.caught_up = #entries < WHOLE
    if not ctx.caught_up then ctx.unread_rank = entries[WHOLE] + 0 end
    if next(ctx.work) then broker.schedule() end
  end
end
