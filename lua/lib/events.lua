-- events: a stream for followers, and counters, in a hash that every replica exports.

-- One entry per change of state or of devices, by the script that made it: field and value in turn
-- after the name.
function broker.event(name, ...)
  call('XADD', prefix .. 'events', 'MAXLEN', '~', '10000', '*', 'event', name, ...)
end

-- A counter that the call has read from the pool, where its verb's own are, is written with the
-- pool's other fields.
function broker.count(counter)
  local n, changes = ctx.counts[counter], ctx.changes
  if n then
    ctx.counts[counter] = n + 1
    changes[#changes + 1], changes[#changes + 2] = counter, text(n + 1)
    return
  end
  call('HINCRBY', prefix .. 'stats', counter, '1')
end
