// The four tables: devices, leases, the line, events.

import { html, nothing, svg } from "./vendor/lit-html.js";
import { clock, percent, short, size, sizeOf, span } from "./format.js";
import { events, leasesByDevice, now, rows } from "./state.js";
import { showDevice, showEvent, showHost, showLease, showWaiter } from "./dialogs.js";
import { List } from "./list.js";
import { EVENTS as MEANS, FINDINGS, STATES } from "./words.js";

const place = (gpu) => (gpu.host == null ? short(gpu.uuid) : `${gpu.host}:${gpu.index}`);

/** Where a lease is: `host:0`, of several GPUs of a host `host:0,1`. */
function places(gpus) {
  const hosts = Map.groupBy(gpus, (gpu) => gpu.host);
  if (hosts.has(null) || hosts.has(undefined)) return gpus.map(place).join(" ");
  return [...hosts].map(([host, of]) => `${host}:${of.map((gpu) => gpu.index).join(",")}`).join(" ") || "cpu";
}

/** A device's memory as a bar: each lease, others, withheld, the system's; what is left is free. */
export function memoryBar(gpu, leases) {
  const total = gpu.memory_total_mb || 1;
  const parts = [
    ...leases.map((each) => ["leased", each.memory_mb]),
    ["others", gpu.memory_foreign_mb],
    ["withheld", gpu.memory_withheld_mb],
    ["system", gpu.memory_system_mb],
  ];
  let at = 0;
  const rects = parts
    .filter(([, mb]) => mb > 0)
    .map(([kind, mb]) => {
      const x = (100 * at) / total;
      at += mb;
      return svg`<rect class=${kind} x="${x}%" y="0" height="100%" width="${Math.min((100 * mb) / total, 100 - x)}%"/>`;
    });
  const says = `${size(gpu.memory_reserved_mb)} leased, ${size(gpu.memory_foreign_mb)} used by others, ${size(
    gpu.memory_withheld_mb,
  )} withheld, ${size(gpu.memory_left_mb)} ${leasable(gpu) ? "free" : "left"} of ${size(gpu.memory_total_mb)}`;
  return html`<svg class="bar" role="img" aria-label=${says}><title>${says}</title>${rects}</svg>`;
}

/** For which waiter each device is reserved: uuid -> its row. */
function reservations() {
  return new Map([...rows.queue.values()].flatMap((waiter) => waiter.kept.map((uuid) => [uuid, waiter])));
}

/** Since when and until when something is reserved for a waiter, in words. */
export function reservedSays({ agent, reservation }) {
  const since = reservation?.since ? ` since ${clock(reservation.since)}` : "";
  const until = reservation?.until ? `, until ${clock(reservation.until)} if it goes unused` : "";
  return `${agent} has waited long: reserved for it${since}${until}; nobody behind it gets this GPU`;
}

/** MiB of a device that the next request can be given. */
const leasable = (gpu) => (gpu.state === "ok" && !reserved.has(gpu.uuid) ? gpu.memory_left_mb : 0);

/** A device's state in a few words, and what it means. */
export function stateOf(gpu) {
  if (gpu.state === "ok" && reserved.has(gpu.uuid)) {
    const waiter = reserved.get(gpu.uuid);
    return { word: `reserved for ${waiter.agent}`, means: reservedSays(waiter) };
  }
  const because = gpu.quarantine || gpu.reason;
  return { word: because ? `${gpu.state}: ${because}` : gpu.state, means: STATES[gpu.state] };
}

/** How often each thing is found of these: [word, count], the worst first. */
export function found(words) {
  const counts = new Map(Object.keys(FINDINGS).map((word) => [word, 0]));
  for (const word of words) counts.set(word, (counts.get(word) ?? 0) + 1);
  return [...counts].filter(([, count]) => count);
}

