// The figures of the whole pool.

import { html, nothing } from "./vendor/lit-html.js";
import { hrefOfFilter } from "./address.js";
import { figuresOf, nothingFree } from "./figures.js";
import { percent, size } from "./format.js";
import { large, rows } from "./state.js";
import { FINDINGS, STATES } from "./words.js";

const MEMORY = [
  ["leased", "leased"],
  ["others", "used by others"],
  ["withheld", "withheld"],
  ["reserved", "reserved"],
  ["system", "system"],
  ["free", "free"],
];

const figure = (label, value, note, kind = "") =>
  html`<div class="figure ${kind}">
    <dt>${label}</dt>
    <dd>${value}</dd>
    <dd class="note">${note}</dd>
  </div>`;

/** Counted words, each of which fills the filter. */
const filters = (counts, means) =>
  counts.map(
    ([word, times], n) =>
      html`${n ? ", " : ""}<a href=${hrefOfFilter(word)} title=${means[word]}>${times} ${word}</a>`,
  );

function findings(counts) {
  if (!counts.length) return nothing;
  return html`<p class="findings">
    <b class="state trouble">Found</b> ${filters(counts, FINDINGS)}
  </p>`;
}

/** The hosts whose GPUs are not all seen. */
function unseen() {
  const hosts = [...rows.hosts.values()].filter((host) => host.alive && host.trouble);
  if (!hosts.length) return nothing;
  return html`<p class="findings">
    <b class="state trouble">Not seen</b>
    ${hosts.map(
      ({ host, trouble }, n) =>
        html`${n ? "; " : ""}<a href=${hrefOfFilter(host)}>${host}</a>: ${trouble}`,
    )}
  </p>`;
}

/** The figures of all GPUs as the broker tells them of a pool of which a part is known. */
const figuresTold = (told) => ({
  ...told,
  states: Object.entries(told.states),
  findings: Object.entries(told.findings),
});

/** Figures of the whole pool, and the colours of the memory bars. */
export function summary(pool, broker) {
  if (large()?.devices && !large().gpus)
    return html`<p class="findings">The GPUs of this pool are being read.</p>`;
  const of = large() ? figuresTold(large()) : figuresOf([...rows.devices.values()]);
  const { free_mb, total_mb, leased_mb, states } = of;
  const safe = pool.safe_mode_read_only || broker.safe_mode;
  const blocked_mb = of.left_mb - free_mb;
  const total = `of ${size(total_mb)}`;
  const none = nothingFree(pool, broker);
  const room = none
    ? `none: ${none}`
    : blocked_mb
      ? `${total}; ${size(blocked_mb)} not leasable`
      : total;
  const figures = states.length
    ? figure("GPUs", of.gpus, filters(states, STATES), "trouble")
    : figure("GPUs", of.gpus, "all ok", "");
  const on = pool.cpu_leases ? `and ${pool.cpu_leases} on the CPU` : "on GPUs";
  return html`<dl>
      ${figures} ${figure("Free to lease", size(safe ? 0 : free_mb), room)}
      ${figure("Leased", percent(leased_mb, total_mb), size(leased_mb))}
      ${figure("Leases", pool.leases, on)}
      ${figure("Waiting", pool.waiting, pool.waiting ? "the queue says why" : "no request")}
      ${
        safe
          ? figure("SAFE_MODE", "ON", "no GPU is leased", "trouble")
          : figure("SAFE_MODE", "off", "GPUs are leased", "")
      }
    </dl>
    ${findings(of.findings)} ${unseen()}
    <ul class="legend" aria-label="Colours of the memory bars">
      ${MEMORY.map(([kind, label]) => html`<li><i class=${kind}></i>${label}</li>`)}
    </ul>`;
}
