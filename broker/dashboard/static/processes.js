// The processes on a GPU, its findings, and its health.

import { html, nothing } from "./vendor/lit-html.js";
import { inUnit } from "./describe.js";
import { clock, short, size } from "./format.js";
import { facts, link } from "./markup.js";
import { rows } from "./state.js";
import { FINDINGS } from "./words.js";

const MOST = 50;

const GRAPHICS = html`<span class="hint" title="it draws, and computes nothing">graphics</span>`;

const meant = (words) => words.map((word) => html`<div><b>${word}</b>: ${FINDINGS[word]}</div>`);

// Numbers above 4 mean different things on different drivers: the quarantine's reason says which.
const RECOVERY = [
  "nothing",
  "a reset of the GPU",
  "a reboot",
  "an end of all peer-to-peer traffic",
  "an end of all peer-to-peer traffic and a reset of the GPU",
];

/** What is found, errors, clocks. */
export function gpuHealth(gpu) {
  const known = [
    ["Found", meant([...new Set(gpu.findings.map((each) => each.kind))])],
    ["Last error", gpu.xid && `XID ${gpu.xid}${gpu.xid_at ? `, ${clock(gpu.xid_at)}` : ""}`],
    [
      "Wants",
      gpu.recovery_action
        ? (RECOVERY[gpu.recovery_action] ?? `recovery action ${gpu.recovery_action}`)
        : null,
    ],
    [
      "Memory errors",
      gpu.ecc_uncorrected ? `${gpu.ecc_uncorrected} that ECC could not correct` : null,
    ],
    [
      "Memory rows",
      gpu.rows_failed
        ? "some cannot be remapped"
        : gpu.rows_pending
          ? "some wait for a reset"
          : null,
    ],
    [
      "Clocks",
      gpu.clock_sm_mhz == null
        ? null
        : [
            inUnit(gpu.clock_sm_mhz, "MHz"),
            `memory ${inUnit(gpu.clock_memory_mhz, "MHz") ?? "unknown"}`,
          ].join(", "),
    ],
    ["Power limit", inUnit(gpu.power_limit_w, "W")],
    ["MPS", gpu.mps ? "runs on it" : null],
    ["One lease at a time", gpu.one_lease],
    ["A part of", gpu.parent && html`<code>${gpu.parent}</code>`],
  ].filter(([, value]) => value != null && value !== "" && value.length !== 0);
  return known.length ? facts(known) : nothing;
}

/** The processes on a GPU, each with its lease. */
export function gpuProcesses(gpu) {
  if (gpu.processes === null) {
    if (!gpu.processes_unseen) return nothing;
    return html`<h3>Processes</h3>
      <p class="hint">Its host cannot tell: ${gpu.processes_unseen}</p>`;
  }
  if (!gpu.processes.length) return html`<h3>No processes</h3>`;
  const more =
    gpu.processes_unseen &&
    html`<p class="hint">Its host cannot tell all: ${gpu.processes_unseen}</p>`;
  return html`<h3>Processes</h3>
    ${table(gpu.processes)}${more || nothing}`;
}

function whose(process) {
  const lease = rows.leases.get(process.token);
  const word = process.finding;
  return html`${word ? html`<b class="state trouble" title=${FINDINGS[word]}>${word}</b>` : nothing}
  ${process.graphics_only ? GRAPHICS : nothing}
  ${lease ? link("lease", process.token, lease.agent) : process.token && short(process.token)}`;
}

function table(processes) {
  const more = processes.length - MOST;
  return html`<table class="processes">
      <thead>
        <tr>
          <th scope="col">PID</th>
          <th scope="col">Program</th>
          <th scope="col">Memory</th>
          <th scope="col">Busy</th>
          <th scope="col">Lease</th>
        </tr>
      </thead>
      <tbody>
        ${processes.slice(0, MOST).map(
          (process) =>
            html`<tr>
              <td class="fixed">${process.pid}</td>
              <td>${process.name} <span class="hint">${process.user}</span></td>
              <td class="fixed">${size(process.memory_mb)}</td>
              <td class="fixed">${inUnit(process.busy_pct, "%") ?? "–"}</td>
              <td>${whose(process)}</td>
            </tr>`,
        )}
      </tbody>
    </table>
    ${more > 0 ? html`<p class="hint">and ${more} more</p>` : nothing}`;
}

/** The findings of a lease, each with its meaning. */
export const leaseFindings = (lease) => meant(lease.findings);

/** A lease's processes on its GPUs, a line each. */
export const leaseProcesses = (id, lease) =>
  lease.gpus
    .flatMap((gpu) =>
      (rows.devices.get(gpu.uuid)?.processes ?? [])
        .filter((process) => process.token === id)
        .map((process) => ({ gpu, process })),
    )
    .slice(0, MOST)
    .map(
      ({ gpu, process }) =>
        html`<div>
          ${process.name} (pid ${process.pid}, ${process.user}): ${size(process.memory_mb)} on GPU
          ${gpu.index}
        </div>`,
    );