const foundIn = (gpu) => (gpu.findings.length ? found(gpu.findings.map((each) => each.kind)) : []);
const wordsOf = (counts) => counts.map(([word, count]) => (count > 1 ? `${count} ${word}` : word)).join(", ");
const meansOf = (counts) => counts.map(([word]) => `${word}: ${FINDINGS[word]}`).join("; ");

/** The same of a host. */
export function hostState(host) {
  if (!host.alive) return { word: "away", means: `no report since ${clock(host.reported_at)}: no new leases until it is back` };
  if (host.drained) return { word: "drained", means: "no new leases on any of its GPUs; those that run go on" };
  return { word: "ok", means: "it reports" };
}

const stateCell = ({ word, means }, trouble) =>
  html`<span class="state ${trouble ? "trouble" : "ok"}" title="${word}: ${means}">${word}</span>`;

/** What is found on a GPU stands before a state that is none to speak of. */
function gpuCell(gpu) {
  const state = stateOf(gpu);
  const counts = foundIn(gpu);
  if (!counts.length) return stateCell(state, gpu.state !== "ok");
  const worst = counts[0][0] + (counts.length > 1 ? ` +${counts.length - 1}` : "");
  const word = state.word === "ok" ? worst : `${state.word} · ${worst}`;
  return stateCell({ word, means: `${state.means}; ${wordsOf(counts)}; ${meansOf(counts)}` }, true);
}

const leaseCell = (lease) =>
  lease.findings.length
    ? html`<b>${lease.agent}</b> <span class="state trouble" title=${meansOf(found(lease.findings))}>${lease.findings.join(", ")}</span>`
    : html`<b>${lease.agent}</b>`;

function left(lease) {
  if (lease.expires_at == null) return "no expiry";
  return lease.expires_at > now() ? span(lease.expires_at - now()) : "over";
}

let byDevice = new Map();
let reserved = new Map();

const devices = (item, ofDevice, ofHost) => (item.host ? ofHost(item.host) : ofDevice(item.gpu));

const DEVICES = [
  {
    name: "name",
    label: "GPU",
    cell: (item) =>
      devices(item, (gpu) => html`<b>${gpu.index}</b> ${gpu.name}`, (host) => html`<b>${host.host}</b>`),
  },
  {
    name: "memory",
    label: "Memory",
    cell: (item) => devices(item, (gpu) => memoryBar(gpu, byDevice.get(gpu.uuid) ?? []), () => ""),
  },
  {
    name: "free number",
    label: "Free",
    cell: (item) =>
      devices(item, (gpu) => sizeOf(leasable(gpu), gpu.memory_total_mb), () => `${size(item.free_mb)} free`),
  },
  {
    name: "busy number",
    label: "Busy",
    cell: (item) =>
      devices(item, (gpu) => (gpu.utilization_gpu_pct == null ? "–" : `${Math.round(gpu.utilization_gpu_pct)} %`), () => ""),
  },
  {
    name: "held number",
    label: "Leases",
    cell: (item) => devices(item, (gpu) => gpu.leases, () => item.leases),
  },
  {
    name: "status",
    label: "State",
    cell: (item) =>
      devices(item, gpuCell, (host) => stateCell(hostState(host), !host.alive || host.drained)),
  },
];

const LEASES = [
  { name: "name", label: "Agent", cell: (x) => leaseCell(x.lease), sort: (x) => x.lease.agent },
  { name: "where", label: "GPU", cell: (x) => places(x.lease.gpus), sort: (x) => places(x.lease.gpus) },
  { name: "size number", label: "Memory", cell: (x) => size(x.lease.memory_mb), sort: (x) => x.lease.memory_mb },
  { name: "left number", label: "Time left", cell: (x) => left(x.lease), sort: (x) => x.lease.expires_at },
  { name: "since number", label: "Held for", cell: (x) => span(now() - x.lease.timestamp), sort: (x) => -x.lease.timestamp },
  { name: "token", label: "Token", cell: (x) => short(x.id) },
];

