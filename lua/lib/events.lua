-- events: what happened, for those who watch (a stream) and for those who count (a hash that every replica exports).

-- One entry per change of state or of devices, by the script that made it: field and value in turn after the name.
function B.event(name, ...)
  call('XADD', P .. 'events', 'MAXLEN', '~', '10000', '*', 'event', name, ...)
end

function B.count(counter)
  call('HINCRBY', P .. 'stats', counter, '1')
end
