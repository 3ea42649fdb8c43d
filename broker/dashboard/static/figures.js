// The figures of all GPUs of a pool, from their rows.

import { count, leasable, troubled } from "./describe.js";
import { now } from "./state.js";

/** How many GPUs are in each state but ok. */
function troubles(gpus) {
  const found = new Map();
  for (const { state } of gpus.filter(troubled)) found.set(state, (found.get(state) ?? 0) + 1);
  return [...found];
}

/** The figures of all GPUs, from their rows. */
export function figuresOf(gpus) {
  // The parts of a divided GPU count in its place, also while it is away or lost.
  const divided = new Set(gpus.map((gpu) => gpu.parent));
  const whole = gpus.filter((gpu) => gpu.state !== "mig" && !divided.has(gpu.uuid));
  const sum = (name) => whole.reduce((all, gpu) => all + (gpu[name] ?? 0), 0);
  return {
    gpus: new Set(gpus.map((gpu) => gpu.parent || gpu.uuid)).size,
    free_mb: gpus.reduce((all, gpu) => all + leasable(gpu), 0),
    left_mb: sum("memory_left_mb"),
    total_mb: sum("memory_total_mb"),
    leased_mb: sum("memory_reserved_mb"),
    states: troubles(gpus),
    findings: count(gpus.flatMap((gpu) => gpu.findings.map((each) => each.kind))),
  };
}

/** Why no request can be given anything of the pool now; empty: some may be. */
export function nothingFree(pool, broker) {
  if (pool.safe_mode_read_only || broker.safe_mode) return "SAFE_MODE is on";
  return pool.closed_until > now() ? "closed for a while, as data may have been lost" : "";
}
