// Hosts by hour as a map: the more GPUs were leased, the darker. Cells are walked with the arrows.

import { html, render } from "./vendor/lit-html.js";
import { dayName, gpus } from "./format.js";
import { mostOf } from "./usage_data.js";

const SHADES = 10;

const hourName = (hour) => `${String(hour).padStart(2, "0")}:00`;

export class HeatMap {
  /** @param box the element to fill */
  constructor(box) {
    this.box = box;
    this.at = null; // [row, column] of the cell that is chosen
  }

  /**
   * Show hosts with their values.
   *
   * @param rows [{host, values}] with a value for each hour
   * @param days the days whose hours they are; null: hours of any day
   */
  show(rows, days) {
    Object.assign(this, { rows, days, at: null });
    this.most = mostOf(rows);
    render(
      html`<div
          class="heat ${days ? "week" : ""}"
          role="grid"
          tabindex="0"
          aria-labelledby="heat-title"
          aria-describedby="heat-reading"
          @keydown=${(event) => this.#key(event)}
          @pointerover=${(event) => this.#point(event)}
          @pointerleave=${() => this.#choose(null)}
          @blur=${() => this.#choose(null)}
        >
          ${this.#head()}${rows.map((row, n) => this.#row(row, n))}
        </div>
        <p class="reading" id="heat-reading"></p>
        ${this.#legend()}`,
      this.box,
    );
    this.#choose(null, true);
  }

  #head() {
    const marks = this.days?.map((day) => dayName(day)) ?? [0, 6, 12, 18].map(hourName);
    return html`<div class="hosts-row head" aria-hidden="true">
      <span>UTC</span>${marks.map((mark) => html`<span>${mark}</span>`)}
    </div>`;
  }

  #row({ host, values }, row) {
    return html`<div class="hosts-row" role="row">
      <span class="host" role="rowheader" title=${host}>${host}</span>
      <span class="cells" role="presentation">
        ${values.map(
          (value, column) =>
            html`<i
              class="heat-${this.#shade(value)}"
              role="gridcell"
              id="heat-${row}-${column}"
              aria-label=${this.#says(row, column)}
            ></i>`,
        )}
      </span>
    </div>`;
  }

  #shade = (value) => (value > 0 ? Math.max(1, Math.ceil((SHADES * value) / this.most)) : 0);

  #says(row, column) {
    const hour = column % 24;
    const day = this.days ? `${dayName(this.days[(column - hour) / 24], true)}, ` : "";
    const mean = this.days ? "" : " on average";
    const { host, values } = this.rows[row];
    const when = `${day}${hourName(hour)} to ${hourName(hour + 1)}`;
    return `${host}, ${when}: ${gpus(values[column])}${mean}`;
  }

  #legend() {
    const shades = Array.from({ length: SHADES + 1 }, (_, n) => n);
    return html`<p class="shades">
      0 ${shades.map((n) => html`<i class="heat-${n}" aria-hidden="true"></i>`)} ${gpus(this.most)}
    </p>`;
  }

  #point(event) {
    const found = /^heat-(\d+)-(\d+)$/.exec(event.target.id);
    this.#choose(found ? [Number(found[1]), Number(found[2])] : null);
  }

  #key(event) {
    const steps = {
      ArrowLeft: [0, -1],
      ArrowRight: [0, 1],
      ArrowUp: [-1, 0],
      ArrowDown: [1, 0],
      Home: [0, -Infinity],
      End: [0, Infinity],
      PageUp: [-Infinity, 0],
      PageDown: [Infinity, 0],
    };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const within = (value, length) => Math.min(Math.max(value, 0), length - 1);
    const [rows, columns] = this.at ? steps[event.key] : [0, 0];
    const [row, column] = this.at ?? [0, 0];
    this.#choose([
      within(row + rows, this.rows.length),
      within(column + columns, this.rows[0].values.length),
    ]);
  }

  #choose(at, anew = false) {
    if (!anew && String(at) === String(this.at)) return;
    const map = this.box.querySelector(".heat");
    const reading = this.box.querySelector(".reading");
    map.querySelector(".at")?.classList.remove("at");
    this.at = at;
    if (at) {
      const id = `heat-${at.join("-")}`;
      const cell = this.box.querySelector(`#${id}`);
      cell.classList.add("at");
      map.setAttribute("aria-activedescendant", id);
      reading.textContent = this.#says(...at);
    } else {
      map.removeAttribute("aria-activedescendant");
      reading.textContent = "Leased GPUs of each host; point at an hour, or walk with the arrows.";
    }
  }
}
