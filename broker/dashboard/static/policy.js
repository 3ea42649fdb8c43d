// The pool's policy, as a form.

import { html, nothing } from "./vendor/lit-html.js";
import { ask } from "./api.js";
import { close, open, say, watch } from "./dialog.js";
import { needsKey } from "./key.js";
import { operates, pool } from "./state.js";
import { ACTIONS } from "./words.js";

const FIELDS = [
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

function input([name, label, type], policy, fixed) {
  if (type === "select") return choice(name, label, policy, fixed);
  return html`<label class=${type === "checkbox" ? "check" : ""}>
    ${label} <input name=${name} type=${type} .checked=${policy[name] === true} .value=${String(policy[name])}
      min="0" step="1" ?disabled=${fixed} ?required=${type === "number"}></label>`;
}

const choice = (name, label, policy, fixed) => html`<label>${label}
  <select name=${name} ?disabled=${fixed}>
    ${Object.entries(ACTIONS).map(([word, means]) => html`<option value=${word} .selected=${policy[name] === word}>${word}: ${means}</option>`)}
  </select></label>`;

/** The fields of a form that are other than the policy. */
function changedIn(form, policy) {
  const changed = {};
  for (const [name, , type] of FIELDS) {
    const field = form.elements[name];
    const value = { checkbox: field.checked, number: Number(field.value) }[type] ?? field.value;
    if (value !== policy[name]) changed[name] = value;
  }
  return changed;
}

async function submit(event) {
  event.preventDefault();
  const here = watch();
  try {
    const said = await ask("policy", changedIn(event.target, pool()));
    if (!here()) return;
    if (said.note) say(said.note);
    else close();
  } catch (error) {
    if (here()) say(error.message);
  }
}

function view() {
  const policy = pool();
  const fixed = !operates() || policy.safe_mode_read_only;
  const body = html`
    <p>SAFE_MODE is ${policy.safe_mode_read_only ? "ON: nobody gets a GPU, and nothing here can be changed" : "off"}.
      It is switched at the terminal: <code>gpu-broker policy set safe_mode=${!policy.safe_mode_read_only}</code></p>
    <form class="act" @submit=${submit}>
      ${FIELDS.map((field) => input(field, policy, fixed))}
      ${fixed ? nothing : html`<button>Change</button>`}
    </form>
    ${operates() ? nothing : needsKey("To change it")}`;
  return { title: "Policy", body };
}

/** The pool's policy. */
export function showPolicy() {
  if (pool()) open(view);
}
