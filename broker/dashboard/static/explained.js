// The broker's explanation of a wait: asked for when its dialog opens, and when the reason changes.

import { html } from "./vendor/lit-html.js";
import { ask } from "./api.js";
import { redraw, say, watch } from "./dialog.js";
import { size, span } from "./format.js";

const PAUSE_MS = 5_000; // an answer reads the whole pool: not more often than that
const ELSEWHERE = ["other_host", "other_model"];

export class Explained {
  answer = null;
  #of = null; // the reason that was explained last
  #at = -PAUSE_MS;

  /** Ask about this waiter, if it stands other than when it was asked last. */
  follow(waiter) {
    if (waiter.why === this.#of || performance.now() < this.#at + PAUSE_MS) return;
    this.#of = waiter.why;
    this.#at = performance.now();
    queueMicrotask(() => this.#ask(waiter.token)); // the dialog is being drawn
  }

  async #ask(token) {
    const here = watch();
    try {
      const answer = await ask(`lease/${encodeURIComponent(token)}/explain`);
      if (!here()) return;
      this.answer = answer;
      redraw();
    } catch (error) {
      if (here()) say(error.message);
    }
  }

  /** What the broker knows beyond the row. */
  facts() {
    const said = this.answer;
    if (!said) return [];
    return [
      [
        "Served in about",
        said.estimate_s == null ? null : `${span(said.estimate_s)}, ${said.basis}`,
      ],
      ["Would fit now", said.fits_now?.map((each) => html`<div>${each.says}</div>`)],
      ["Ahead", said.ahead?.map((each) => html`<div>${each.agent}, ${size(each.memory_mb)}</div>`)],
      [
        "GPUs",
        said.devices
          ?.filter((d) => !ELSEWHERE.includes(d.reason))
          .slice(0, 32)
          .map((d) => html`<div>${d.host} GPU ${d.index}: ${d.says}</div>`),
      ],
    ];
  }
}
