// Views of one thing: a host, a GPU, a lease, a waiter, an event.

import { html, nothing } from "./vendor/lit-html.js";
import { drainForm, quarantineForm, revokeLeaseForm, revokeWaiterForm } from "./acts.js";
import { linkTo } from "./address.js";
import { asks, hostState, inUnit, reservedSays, stateOf } from "./describe.js";
import { open, say } from "./dialog.js";
import { endOfLease, endOfWait } from "./ends.js";
import { Explained } from "./explained.js";
import { clock, short, size, span } from "./format.js";
import { facts, link, meant } from "./markup.js";
import { gpuHealth, gpuProcesses, leaseFindings, leaseProcesses } from "./processes.js";
import { events, large, leasesByDevice, now, operates, rows } from "./state.js";
import { EVENTS } from "./words.js";

const MOST = 50;

const MORE_WITH_A_KEY = html`<span class="hint"
  >and more, which only an operator's key is shown</span
>`;

const REASONS_WITH_A_KEY = html`<p class="hint">
  Each GPU's reason, the requests ahead and the estimate are shown to an operator's key.
</p>`;

/** A token, and a word on the part that is not shown. */
const token = (of) => html`<code>${of.token}</code> ${operates() ? nothing : MORE_WITH_A_KEY}`;

const host = {
  find: (name) => rows.hosts.get(name),
  title: (of, name) => `Host ${name}`,
  gone: () => "This host is not in the pool.",
  body: (of, name) =>
    html` ${facts([
      ["State", meant(hostState(of))],
      ["Since", of.trouble && clock(of.trouble_since)],
      ["Warning", of.warning],
      ["Last report", clock(of.reported_at)],
      ["GPUs", of.devices],
      ["Version", of.version],
    ])}
    ${drainForm(of.drained, { host: name }, "the host, with all its GPUs,")}`,
};

const gpu = {
  find: (uuid) => rows.devices.get(uuid),
  title: (of, uuid) => (of ? `${of.host} GPU ${of.index}` : `GPU ${uuid}`),
  gone: () => "This GPU is not in the pool.",
  body: (of, uuid) =>
    html` ${facts([
      ["Name", of.name + (of.simulated ? " (simulated)" : "")],
      ["UUID", html`<code>${uuid}</code>`],
      ["State", meant(stateOf(of))],
      ...memoryOf(of),
      ["Busy", inUnit(of.utilization_gpu_pct, "%")],
      ["Temperature", inUnit(of.temperature_c, "°C")],
      ["Power", inUnit(of.power_draw_w, "W")],
      ["NVML", of.nvml_error],
    ])}
    ${gpuHealth(of)} ${gpuProcesses(of)} ${leasesOn(leasesByDevice().get(uuid) ?? [])}
    ${of.quarantine && !of.drained ? quarantineForm({ device: uuid }) : nothing}
    ${drainForm(of.drained, { device: uuid }, "the GPU")}`,
};

const memoryOf = (of) => [
  [
    "Memory",
    of.memory_unified ? `${size(of.memory_total_mb)} of its machine's` : size(of.memory_total_mb),
  ],
  ["Leased", size(of.memory_reserved_mb)],
  ["Used by others", size(of.memory_foreign_mb)],
  [
    "Withheld",
    of.memory_withheld_mb
      ? `${size(of.memory_withheld_mb)}: of an expired lease, and not known to be free yet`
      : size(0),
  ],
  ["Kept for the system", size(of.memory_system_mb)],
  ["Left", size(of.memory_left_mb)],
  ["In use, says the driver", of.memory_used_mb == null ? null : size(of.memory_used_mb)],
];

const leasesOn = (leases) =>
  html`<h3>${leases.length ? "Leases" : "No leases"}</h3>
    <ul class="links">
      ${leases
        .slice(0, MOST)
        .map(
          ({ id, lease: of, memory_mb }) =>
            html`<li>${link("lease", id, `${of.agent} · ${size(memory_mb)} · ${short(id)}`)}</li>`,
        )}
    </ul>
    ${leases.length > MOST ? html`<p class="hint">and ${leases.length - MOST} more</p>` : nothing}`;

