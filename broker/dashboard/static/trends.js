// The last ten minutes of each GPU: as the broker told them, and as its rows have said since.

const KEPT = 40;

let step_s = 15;
const known = new Map(); // uuid -> [[step, busy %, memory %], ...], the oldest first

/** Take the trends of a reset. */
export function takeTrends(said) {
  known.clear();
  step_s = said?.step_s ?? step_s;
  for (const [uuid, points] of Object.entries(said?.devices ?? {})) known.set(uuid, points);
}

/** The trends as they came, for another window. */
export const tellTrends = () => ({ step_s, devices: Object.fromEntries(known) });

const share = (part, whole) => (part == null || !whole ? null : Math.round((100 * part) / whole));

/** Note the devices as they are at this time, epoch seconds. */
export function note(devices, at) {
  const step = Math.floor(at / step_s);
  for (const uuid of known.keys()) if (!devices.has(uuid)) known.delete(uuid);
  for (const [uuid, gpu] of devices) {
    const points = known.get(uuid) ?? [];
    const point = [
      step,
      gpu.utilization_gpu_pct == null ? null : Math.round(gpu.utilization_gpu_pct),
      share(gpu.memory_used_mb, gpu.memory_total_mb),
    ];
    if (points.at(-1)?.[0] >= step) points[points.length - 1] = point;
    else points.push(point);
    if (points.length > KEPT) points.shift();
    known.set(uuid, points);
  }
}

/** A device's points, `{x, busy, memory}`, x from 0 (ten minutes ago) to 1 (the newest). */
export function trendOf(uuid) {
  const points = known.get(uuid) ?? [];
  const newest = points.at(-1)?.[0] ?? 0;
  return points
    .map(([step, busy, memory]) => ({ x: 1 - (newest - step) / (KEPT - 1), busy, memory }))
    .filter(({ x }) => x >= 0);
}

/** The length of a trend that is full, in minutes. */
export const minutes = () => (KEPT * step_s) / 60;
