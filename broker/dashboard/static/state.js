// What the broker told: rows by kind and id, as they came. Nothing is computed here that it knows.

import { note, takeTrends, tellTrends } from "./trends.js";

const EVENTS_KEPT = 1000;
const KINDS = ["broker", "pool", "hosts", "devices", "leases", "queue", "teams", "minutes"];

export const rows = Object.fromEntries(KINDS.map((kind) => [kind, new Map()]));

/** Newest first. */
export const events = [];

/** The name and the role of our key, as the broker says; null until it did. */
export let you = null;

let skew = 0;
let readAt = 0;
let derived = {}; // what was worked out of the rows since they changed last

/** The pool's clock, epoch seconds. */
export const now = () => (Date.now() + skew) / 1000;

/** The time of the rows on the pool's clock: long ago while the store is away. */
export const shownAt = () => readAt;

/** All of it, as the data of a reset; null: nothing was told yet. */
export function whole() {
  if (!you) return null;
  const all = Object.entries(rows).map(([kind, known]) => [kind, Object.fromEntries(known)]);
  const told = { rows: Object.fromEntries(all), events: events.toReversed(), trends: tellTrends() };
  return { ...told, you, now: readAt && now(), read_at: readAt };
}

/** Take a message of /live. */
export function take(kind, said) {
  derived = {};
  if (kind === "reset") {
    for (const known of Object.values(rows)) known.clear();
    events.length = 0;
    you = said.you;
    takeTrends(said.trends);
  }
  for (const [name, changed] of Object.entries(said.rows)) {
    const known = rows[name];
    for (const [id, row] of Object.entries(changed)) known.set(id, { ...known.get(id), ...row });
  }
  for (const [name, ids] of Object.entries(said.gone ?? {})) {
    for (const id of ids) rows[name].delete(id);
  }
  events.unshift(...said.events.reverse());
  events.length = Math.min(events.length, EVENTS_KEPT);
  if (said.now) {
    skew = said.now * 1000 - Date.now();
    readAt = said.read_at;
    note(rows.devices, readAt);
  }
}

/** True of a key that may drain, revoke and set the policy. */
export const operates = () => you?.role === "operator";

export const pool = () => rows.pool.get("pool");

/** The figures of a pool of which only a part is known; null: all of it is. */
export const large = () => pool()?.large ?? null;

export const broker = () => rows.broker.get("broker");

/** Leases by the id of each device they hold. */
export const leasesByDevice = () => (derived.leases ??= findLeases());

function findLeases() {
  const found = new Map();
  for (const [id, lease] of rows.leases) {
    for (const gpu of lease.gpus) {
      if (!found.has(gpu.uuid)) found.set(gpu.uuid, []);
      found.get(gpu.uuid).push({ id, lease, memory_mb: gpu.memory_mb });
    }
  }
  return found;
}

/** The waiter that each reserved device is reserved for, by the device's id. */
export const reservations = () =>
  (derived.reservations ??= new Map(
    [...rows.queue.values()].flatMap((waiter) => waiter.reserved.map((uuid) => [uuid, waiter])),
  ));
