// Finished leases, the newest first, with their peak against what they asked for.

import { html, nothing } from "./vendor/lit-html.js";
import { model } from "./describe.js";
import { clock, hours, percent, size, sizeOf, span } from "./format.js";
import { readHistory } from "./usage_data.js";

const HEADS = [
  ["Agent"],
  ["Peak of what it asked"],
  ["Ended"],
  ["Held", "number"],
  ["Busy", "number"],
  ["Waited", "number"],
  ["Where"],
  ["End"],
];

/** A lease's peak within what it had leased. */
function peak(lease) {
  if (!lease.memory_mb) return "–";
  if (lease.peak_mb == null) return html`<small>not known of</small> ${size(lease.memory_mb)}`;
  const says = sizeOf(lease.peak_mb, lease.memory_mb);
  const above = lease.peak_mb > lease.memory_mb;
  const width = Math.min(100, (100 * lease.peak_mb) / lease.memory_mb);
  return html`<svg class="bar" aria-hidden="true">
      <rect class=${above ? "over" : "leased"} x="0" y="0" height="100%" width="${width}%"></rect>
    </svg>
    <span class=${above ? "state trouble" : ""}>${says}</span>`;
}

const where = (lease) =>
  lease.host
    ? html`${lease.host} <small>${lease.gpus.length} × ${model(lease.model)}</small>`
    : "CPU";

const busy = (lease) =>
  lease.observed_gpu_s ? percent(lease.busy_gpu_s, lease.observed_gpu_s) : "–";

const column = ([head, kind]) => html`<th scope="col" class=${kind ?? nothing}>${head}</th>`;

const row = (lease) =>
  html`<tr>
    <th scope="row">${lease.agent} <small>${lease.team}</small></th>
    <td class="peak">${peak(lease)}</td>
    <td>${clock(lease.ended_at)}</td>
    <td class="number" title="${hours(lease.gpu_hours)} GPU-hours">${span(lease.held_s)}</td>
    <td class="number">${busy(lease)}</td>
    <td class="number">${lease.waited_s == null ? "–" : span(lease.waited_s)}</td>
    <td>${where(lease)}</td>
    <td><span class="event ${lease.outcome}">${lease.outcome}</span></td>
  </tr>`;

export class PastLeases {
  /** @param redraw called when more is known */
  constructor(redraw) {
    this.redraw = redraw;
    this.leases = null; // null: not known yet
    this.next = null;
    this.failed = "";
    this.of = null; // {key, name, of}: the group that they are narrowed to
    this.asked = 0; // grows with each question: only the last one is answered
  }

  /** Read the newest, of a group or, with null, of all. */
  read(of) {
    if (of !== this.of) this.leases = this.next = null;
    this.of = of;
    this.#ask(null);
  }

  async #ask(cursor) {
    const mine = ++this.asked;
    try {
      const said = await readHistory(this.of?.of ?? {}, cursor);
      if (mine !== this.asked) return;
      this.leases = cursor ? [...this.leases, ...said.leases] : said.leases;
      [this.next, this.failed] = [said.next, ""];
    } catch (error) {
      if (mine !== this.asked) return;
      this.failed = error.message;
    }
    this.redraw();
  }

  /** Their list. */
  body() {
    const whose = this.of ? html` of ${this.of.name}` : nothing;
    return html`<div class="panel-head">
        <h2 id="past-title">Finished leases${whose} ${this.#count()}</h2>
        ${
          this.of
            ? html`<button type="button" @click=${() => this.#all()}>Show those of all</button>`
            : nothing
        }
      </div>
      ${this.#list()}`;
  }

  #all() {
    this.read(null);
    this.redraw();
  }

  #count = () =>
    this.leases?.length
      ? html`<span class="count">${this.next ? "the last " : ""}${this.leases.length}</span>`
      : nothing;

  #list() {
    if (this.failed) return html`<p class="empty" role="alert">Not shown: ${this.failed}.</p>`;
    if (!this.leases) return html`<p class="empty">Being read.</p>`;
    if (!this.leases.length && !this.next)
      return html`<p class="empty">
        ${
          this.of
            ? `No finished lease of ${this.of.name} is kept.`
            : "No lease has ended yet. A lease is told here some 12 s after its end."
        }
      </p>`;
    return html`<div class="teams" tabindex="0" role="region" aria-label="Table of finished leases">
        <table class="use">
          <thead>
            <tr>
              ${HEADS.map(column)}
            </tr>
          </thead>
          <tbody>
            ${this.leases.map(row)}
          </tbody>
        </table>
      </div>
      ${
        this.next
          ? html`<p class="more">
              <button type="button" @click=${() => this.#ask(this.next)}>Show older ones</button>
            </p>`
          : nothing
      }`;
  }
}