const QUEUE = [
  { name: "name", label: "Agent", cell: (x) => html`<b>${x.waiter.agent}</b>` },
  { name: "size", label: "Asks for", cell: (x) => html`<span title=${asks(x.waiter)}>${asks(x.waiter)}</span>` },
  { name: "since number", label: "Waits", cell: (x) => span(now() - x.waiter.joined_at) },
  { name: "why", label: "Why", cell: (x) => html`<span title=${x.waiter.why}>${why(x.waiter)}</span>` },
];

const EVENTS = [
  { name: "time number", label: "Time", cell: (x) => clock(x.event.at) },
  { name: "what", label: "Event", cell: (x) => html`<span class="event ${x.event.event}" title=${MEANS[x.event.event]}>${x.event.event}</span>` },
  { name: "name", label: "Who", cell: (x) => x.event.agent ?? x.event.by ?? x.event.host ?? "" },
  { name: "where", label: "What", cell: (x) => detail(x.event) },
];

/** What holds a waiter back, in a few words; the sentence has more. */
function why(waiter) {
  const devices = Object.entries(waiter.devices_say).map(([word, count]) => `${count} ${word.replaceAll("_", " ")}`);
  return devices.length ? html`<b>${waiter.code}</b> · ${devices.join(", ")}` : waiter.why;
}

/** What a waiter asks for, in a few words. */
export function asks(waiter) {
  const where = [waiter.host, waiter.model].filter(Boolean).join(" ");
  const on = where && ` on ${where}`;
  const mb = size(waiter.memory_mb);
  if (waiter.devices > 1) return `${waiter.devices} whole GPUs${on}, at least ${mb} each`;
  return waiter.exclusive ? `a whole GPU${on}, at least ${mb}` : mb + on;
}

