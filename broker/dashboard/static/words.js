// The meaning of the broker's words.

/** States of a GPU. */
export const STATES = {
  ok: "takes leases",
  drained: "an operator drained it: no new leases; those that run go on",
  away: "its host does not report: no new leases until it does; those that run go on to their end",
  lost: "its host no longer finds it: no new leases; it may need a reset or a reboot",
  stopping:
    "its reporter is being stopped and waits for the leases on it: no new ones until it is back",
  error: "its driver says that something is wrong: no new leases until that is over",
  quarantined: "no new leases until it is known to be sound, or until an operator undrains it",
  dirty: "processes of a lease that is over are still on it: no new leases until they are gone",
  mig: "it is divided into MIG devices, which are leased in its place",
  prohibited:
    "its compute mode lets nothing compute on it: no new leases until an administrator changes it",
};

/** What a host may find of a lease or (squatter, orphan) of a process; the worst first. */
export const FINDINGS = {
  degraded: "the lease is on a GPU that failed: lost, or in quarantine",
  overuse: "the lease's processes have allocated more memory than it holds",
  idle: "the lease's holder has no process on its GPU, or the GPU has done nothing for a while",
  squatter: "a process that has no lease uses the GPU",
  orphan: "a process of a lease that is over still uses the GPU",
};

/** Events. */
export const EVENTS = {
  pool_created: "The first report made this pool.",
  closed:
    "Redis may have lost data: nothing is granted until the holders of leases have been heard.",
  recovered: "Redis had forgotten the lease, and its holder brought it back.",
  host_up: "The host reports its GPUs.",
  host_contested: "Another machine reports under this host's name, and was refused.",
  device_contested: "Another host lists this GPU too, and was refused.",
  host_trouble:
    "Why the host's GPUs are not seen, or are seen in part; without a reason: they are again.",
  host_away: "The host has missed its time to report: its GPUs get no new leases until it is back.",
  device: "The host reports a new GPU, or another state of it.",
  granted: "A lease began.",
  released: "The holder gave the lease back.",
  expired:
    "The lease was not renewed in time. Its memory is withheld until it is known to be free.",
  revoked: "An operator ended it.",
  preempting:
    "It must end by then, for a request that has a right to its memory: its holder is told.",
  preempted: "It ended for a request that had a right to its memory, after its notice.",
  preemption_withdrawn: "The request for which it should have ended needs it no more: it goes on.",
  wanted: "A request that waits asked its holder for it.",
  extended: "How long it may be held was changed.",
  waiting: "Nothing was free for it: it waits in the queue.",
  offered: "GPUs are reserved for it: it takes them within 10 s, or loses its place.",
  withdrawn: "The policy changed before it took what was offered: it waits where it was.",
  reserved:
    "It has waited long: these GPUs are reserved for it, and no request behind it gets them.",
  reservation_ended:
    "GPUs that were reserved for it went unused for too long: others get them; it keeps its place.",
  cancelled: "Its wait was cancelled.",
  timed_out: "It stopped asking, or did not take what was offered, and lost its place.",
  cooled: "The memory of a lease that ended is no longer withheld.",
  revoke: "An operator asks for its end: at the next renewal, within a minute.",
  drained: "An operator drained it: no new leases; those that run go on.",
  undrained: "It takes leases again.",
  policy: "An operator changed the policy.",
  teams: "An operator changed the quotas of teams.",
  finding_raised:
    "A lease idles, uses too much or is on a GPU that failed; or a process has no lease.",
  finding_cleared: "What the host had found is over.",
  quarantined: "The host lends the GPU no more until it is known to be sound.",
  unquarantined: "The GPU came out of quarantine.",
  xid: "NVIDIA's driver told of an error of the GPU, by its code.",
  process_ended: "The host ended a process: the policy says so.",
  device_forgotten: "The GPU is there no more: it has left the pool.",
  host_forgotten: "The host is there no more: it has left the pool.",
  driver_released: "An operator made the host let go of its driver, so that a GPU can be reset.",
  driver_taken: "An operator made the host take its driver again.",
  hook_disabled: "A webhook gets no more events: nothing but failures, or its receiver said so.",
};
