// The API key: asked for, kept for this tab.

import { html } from "./vendor/lit-html.js";
import { key } from "./api.js";
import { close, open } from "./dialog.js";

let entered = () => {};

/** Call this when another key was entered. */
export function onKey(callback) {
  entered = callback;
}

/** Ask for a key. */
export function showKey(why = "") {
  const submit = (event) => {
    event.preventDefault();
    key.set(event.target.elements.secret.value.trim());
    close();
    entered();
  };
  const body = html` <p>
      ${why || "A key says who you are: a viewer sees, an operator acts."} An operator makes one at
      the terminal: <code>gpu-broker keys new NAME --role operator</code>
    </p>
    <form class="act" @submit=${submit}>
      <label
        >Key
        <input
          name="secret"
          type="password"
          autofocus
          autocomplete="off"
          .value=${key.get()}
          placeholder="gbk_…"
      /></label>
      <p class="hint">It is kept until this tab is closed. Empty: none.</p>
      <button>Use it</button>
    </form>`;
  open(() => ({ title: "API key", body }));
}

/** An offer to enter a key, for what the present one may not do or see. */
export const needsKey = (what) =>
  html`<p class="hint">
    ${what}: an operator's key. <button type="button" @click=${() => showKey()}>Enter a key</button>
  </p>`;
