// What the broker's words mean, for who reads them here first.

/** States of a GPU. */
export const STATES = {
  ok: "takes leases",
  drained: "an operator drained it: no new leases; those that run go on",
  away: "its host does not report: no new leases until it does; those that run go on to their end",
  lost: "its host no longer finds it: no new leases; it may need a reset or a reboot",
  stopping: "its reporter is being stopped and waits for the leases on it: no new ones until it is back",
  error: "its driver says that something is wrong: no new leases until that is over",
};

/** Events. */
export const EVENTS = {
  pool_created: "The first report made this pool.",
  closed: "Redis was started anew, failed over or lost its data: nothing is granted until those who hold leases are heard.",
  adopted: "Redis had forgotten the lease, and its holder brought it back.",
  host_up: "The host reports its GPUs.",
  host_away: "The host has missed its time to report: its GPUs get no new leases until it is back.",
  device: "The host reports a new GPU, or another state of it.",
  granted: "A lease began.",
  released: "The holder gave the lease back.",
  expired: "The lease was not renewed in time. Its memory is withheld until it is known to be free.",
  revoked: "An operator ended it.",
  waiting: "Nothing was free for it: it stands in the line.",
  offered: "GPUs are reserved for it: it takes them within 10 s, or loses its place.",
  withdrawn: "The policy changed before it took what was offered: it stands where it stood.",
  kept: "It has waited long: nobody behind it gets these GPUs.",
  left: "It left the line.",
  lapsed: "It stopped asking, or did not take what was offered, and lost its place.",
  cooled: "The memory of a lease that ended is no longer withheld.",
  revoke: "An operator asks for its end: at the next renewal, within a minute.",
  drained: "An operator drained it: no new leases; those that run go on.",
  undrained: "It takes leases again.",
  policy: "An operator changed the policy.",
};