const lease = {
  find: (id) => rows.leases.get(id),
  title: (of, id) => (of ? `Lease of ${of.agent}` : `Lease ${short(id)}`),
  gone: (id) => {
    const end = endOfLease(id);
    const how = end ? `: ${end.event} at ${clock(end.at)}` : ", or never was in this pool";
    return `This lease is over${how}.`;
  },
  body: (of, id) =>
    html` ${facts([
      ["Token", token(of)],
      [
        "On",
        of.gpus.length
          ? of.gpus.map(
              (g) =>
                html`<div>
                  ${link("gpu", g.uuid, `${g.host} GPU ${g.index}`)}, ${size(g.memory_mb)}
                  <br /><code>${g.uuid}</code>
                </div>`,
            )
          : "the CPU",
      ],
      ["Because", of.reason],
      ["Team", of.team === "default" ? null : of.team],
      [
        "Preempted",
        of.preempt_at ? `ends at ${clock(of.preempt_at)} for team ${of.preempt_for}` : null,
      ],
      ["Note", of.note],
      ["Granted", `${clock(of.timestamp)}, ${span(now() - of.timestamp)} ago`],
      [
        "Ends",
        of.expires_at == null ? "never by itself" : `${clock(of.expires_at)}, unless it is renewed`,
      ],
      ["Asked for", of.ttl_s ? `${span(of.ttl_s)} at a time` : "no expiry"],
      ["Priority", of.priority],
      ["Fence", html`<code>${of.fence}</code>`],
      ["Memory limit", of.enforced ? "enforced by the driver" : null],
      ["Found", leaseFindings(of)],
      ["Its holder was told of", of.notices.join(", ")],
      ["Processes", leaseProcesses(id, of)],
    ])}
    ${revokeLeaseForm(of.token)}`,
};

const waiter = {
  find: (id) => rows.queue.get(id),
  title: (of, id) => (of ? `${of.agent} waits` : `Request ${short(id)}`),
  gone: (id, of) => {
    const end = endOfWait(id, of);
    const how = end ? `: ${end.event} at ${clock(end.at)}` : ", or never did in this pool";
    return `This request waits no more${how}.`;
  },
  body: (of, id, explained) =>
    html` ${facts([
      ["Why", explained.answer?.summary ?? of.why],
      ["Asks for", asks(of)],
      ["Team", of.team === "default" ? null : of.team],
      ["Waits since", `${clock(of.enqueued_at)}, ${span(now() - of.enqueued_at)}`],
      ["Priority", of.priority],
      [
        "Reserved",
        of.reservation ? `${of.reservation.devices.length} GPUs. ${reservedSays(of)}` : null,
      ],
      ["Token", token(of)],
      ...explained.facts(),
    ])}
    ${operates() ? nothing : REASONS_WITH_A_KEY} ${revokeWaiterForm(of.token)}`,
};

const event = {
  find: (id) => events.find((each) => each.id === id),
  title: (of) => of?.event ?? "Event",
  gone: () => "This event is older than what the page knows.",
  stays: true,
  body: ({ devices, ...fields }) =>
    html` <p>${EVENTS[fields.event]}</p>
      ${facts([
        ["Time", clock(fields.at)],
        ...Object.entries(fields).filter(([name]) => !["at", "event"].includes(name)),
        [
          "devices",
          devices.map(
            (d) =>
              html`<div>
                ${d.host ?? ""} GPU ${d.index ?? "?"}
                <code>${d.uuid}</code> ${d.memory_mb ? size(d.memory_mb) : ""}
              </div>`,
          ),
        ],
      ])}`,
};

const UNSEEN = "It is not among the rows that are shown: the filter finds it.";

const VIEWS = { host, gpu, lease, waiter, event };

async function copy(about) {
  try {
    await navigator.clipboard.writeText(linkTo(about));
    say("The link is copied.");
  } catch {
    say(linkTo(about)); // without HTTPS a browser has no clipboard
  }
}

/** Open a subject; it is drawn as last known once it is gone. */
export function show(kind, id) {
  const view = VIEWS[kind];
  const explained = new Explained();
  let last = null;
  open(
    () => {
      const found = view.find(id);
      last = found ?? last;
      if (found && kind === "waiter" && operates()) explained.follow(found);
      const body =
        last &&
        html`${view.body(last, id, explained)}
          <p class="hint">
            <button type="button" @click=${() => copy({ kind, id })}>Copy link</button>
          </p>`;
      return {
        title: view.title(last, id),
        body,
        gone: found || (last && view.stays) ? "" : large() && !last ? UNSEEN : view.gone(id, last),
      };
    },
    { kind, id },
  );
}
