-- events: what happened, for those who watch (a stream) and for those who count (a hash that every replica exports).

-- One entry per change of state or of devices, by the script that made it: field and value in turn after the name.
function B.event(name, ...)
  call('XADD', P .. 'events', 'MAXLEN', '~', '10000', '*', 'event', name, ...)
end

-- A counter that the call has read from the pool, where its verb's own are, is written with the
-- pool's other fields.
function B.count(counter)
  local n, changes = S.counts[counter], S.changes
  if n then
    S.counts[counter] = n + 1
    changes[#changes + 1], changes[#changes + 2] = counter, text(n + 1)
    return
  end
  call('HINCRBY', P .. 'stats', counter, '1')
end
