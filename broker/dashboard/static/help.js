// Help: keys, and the meaning of words.

import { html } from "./vendor/lit-html.js";
import { open } from "./dialog.js";
import { facts } from "./markup.js";
import { FINDINGS, STATES } from "./words.js";

const KEYS = [
  ["/", "filter"],
  ["Esc", "leave the filter, close this"],
  ["1 2 3 4", "GPUs, leases, queue, events"],
  ["↑ ↓ Enter", "choose a row, open it"],
  ["Tab Enter", "go to a column's heading, sort by it"],
  ["u", "what was used, or what is now"],
  ["v", "GPUs as a list or as tiles"],
  ["p", "policy"],
  ["k", "API key"],
  ["t", "dark or light"],
  ["?", "this"],
];

const meanings = (words) =>
  facts(Object.entries(words).map(([word, means]) => [html`<b>${word}</b>`, means]));

const view = () => ({
  title: "Help",
  body: html` ${facts(KEYS.map(([name, what]) => [html`<kbd>${name}</kbd>`, what]))}
    <p>
      A <b>lease</b> is the right to use memory of a GPU, or all of it, until a time. A request that
      finds no room waits in the <b>queue</b>. Memory is <b>used by others</b> when processes
      without a lease use it, <b>withheld</b> when it was an expired lease's and is not known to be
      free yet, <b>reserved</b> when it waits for a request that has waited long, the
      <b>system</b>'s when it is never leased.
    </p>
    <p>A GPU may be:</p>
    ${meanings(STATES)}
    <p>Its host may find:</p>
    ${meanings(FINDINGS)}
    <p>
      The same in a terminal: <code>gpu-broker status -w</code>, <code>gpu-broker events -f</code>.
      For programs: <a href="docs">the API</a>.
    </p>`,
});

/** Help. */
export const showHelp = () => open(view);
