// GPUs, hosts, leases and waiters in words. Plain text; markup.js makes elements of it.

import { clock, short, size, span } from "./format.js";
import { large, now, reservations } from "./state.js";
import { FINDINGS, STATES } from "./words.js";

const place = (gpu) => (gpu.host == null ? short(gpu.uuid) : `${gpu.host}:${gpu.index}`);

/** The place of a lease: `host:0`, of several GPUs of a host `host:0,1`. */
export function places(gpus) {
  const hosts = Map.groupBy(gpus, (gpu) => gpu.host);
  if (hosts.has(null) || hosts.has(undefined)) return gpus.map(place).join(" ");
  return (
    [...hosts].map(([host, of]) => `${host}:${of.map((gpu) => gpu.index).join(",")}`).join(" ") ||
    "cpu"
  );
}

/** The name of a GPU without its maker, which is the same for all. */
export const model = (name) => name.replace(/^NVIDIA /, "");

/** A number with its unit; null when the driver does not tell. */
export const inUnit = (value, unit) => (value == null ? null : `${Math.round(value)} ${unit}`);

/** The waiter that a device is reserved for, if any; of a large pool its row alone may be known. */
function reservedFor(gpu) {
  const waiter = reservations().get(gpu.uuid);
  if (waiter || !large() || !gpu.reserved_for) return waiter;
  const reservation = { since: gpu.reserved_since, until: gpu.reserved_until };
  return { agent: gpu.reserved_for, reservation };
}

/** The MiB of a device that the next request can be given. */
export const leasable = (gpu) => (reservedFor(gpu) ? 0 : gpu.memory_free_mb);

/** The parts of a device's memory, `{kind, mb, lease?}`; what they leave is free. */
export function memoryParts(gpu, leases) {
  const known_mb = leases.reduce((sum, each) => sum + each.memory_mb, 0);
  return [
    ...leases.map((each) => ({ kind: "leased", mb: each.memory_mb, lease: each.lease })),
    { kind: "leased", mb: large() ? gpu.memory_reserved_mb - known_mb : 0 },
    { kind: "others", mb: gpu.memory_foreign_mb },
    { kind: "withheld", mb: gpu.memory_withheld_mb },
    { kind: "reserved", mb: reservedFor(gpu) ? gpu.memory_left_mb : 0 },
    { kind: "system", mb: gpu.memory_system_mb },
  ].filter((part) => part.mb > 0);
}

/** A device's memory in a sentence. */
export function memorySays(gpu) {
  const waiter = reservedFor(gpu);
  const rest = waiter ? `reserved for ${waiter.agent}` : leasable(gpu) ? "free" : "left";
  const parts = [
    `${size(gpu.memory_reserved_mb)} leased`,
    `${size(gpu.memory_foreign_mb)} used by others`,
    `${size(gpu.memory_withheld_mb)} withheld`,
    `${size(gpu.memory_left_mb)} ${rest} of ${size(gpu.memory_total_mb)}`,
  ];
  return parts.join(", ");
}

/** The agents that hold a device, each once, the oldest lease first. */
export const holders = (leases) => [...new Set(leases.map((each) => each.lease.agent))];

/** The times of a reservation, in words. */
export function reservedSays({ agent, reservation }) {
  const since = reservation?.since ? ` since ${clock(reservation.since)}` : "";
  const until = reservation?.until ? `, until ${clock(reservation.until)} if it goes unused` : "";
  const reserved = `reserved for it${since}${until}`;
  return `${agent} has waited long: ${reserved}; no later request gets this GPU`;
}

/** A device's state: a word, a note that adds to it, and its meaning. */
export function stateOf(gpu) {
  const waiter = gpu.state === "ok" && reservedFor(gpu);
  if (waiter) return { word: "reserved", note: `for ${waiter.agent}`, means: reservedSays(waiter) };
  return { word: gpu.state, note: gpu.quarantine || gpu.reason || "", means: STATES[gpu.state] };
}

/** True of a GPU that lends less than it could. One that is divided lends by its parts. */
export const troubled = (gpu) => !["ok", "mig"].includes(gpu.state);

/** A host's state, likewise. */
export function hostState(host) {
  if (!host.alive)
    return {
      word: "away",
      note: "",
      means: `no report since ${clock(host.reported_at)}: no new leases until it is back`,
    };
  if (host.drained)
    return {
      word: "drained",
      note: host.trouble ?? "",
      means: "no new leases on any of its GPUs; those that run go on",
    };
  if (host.trouble)
    return {
      word: "trouble",
      note: host.trouble,
      means: "it reports, and its GPUs, or some of them, are not seen",
    };
  return { word: "ok", note: "", means: "it reports" };
}

/** A state as one line of text. */
export const stateLine = ({ word, note }) =>
  note ? `${word}${word === "reserved" ? " " : ": "}${note}` : word;

/** How often each finding occurs among these: [word, count], the worst first. */
export function count(findings) {
  const counts = new Map(Object.keys(FINDINGS).map((word) => [word, 0]));
  for (const word of findings) counts.set(word, (counts.get(word) ?? 0) + 1);
  return [...counts].filter(([, times]) => times);
}

/** The findings of a device, counted. */
export const findingsOf = (gpu) => count(gpu.findings.map((each) => each.kind));

/** Counted findings as a list of words. */
export const wordsOf = (counts) =>
  counts.map(([word, times]) => (times > 1 ? `${times} ${word}` : word)).join(", ");

/** Counted findings with the meaning of each. */
export const meansOf = (counts) => counts.map(([word]) => `${word}: ${FINDINGS[word]}`).join("; ");

/** The time that is left of a lease. */
export function left(lease) {
  if (lease.expires_at == null) return "no expiry";
  return lease.expires_at > now() ? span(lease.expires_at - now()) : "over";
}

/** What a waiter asks for, in a few words. */
export function asks(waiter) {
  const where = [waiter.host, waiter.model && model(waiter.model)].filter(Boolean).join(" ");
  const on = where && ` on ${where}`;
  const mb = size(waiter.memory_mb);
  if (waiter.devices > 1) return `${waiter.devices} whole GPUs${on}, ≥ ${mb} each`;
  return waiter.exclusive ? `a whole GPU${on}, ≥ ${mb}` : mb + on;
}

/** The devices' reasons against a waiter, counted, in a few words; empty: none are told. */
export const against = (waiter) =>
  Object.entries(waiter.devices_say)
    .map(([word, times]) => `${times} ${word.replaceAll("_", " ")}`)
    .join(", ");

/** The particulars of an event. */
export function detail(event) {
  const sum = event.devices.reduce((all, each) => all + (each.memory_mb ?? 0), 0);
  const parts = [
    event.drained ?? (event.devices.length ? places(event.devices) : null),
    sum ? size(sum) : null,
    event.state && event.state !== "ok" ? event.state : null,
    event.finding,
    event.pid ? `pid ${event.pid}` : null,
    event.xid ? `XID ${event.xid}` : null,
    event.action,
    event.signal,
    event.policy,
    event.reason || null,
  ];
  return parts.filter(Boolean).join(" · ");
}