function detail(event) {
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

/** The four lists; `open` shows what one row is about. */
export function lists(page) {
  const panel = (name) => page.querySelector(`#${name}`);
  return {
    devices: new List(panel("devices"), {
      name: "devices", title: "GPUs", columns: DEVICES,
      open: (item) => (item.host ? showHost(item.host.host) : showDevice(item.gpu.uuid)),
      empty: () => html`No host has reported GPUs to this pool. On a machine that has some:
        <code>gpu-broker host</code>, or <code>gpu-broker serve --demo</code> for simulated ones.`,
    }),
    leases: new List(panel("leases"), {
      name: "leases", title: "Leases", columns: LEASES, open: (item) => showLease(item.id),
      empty: () => html`Nobody holds a lease. To get one:
        <code>gpu-broker run --memory 8GiB -- python train.py</code>`,
    }),
    queue: new List(panel("queue"), {
      name: "queue", title: "Waiting line", columns: QUEUE, open: (item) => showWaiter(item.id),
      empty: () => "Nobody waits.",
    }),
    events: new List(panel("events"), {
      name: "events", title: "Events", columns: EVENTS, open: (item) => showEvent(item.event),
      empty: () => "Nothing has happened yet.",
    }),
  };
}

/** Fill the lists with what matches the filter. */
export function fill(all, filter) {
  byDevice = leasesByDevice();
  reserved = reservations();
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = (...texts) => {
    const text = texts.join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  };
  const hosts = new Map();
  for (const gpu of rows.devices.values()) {
    const holders = (byDevice.get(gpu.uuid) ?? []).map((each) => each.lease.agent);
    if (!matches(gpu.host, `${gpu.host}:${gpu.index}`, gpu.name, gpu.uuid, stateOf(gpu).word, wordsOf(foundIn(gpu)), ...holders)) continue;
    if (!hosts.has(gpu.host)) hosts.set(gpu.host, []);
    hosts.get(gpu.host).push(gpu);
  }
  const grouped = [...hosts.keys()].sort().flatMap((name) => {
    const gpus = hosts.get(name).sort((a, b) => a.index - b.index);
    const host = rows.hosts.get(name) ?? { host: name, alive: false, reported_at: 0 };
    const free_mb = gpus.reduce((sum, gpu) => sum + leasable(gpu), 0);
    const leases = gpus.reduce((sum, gpu) => sum + gpu.leases, 0);
    return [
      { id: `host ${name}`, kind: "host", host, free_mb, leases },
      ...gpus.map((gpu) => ({ id: gpu.uuid, kind: "device", gpu })),
    ];
  });
  const shown = grouped.filter((item) => item.gpu).length;
  all.devices.show(grouped, rows.devices.size, shown);

  const leases = [...rows.leases].map(([id, lease]) => ({ id, lease }));
  all.leases.show(
    leases.filter(({ id, lease }) => matches(lease.agent, id, lease.token, ...lease.findings, places(lease.gpus), ...lease.gpus.map((g) => g.uuid))),
    leases.length,
  );
  const waiters = [...rows.queue].map(([id, waiter]) => ({ id, waiter }));
  all.queue.show(
    waiters.filter(({ id, waiter }) => matches(waiter.agent, id, waiter.token, waiter.host, waiter.model, waiter.why)),
    waiters.length,
  );
  const happened = events.map((event) => ({ id: event.id, event }));
  all.events.show(
    happened.filter(({ event: e }) =>
      matches(e.event, e.agent, e.token, e.host, e.by, e.reason, e.finding, places(e.devices), ...e.devices.map((d) => d.uuid)),
    ),
    happened.length,
  );
}

/** Figures of the whole pool. */
export function summary(pool, broker) {
  const gpus = [...rows.devices.values()];
  const sum = (name) => gpus.reduce((all, gpu) => all + (gpu[name] ?? 0), 0);
  const free_mb = gpus.reduce((all, gpu) => all + leasable(gpu), 0);
  const trouble = new Map();
  for (const { state } of gpus) if (state !== "ok") trouble.set(state, (trouble.get(state) ?? 0) + 1);
  const states = [...trouble].map(([state, count]) => `${count} ${state}`).join(", ");
  const safe = pool.safe_mode_read_only || broker.safe_mode;
  const blocked_mb = sum("memory_left_mb") - free_mb;
  const total = `of ${size(sum("memory_total_mb"))}`;
  const room = safe ? "none: SAFE_MODE is on" : blocked_mb ? `${total}; ${size(blocked_mb)} not leasable` : total;
  const counts = found(gpus.flatMap((gpu) => gpu.findings.map((each) => each.kind)));
  const tile = (label, value, note, kind = "") =>
    html`<div class="tile ${kind}"><dt>${label}</dt><dd>${value}</dd><dd class="note">${note}</dd></div>`;
  return html`<dl>
    ${tile("GPUs", gpus.length, states || "all ok", states && "trouble")}
    ${tile("Free to lease", size(safe ? 0 : free_mb), room)}
    ${tile("Leased", percent(sum("memory_reserved_mb"), sum("memory_total_mb")), size(sum("memory_reserved_mb")))}
    ${tile("Leases", pool.leases, pool.cpu_leases ? `and ${pool.cpu_leases} on the CPU` : "on GPUs")}
    ${tile("Waiting", pool.waiting, pool.waiting ? "see the line for why" : "nobody")}
    ${tile("SAFE_MODE", safe ? "ON" : "off", safe ? "no GPU is leased" : "GPUs are leased", safe ? "trouble" : "")}
  </dl>
  ${counts.length
    ? html`<p class="findings"><b class="state trouble">Found</b>
        ${counts.map(([word, count], n) => html`${n ? ", " : ""}<span title=${FINDINGS[word]}>${count} ${word}</span>`)};
        the filter finds these words</p>`
    : nothing}
  <ul class="legend" aria-label="Colours of the memory bars">
    <li><i class="leased"></i>leased</li><li><i class="others"></i>used by others</li>
    <li><i class="withheld"></i>withheld</li><li><i class="system"></i>system</li><li><i class="free"></i>free</li>
  </ul>`;
}
