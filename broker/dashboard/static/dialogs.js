// What one row is about, and what an operator may do to it.

import { html, nothing, render } from "./vendor/lit-html.js";
import { ask, key } from "./api.js";
import { clock, short, size, span } from "./format.js";
import { leasesByDevice, now, operates, pool, rows } from "./state.js";
import { asks, hostState, reservedSays, stateOf } from "./panels.js";
import { gpuHealth, gpuProcesses, leaseFound, leaseProcesses } from "./processes.js";
import { ACTIONS, EVENTS, FINDINGS, STATES } from "./words.js";

const dialog = document.getElementById("dialog");
let shown = 0; // grows with each dialog that is opened and each that is closed

function open(title, content) {
  shown += 1;
  if (dialog.open) dialog.close();
  render(nothing, dialog); // lit would reuse the last one's fields, with what was typed into them
  fill(title, content);
  dialog.showModal();
}

/** What is open says this from now on; what was typed into it stays. */
function fill(title, content) {
  render(
    html`<form method="dialog" class="bar-top">
        <h2 id="dialog-title">${title}</h2>
        <button aria-label="Close">✕</button>
      </form>
      ${content}
      <p class="said" role="alert"></p>`,
    dialog,
  );
}

// The event comes later than the end: another may be open by then.
dialog.addEventListener("close", () => {
  if (dialog.open) return;
  shown += 1;
  render(nothing, dialog);
});

/** Tells, later, whether what is open now still is: an answer belongs to the dialog that asked. */
function watch() {
  const mine = shown;
  return () => mine === shown && dialog.open;
}

/** Close it. */
export const close = () => dialog.close();

/** Whether one is open: keys then belong to it. */
export const isOpen = () => dialog.open;

function say(text) {
  dialog.querySelector(".said").textContent = text;
}

// A click beside it closes it.
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

/** Names and what is known of each; what is unknown is left out. */
export const facts = (pairs) =>
  html`<dl class="facts">
    ${pairs.filter(([, value]) => value != null && value !== "" && value.length !== 0).map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}
  </dl>`;

/** A form that asks for a reason and acts. */
function act(label, explained, path, body, { force = false, danger = false } = {}) {
  if (!operates()) {
    return html`<p class="hint">To ${label.toLowerCase()}: an operator's key.
      <button type="button" @click=${() => showKey()}>Enter a key</button></p>`;
  }
  const submit = async (event) => {
    event.preventDefault();
    const form = event.target;
    const here = watch();
    form.inert = true;
    say("");
    try {
      const reason = form.elements.reason.value;
      await ask(path, { ...body, reason, ...(force && form.elements.force.checked ? { force: true } : {}) });
      if (here()) close();
    } catch (error) {
      form.inert = false;
      if (!here()) return;
      say(error.message);
      event.submitter.focus(); // inert took it away
    }
  };
  return html`<form class="act" @submit=${submit}>
    <p>${explained}</p>
    <label>Reason <input name="reason" maxlength="256" placeholder="for the log" autocomplete="off"></label>
    ${force
      ? html`<label class="check"><input type="checkbox" name="force"> End it now, although its holder still trusts it</label>`
      : nothing}
    <button class=${danger ? "danger" : ""}>${label}</button>
  </form>`;
}

const meant = ({ word, means }) => html`<b>${word}</b><br>${means}`;

const undrain = (body, explained) => act("Undrain", explained, "undrain", body);

const drainOf = (drained, body, what) =>
  drained
    ? undrain(body, `Undrained, ${what} takes new leases again. A quarantine is lifted too.`)
    : act("Drain", `Drained, ${what} takes no new leases; those that run go on.`, "drain", body);

/** A host. */
export function showHost(name) {
  const host = rows.hosts.get(name);
  if (!host) return;
  open(`Host ${name}`, html`
    ${facts([
      ["State", meant(hostState(host))],
      ["Last report", clock(host.reported_at)],
      ["GPUs", host.devices],
      ["Version", host.version],
    ])}
    ${drainOf(host.drained, { host: name }, "the host, with all its GPUs,")}`);
}

/** A device. */
export function showDevice(uuid) {
  const gpu = rows.devices.get(uuid);
  if (!gpu) return;
  const leases = leasesByDevice().get(uuid) ?? [];
  const known = (value, unit) => (value == null ? null : `${Math.round(value)} ${unit}`);
  open(`${gpu.host} GPU ${gpu.index}`, html`
    ${facts([
      ["Name", gpu.name + (gpu.simulated ? " (simulated)" : "")],
      ["UUID", html`<code>${uuid}</code>`],
      ["State", meant(stateOf(gpu))],
      ["Memory", size(gpu.memory_total_mb)],
      ["Leased", size(gpu.memory_reserved_mb)],
      ["Used by others", size(gpu.memory_foreign_mb)],
      ["Withheld", gpu.memory_withheld_mb ? `${size(gpu.memory_withheld_mb)}: a lease expired, and its memory is not known to be free yet` : size(0)],
      ["Kept for the system", size(gpu.memory_system_mb)],
      ["Left", size(gpu.memory_left_mb)],
      ["In use, says the driver", gpu.memory_used_mb == null ? null : size(gpu.memory_used_mb)],
      ["Busy", known(gpu.utilization_gpu_pct, "%")],
      ["Temperature", known(gpu.temperature_c, "°C")],
      ["Power", known(gpu.power_draw_w, "W")],
      ["NVML", gpu.nvml_error],
    ])}
    ${gpuHealth(gpu)}
    ${gpuProcesses(gpu, (id) => () => showLease(id))}
    <h3>${leases.length ? "Leases" : "No leases"}</h3>
    <ul class="links">${leases.slice(0, 50).map(({ id, lease, memory_mb }) => html`<li>
      <button type="button" @click=${() => showLease(id)}>${lease.agent} · ${size(memory_mb)} · ${short(id)}</button></li>`)}
    </ul>
    ${gpu.quarantine && !gpu.drained
      ? undrain({ device: uuid }, "Undrained, its quarantine is lifted: the GPU takes new leases again, whatever its host found.")
      : nothing}
    ${drainOf(gpu.drained, { device: uuid }, "the GPU")}`);
}

