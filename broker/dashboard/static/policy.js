// The pool's policy, as a form of the fields that the broker declares.

import { html, nothing } from "./vendor/lit-html.js";
import { ask } from "./api.js";
import { close, open, redraw, say, watch } from "./dialog.js";
import { needsKey } from "./key.js";
import { operates, pool } from "./state.js";

const ELSEWHERE = ["safe_mode"]; // set at the terminal

let declared = null; // {fields, words by kind}, asked for once

/** Ask for the fields; the form says why it has none. */
async function declare() {
  const here = watch();
  try {
    const said = await ask("static/policy-fields.json");
    declared = { ...said, fields: said.fields.filter(({ name }) => !ELSEWHERE.includes(name)) };
    redraw();
  } catch (error) {
    if (here()) say(error.message);
  }
}

function control(field, value, fixed) {
  const { name, kind, label, meaning } = field;
  if (kind === "flag")
    return html`<label class="check" title=${meaning}
      ><input name=${name} type="checkbox" .checked=${value} ?disabled=${fixed} /> ${label}</label
    >`;
  return html`<label title=${meaning}
    >${label}
    ${declared.words[kind] ? choice(field, value, fixed) : entry(field, value, fixed)}</label
  >`;
}

const option = (word, means, value) =>
  html`<option value=${word} .selected=${value === word}>${word}: ${means}</option>`;

const choice = ({ name, kind }, value, fixed) =>
  html`<select name=${name} ?disabled=${fixed}>
    ${Object.entries(declared.words[kind]).map(([word, means]) => option(word, means, value))}
  </select>`;

const entry = ({ name, kind, least, most, accepts }, value, fixed) =>
  kind === "number"
    ? html`<input
        name=${name}
        type="number"
        required
        step="1"
        min=${least}
        max=${most}
        .value=${String(value)}
        ?disabled=${fixed}
      />`
    : html`<input
        name=${name}
        type="text"
        placeholder=${accepts}
        .value=${value}
        ?disabled=${fixed}
      />`;

/** The fields of a form that are other than the policy. */
function changedIn(form, policy) {
  const changed = {};
  for (const { name, kind } of declared.fields) {
    const input = form.elements[name];
    const value = { flag: input.checked, number: Number(input.value) }[kind] ?? input.value;
    if (value !== policy[name]) changed[name] = value;
  }
  return changed;
}

async function submit(event) {
  event.preventDefault();
  const form = event.target;
  const wrong = declared.fields.find(({ name }) => !form.elements[name].validity.valid);
  if (wrong) {
    form.elements[wrong.name].focus();
    return say(`${wrong.name} must be ${wrong.accepts}`);
  }
  const here = watch();
  try {
    const said = await ask("policy", changedIn(form, pool()));
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
  const form = () =>
    html`<form class="act" novalidate @submit=${submit}>
      ${declared.fields.map((field) => control(field, policy[field.name], fixed))}
      ${fixed ? nothing : html`<button>Change</button>`}
    </form>`;
  const safe = policy.safe_mode_read_only;
  const body = html`<p>
      SAFE_MODE is ${safe ? "ON: no GPU is leased, and nothing here can be changed" : "off"}. It is
      switched at the terminal:
      <code>gpu-broker policy set safe_mode=${!safe}</code>
    </p>
    ${declared ? form() : nothing} ${operates() ? nothing : needsKey("To change it")}`;
  return { title: "Policy", body };
}

/** The pool's policy. */
export function showPolicy() {
  if (!pool()) return;
  open(view);
  if (!declared) declare();
}
