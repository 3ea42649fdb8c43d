// Pieces of the page that more than one part of it shows.

import { html, nothing, svg } from "./vendor/lit-html.js";
import { hrefOf } from "./address.js";
import {
  findingsOf,
  meansOf,
  memoryParts,
  memorySays,
  stateLine,
  stateOf,
  troubled,
  wordsOf,
} from "./describe.js";

/** Names and what is known of each; what is unknown is left out. */
export const facts = (pairs) =>
  html`<dl class="facts">
    ${pairs
      .filter(([, value]) => value != null && value !== "" && value.length !== 0)
      .map(
        ([name, value]) =>
          html`<dt>${name}</dt>
            <dd>${value}</dd>`,
      )}
  </dl>`;

/** A word and its meaning, for the facts of a dialog. */
export const meant = (state) => html`<b>${stateLine(state)}</b><br />${state.means}`;

/** A link that opens a subject. Lists are walked with the arrow keys: Tab passes theirs by. */
export const link = (kind, id, text) => html`<a href=${hrefOf(kind, id)}>${text}</a>`;
export const rowLink = (kind, id, text) =>
  html`<a href=${hrefOf(kind, id)} tabindex="-1">${text}</a>`;

/**
 * A device's memory as a bar.
 *
 * @param colour gives the class of a part; its kind, if not said
 */
export function memoryBar(gpu, leases, colour = (part) => part.kind) {
  const total = gpu.memory_total_mb || 1;
  let at = 0;
  const rects = memoryParts(gpu, leases).map((part) => {
    const x = (100 * at) / total;
    at += part.mb;
    const width = Math.max(0, Math.min((100 * part.mb) / total, 100 - x));
    return svg`<rect class=${colour(part)} x="${x}%" y="0" height="100%" width="${width}%"/>`;
  });
  const says = memorySays(gpu);
  return html`<svg class="bar" role="img" aria-label=${says}>
    <title>${says}</title>
    ${rects}
  </svg>`;
}

/** A state's word, coloured; words that are as urgent; then its note, which may be cut short. */
export const stateCell = (state, trouble, more = nothing) =>
  html`<span title="${stateLine(state)}: ${state.means}"
    ><b class="state ${trouble ? "trouble" : state.word}">${state.word}</b> ${more}
    ${state.note ? html`<small>${state.note}</small>` : nothing}</span
  >`;

/** A device's state; what is found on it stands before a state that says nothing. */
export function gpuState(gpu) {
  const state = stateOf(gpu);
  const counts = findingsOf(gpu);
  if (!counts.length) return stateCell(state, troubled(gpu));
  const worst = counts[0][0] + (counts.length > 1 ? ` +${counts.length - 1}` : "");
  const found = html`<b class="state trouble" title="${wordsOf(counts)}; ${meansOf(counts)}"
    >${worst}</b
  >`;
  return state.word === "ok" ? found : stateCell(state, troubled(gpu), found);
}