/** A lease. */
export function showLease(id) {
  const lease = rows.leases.get(id);
  if (!lease) return;
  open(`Lease of ${lease.agent}`, html`
    ${facts([
      ["Token", html`<code>${lease.token}</code>`],
      ["On", lease.gpus.length ? lease.gpus.map((g) => html`<div>${g.host} GPU ${g.index}, ${size(g.memory_mb)}<br><code>${g.uuid}</code></div>`) : "the CPU"],
      ["Because", lease.reason],
      ["Granted", `${clock(lease.timestamp)}, ${span(now() - lease.timestamp)} ago`],
      ["Ends", lease.expires_at == null ? "never by itself" : `${clock(lease.expires_at)}, unless it is renewed`],
      ["Asked for", lease.ttl_s ? `${span(lease.ttl_s)} at a time` : "no expiry"],
      ["Priority", lease.priority],
      ["Fence", html`<code>${lease.fence}</code>`],
      ["Found", leaseFound(lease)],
      ["Its holder was told of", lease.notices.join(", ")],
      ["Processes", leaseProcesses(id, lease)],
    ])}
    ${act("Revoke", "Revoked, it ends at its holder's next renewal, within a minute.", "revoke", { token: lease.token }, { force: true, danger: true })}`);
}

/** One who waits: why, as the broker explains it. */
export async function showWaiter(id) {
  const waiter = rows.queue.get(id);
  if (!waiter) return;
  const about = (explained) => html`
    ${facts([
      ["Why", explained?.summary ?? waiter.why],
      ["Asks for", asks(waiter)],
      ["Waits since", `${clock(waiter.joined_at)}, ${span(now() - waiter.joined_at)}`],
      ["Priority", waiter.priority],
      ["Reserved", waiter.reservation ? `${waiter.reservation.devices.length} GPUs. ${reservedSays(waiter)}` : null],
      ["Token", html`<code>${waiter.token}</code>`],
      ["Served in about", explained?.estimate_s == null ? null : `${span(explained.estimate_s)}, ${explained.basis}`],
      ["Would fit now", explained?.fits_now?.length ? explained.fits_now.map((each) => html`<div>${each.says}</div>`) : null],
      ["Ahead", explained?.ahead?.map((each) => html`<div>${each.agent}, ${size(each.memory_mb)}</div>`)],
      ["GPUs", explained?.devices?.filter((d) => !["other_host", "other_model"].includes(d.reason)).slice(0, 32).map((d) => html`<div>${d.host} GPU ${d.index}: ${d.says}</div>`)],
    ])}
    ${act("Revoke", "Revoked, it loses its place in the line.", "revoke", { token: waiter.token }, { danger: true })}`;
  const title = `${waiter.agent} waits`;
  open(title, about(null));
  if (!operates()) return; // whoever is told less of the token may not ask
  const here = watch();
  try {
    const explained = await ask(`lease/${encodeURIComponent(waiter.token)}/explain`);
    if (here()) fill(title, about(explained));
  } catch (error) {
    if (here()) say(error.message);
  }
}

/** An event, as it stands in the stream. */
export function showEvent(event) {
  const { devices, ...fields } = event;
  open(event.event, html`
    <p>${EVENTS[event.event]}</p>
    ${facts([
      ["Time", clock(event.at)],
      ...Object.entries(fields).filter(([name]) => !["at", "event"].includes(name)),
      ["devices", devices.map((d) => html`<div>${d.host ?? ""} GPU ${d.index ?? "?"} <code>${d.uuid}</code> ${d.memory_mb ? size(d.memory_mb) : ""}</div>`)],
    ])}`);
}

