// The columns of the four lists.

import { html, nothing } from "./vendor/lit-html.js";
import {
  against,
  asks,
  count,
  detail,
  holders,
  hostState,
  inUnit,
  leasable,
  left,
  meansOf,
  model,
  places,
} from "./describe.js";
import { clock, short, size, sizeOf, span } from "./format.js";
import { gpuState, memoryBar, rowLink, stateCell } from "./markup.js";
import { sparkline } from "./sparkline.js";
import { large, leasesByDevice, now } from "./state.js";
import { EVENTS as MEANS } from "./words.js";

/** A cell that is one of a GPU, another of its host. */
const cell =
  (ofGpu, ofHost = () => "") =>
  (item) =>
    item.host ? ofHost(item) : ofGpu(item.gpu);

const leasesOn = (gpu) => leasesByDevice().get(gpu.uuid) ?? [];

/** The agents on a GPU: as many as stand in two lines, and the number of the rest. */
function holdersCell(gpu) {
  const agents = holders(leasesOn(gpu));
  if (large() && leasesOn(gpu).length < gpu.leases) return `${gpu.leases} leases`;
  const more = agents.length - 2;
  return html`<span title=${agents.join(", ")}
    >${agents.slice(0, 2).join(", ")}${more > 0 ? html` <b>+${more}</b>` : nothing}</span
  >`;
}

const told = (value, unit) =>
  inUnit(value, unit) ?? html`<span title="Its driver does not tell">–</span>`;

export const DEVICES = [
  {
    name: "name",
    label: "GPU",
    cell: cell(
      (gpu) => rowLink("gpu", gpu.uuid, html`<b>${gpu.index}</b> ${model(gpu.name)}`),
      (item) => rowLink("host", item.host.host, html`<b>${item.host.host}</b>`),
    ),
  },
  {
    name: "holder",
    label: "Held by",
    cell: cell(holdersCell, (item) => `${item.leases} ${item.leases === 1 ? "lease" : "leases"}`),
  },
  { name: "memory", label: "Memory", cell: cell((gpu) => memoryBar(gpu, leasesOn(gpu))) },
  {
    name: "free number",
    label: "Free",
    cell: cell(
      (gpu) => sizeOf(leasable(gpu), gpu.memory_total_mb),
      (item) => `${size(item.free_mb)} free`,
    ),
  },
  { name: "trend", label: "Last minutes", cell: cell((gpu) => sparkline(gpu.uuid)) },
  { name: "busy number", label: "Busy", cell: cell((gpu) => told(gpu.utilization_gpu_pct, "%")) },
  {
    name: "temperature number",
    label: "Temp.",
    cell: cell((gpu) => told(gpu.temperature_c, "°C")),
  },
  { name: "power number", label: "Power", cell: cell((gpu) => told(gpu.power_draw_w, "W")) },
  {
    name: "status",
    label: "State",
    cell: cell(gpuState, (item) =>
      stateCell(hostState(item.host), hostState(item.host).word !== "ok"),
    ),
  },
];

/** The team beside an agent; the default one needs no mention. */
const ofTeam = ({ team }) => (team && team !== "default" ? html` <small>${team}</small>` : nothing);

const agentCell = ({ id, lease }) =>
  html`${rowLink("lease", id, html`<b>${lease.agent}</b>`)}${ofTeam(lease)}
  ${
    lease.preempt_at
      ? html`<b class="state trouble" title="It ends for a request of team ${lease.preempt_for}"
          >preempting in ${span(Math.max(0, lease.preempt_at - now()))}</b
        >`
      : nothing
  }
  ${
    lease.findings.length
      ? html`<b class="state trouble" title=${meansOf(count(lease.findings))}
          >${lease.findings.join(", ")}</b
        >`
      : nothing
  }`;

export const LEASES = [
  { name: "name", label: "Agent", cell: agentCell, sort: (x) => x.lease.agent },
  {
    name: "where",
    label: "GPU",
    cell: (x) => places(x.lease.gpus),
    sort: (x) => places(x.lease.gpus),
  },
  {
    name: "size number",
    label: "Memory",
    cell: (x) => size(x.lease.memory_mb),
    sort: (x) => x.lease.memory_mb,
  },
  {
    name: "left number",
    label: "Time left",
    cell: (x) => left(x.lease),
    sort: (x) => x.lease.expires_at,
  },
  {
    name: "since number",
    label: "Held for",
    cell: (x) => span(now() - x.lease.timestamp),
    sort: (x) => -x.lease.timestamp,
  },
  { name: "token", label: "Token", cell: (x) => short(x.id) },
];

/** What holds a waiter back; its dialog has the sentence. */
const whyCell = ({ waiter }) =>
  html`<span title=${waiter.why}
    >${against(waiter) ? html`<b>${waiter.code}</b> · ${against(waiter)}` : waiter.why}</span
  >`;

export const QUEUE = [
  {
    name: "name",
    label: "Agent",
    cell: (x) => rowLink("waiter", x.id, html`<b>${x.waiter.agent}</b>${ofTeam(x.waiter)}`),
  },
  { name: "size", label: "Asks for", cell: (x) => asks(x.waiter) },
  { name: "since number", label: "Waits", cell: (x) => span(now() - x.waiter.enqueued_at) },
  { name: "why", label: "Why", cell: whyCell },
];

const eventWord = ({ event }) =>
  html`<span class="event ${event.event}" title=${MEANS[event.event]}>${event.event}</span>`;

export const EVENTS = [
  { name: "time number", label: "Time", cell: (x) => clock(x.event.at) },
  { name: "what", label: "Event", cell: eventWord },
  {
    name: "name",
    label: "Agent or host",
    cell: (x) => x.event.agent ?? x.event.by ?? x.event.host ?? "",
  },
  { name: "where", label: "What", cell: (x) => detail(x.event) },
];