const POLICY = [
  ["max_memory_per_agent_mb", "Most memory that one agent may hold, MiB", "number"],
  ["default_memory_mb", "Memory of a lease that names none, MiB", "number"],
  ["expiry_grace_s", "Memory of an expired lease is withheld for, s", "number"],
  ["max_leases_per_agent", "Most leases of one agent", "number"],
  ["max_waiters_per_agent", "Most places in the line of one agent", "number"],
  ["idle_action", "A lease that idles", "select"],
  ["overuse_action", "A lease that uses more than it holds", "select"],
  ["squatter_action", "A process without a lease", "select"],
  ["orphan_action", "A process of a lease that is over", "select"],
  ["idle_after_s", "A lease idles when it has done nothing for, s", "number"],
  ["enforce_after_s", "What is enforced comes after another, s", "number"],
  ["overuse_slack_mb", "Memory that a lease may use beyond what it holds, MiB", "number"],
  ["reservation_idle_s", "GPUs reserved for one that waits may go unused for, s; 0: none is reserved", "number"],
  ["xid_actions", "What errors of a GPU mean, as 31=suspect,79=hold; empty: NVIDIA's table", "text"],
  ["forget_devices_after_s", "A GPU that its host lists no more is forgotten after, s", "number"],
  ["forget_hosts_after_s", "A host that is silent is forgotten after, s", "number"],
  ["allow_fractional_shares", "GPUs may be shared", "checkbox"],
  ["kill_on_oom", "Over-using processes may be ended", "checkbox"],
];

/** The pool's policy. */
export function showPolicy() {
  const policy = pool();
  if (!policy) return;
  const fixed = !operates() || policy.safe_mode_read_only;
  const submit = async (event) => {
    event.preventDefault();
    const changed = {};
    for (const [name, , type] of POLICY) {
      const field = event.target.elements[name];
      const value = { checkbox: field.checked, number: Number(field.value) }[type] ?? field.value;
      if (value !== policy[name]) changed[name] = value;
    }
    const here = watch();
    try {
      const said = await ask("policy", changed);
      if (!here()) return;
      if (said.note) say(said.note);
      else close();
    } catch (error) {
      if (here()) say(error.message);
    }
  };
  const field = ([name, label, type]) => (type === "select" ? choice(name, label) : html`<label class=${type === "checkbox" ? "check" : ""}>
    ${label} <input name=${name} type=${type} .checked=${policy[name] === true} .value=${String(policy[name])}
      min="0" step="1" ?disabled=${fixed} ?required=${type === "number"}></label>`);
  const choice = (name, label) => html`<label>${label}
    <select name=${name} ?disabled=${fixed}>
      ${Object.entries(ACTIONS).map(([word, means]) => html`<option value=${word} ?selected=${policy[name] === word}>${word}: ${means}</option>`)}
    </select></label>`;
  open("Policy", html`
    <p>SAFE_MODE is ${policy.safe_mode_read_only ? "ON: nobody gets a GPU, and nothing here can be changed" : "off"}.
      It is switched at the terminal: <code>gpu-broker policy set safe_mode=${!policy.safe_mode_read_only}</code></p>
    <form class="act" @submit=${submit}>
      ${POLICY.map(field)}
      ${fixed ? nothing : html`<button>Change</button>`}
    </form>
    ${operates() ? nothing : html`<p class="hint">To change it: an operator's key.
      <button type="button" @click=${() => showKey()}>Enter a key</button></p>`}`);
}

let reconnect = () => {};

/** What to do when another key was entered. */
export function onKey(callback) {
  reconnect = callback;
}

/** The API key. */
export function showKey(why = "") {
  const submit = (event) => {
    event.preventDefault();
    key.set(event.target.elements.secret.value.trim());
    close();
    reconnect();
  };
  open("API key", html`
    <p>${why || "A key says who you are: a viewer sees, an operator acts."} An operator makes one at the terminal:
      <code>gpu-broker keys new NAME --role operator</code></p>
    <form class="act" @submit=${submit}>
      <label>Key <input name="secret" type="password" autofocus autocomplete="off" .value=${key.get()} placeholder="gbk_…"></label>
      <p class="hint">It is kept until this tab is closed. Empty: none.</p>
      <button>Use it</button>
    </form>`);
}

/** Help. */
export function showHelp() {
  const keys = [
    ["/", "filter"], ["Esc", "leave the filter, close this"], ["1 2 3 4", "GPUs, leases, line, events"],
    ["↑ ↓ Enter", "choose a row, open it"], ["Tab Enter", "go to a column's heading, sort by it"], ["p", "policy"], ["k", "API key"], ["t", "dark or light"], ["?", "this"],
  ];
  open("Help", html`
    ${facts(keys.map(([name, what]) => [html`<kbd>${name}</kbd>`, what]))}
    <p>A <b>lease</b> is the right to use memory of a GPU, or all of it, until a time. Whoever finds no room
      stands in the <b>line</b>. Memory is <b>used by others</b> when processes without a lease use it, <b>withheld</b>
      when it was an expired lease's and is not known to be free yet, the <b>system</b>'s when it is never leased.</p>
    <p>A GPU may be:</p>
    ${facts(Object.entries(STATES).map(([word, means]) => [html`<b>${word}</b>`, means]))}
    <p>Its host may find:</p>
    ${facts(Object.entries(FINDINGS).map(([word, means]) => [html`<b>${word}</b>`, means]))}
    <p>The same in a terminal: <code>gpu-broker status -w</code>, <code>gpu-broker events -f</code>.
      For programs: <a href="docs">the API</a>.</p>`);
}
