// GPU-hours a day as areas upon each other; a day is chosen with the pointer or the arrow keys.

import { html, nothing, render, svg } from "./vendor/lit-html.js";
import { palette } from "./colours.js";
import { dayName, hours, monthName } from "./format.js";

const HEIGHT = 220;
const [LEFT, TOP, BOTTOM] = [48, 8, 22];
const LABEL_PX = 64; // room for a day's name
const TICKS = 4; // at most
const MONTHS_FROM = 100; // days from which months are named, not days

/** The least round number that is not below: 1, 2 or 5 times a power of ten. */
function round(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((times) => times * power >= value * 0.999) * power;
}

const sum = (list) => list.reduce((all, value) => all + value, 0);

export class Areas {
  /** @param box the element to fill */
  constructor(box) {
    this.box = box;
    this.days = [];
    this.at = null; // the day that is chosen
    new ResizeObserver(() => this.#fit()).observe(box);
  }

  /** Show these days, and series as of `seriesOf`. */
  show(days, series, by) {
    const colour = palette();
    const at = this.at === null ? null : days.indexOf(this.days[this.at]);
    Object.assign(this, { days, by, at: at < 0 ? null : at });
    this.series = series.map((each) => ({
      ...each,
      colour: each.key === null ? "rest" : colour(each.key),
    }));
    this.totals = days.map((_, n) => sum(series.map((each) => each.days[n])));
    this.draw();
  }

  #fit() {
    if (this.days.length && this.#room() !== this.width) this.draw();
  }

  #room() {
    const { paddingLeft, paddingRight } = getComputedStyle(this.box);
    return Math.max(
      LEFT,
      this.box.clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight),
    );
  }

  draw() {
    this.width = this.#room();
    const most = Math.max(...this.totals, 0.001);
    this.step = round(most / TICKS);
    this.most = Math.ceil(most / this.step - 0.001) * this.step;
    render(
      html`<div
          class="areas ${this.days.length > MONTHS_FROM ? "long" : ""}"
          role="slider"
          tabindex="0"
          aria-label="GPU-hours by ${this.by}, day by day"
          aria-valuemin="1"
          aria-valuemax=${this.days.length}
          aria-valuenow=${(this.at ?? this.days.length - 1) + 1}
          aria-valuetext=${this.#says()}
          @keydown=${(event) => this.#key(event)}
          @pointermove=${(event) => this.#point(event)}
          @pointerdown=${(event) => this.#point(event)}
          @pointerleave=${() => this.#choose(null)}
          @blur=${() => this.#choose(null)}
        >
          <svg width=${this.width} height=${HEIGHT} aria-hidden="true">
            ${this.#grid()} ${this.#paths()} ${this.#chosen()}
          </svg>
        </div>
        ${this.#legend()}`,
      this.box,
    );
  }

  #x = (n) => LEFT + ((this.width - LEFT) * n) / this.days.length;
  #y = (value) => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * value) / this.most;

  #grid() {
    const steps = Math.round(this.most / this.step);
    const ticks = Array.from({ length: steps + 1 }, (_, n) => this.step * n);
    const months = this.days.length > MONTHS_FROM;
    const named = this.days
      .map((day, n) => ({ day, n }))
      .filter(({ day, n }) => (months ? day.endsWith("-01") : n >= 0));
    const every = Math.ceil((named.length * LABEL_PX) / (this.width - LEFT));
    const shown = named.filter((_, n) => (named.length - 1 - n) % every === 0);
    return svg`${ticks.map((value) => {
      const y = this.#y(value);
      return svg`<line class="rule" x1=${LEFT} x2=${this.width} y1=${y} y2=${y}/>
        <text class="tick" text-anchor="end" x=${LEFT - 6} y=${y + 4}>${hours(value)}</text>`;
    })}${shown.map(({ day, n }) => {
      const middle = months ? this.#x(n) : (this.#x(n) + this.#x(n + 1)) / 2;
      const x = Math.min(Math.max(middle, LEFT + 20), this.width - 22);
      return svg`<text class="tick" text-anchor="middle" x=${x} y=${HEIGHT - 6}
        >${months ? monthName(day) : dayName(day)}</text>`;
    })}`;
  }

  #paths() {
    let lower = this.days.map(() => 0);
    return this.series.map(({ days, colour }) => {
      const upper = days.map((value, n) => lower[n] + value);
      const at = (values, n) => this.#y(values[n]).toFixed(1);
      const up = days.map((_, n) => `V${at(upper, n)}H${this.#x(n + 1).toFixed(1)}`).join("");
      const down = days
        .map((_, n) => `V${at(lower, n)}H${this.#x(n).toFixed(1)}`)
        .reverse()
        .join("");
      lower = upper;
      return svg`<path class=${colour} d="M${LEFT},${HEIGHT - BOTTOM}${up}${down}Z"/>`;
    });
  }

  #chosen() {
    if (this.at === null) return nothing;
    const width = this.#x(this.at + 1) - this.#x(this.at);
    return svg`<rect class="chosen" x=${this.#x(this.at)} y=${TOP} width=${Math.max(2, width)}
      height=${HEIGHT - TOP - BOTTOM}/>`;
  }

  /** The chosen day in words, or the period. */
  #says() {
    const n = this.at ?? this.days.length - 1;
    const parts = this.series
      .filter((each) => each.days[n] > 0)
      .map((each) => `${each.name} ${hours(each.days[n])}`);
    const day = dayName(this.days[n], true);
    return `${day}: ${hours(this.totals[n])} GPU-hours. ${parts.join(", ")}`;
  }

  #legend() {
    const value = (days) => hours(this.at === null ? sum(days) : days[this.at]);
    const when = this.at === null ? "In the period" : dayName(this.days[this.at], true);
    const soFar = this.at === this.days.length - 1 ? " so far" : "";
    return html`<p class="reading"><b>${when}${soFar}</b> ${value(this.totals)} GPU-hours</p>
      <ul class="legend" aria-label="Colours of the areas">
        ${this.series.map(
          (each) =>
            html`<li>
              <i class=${each.colour}></i>${each.name} <b class="number">${value(each.days)}</b>
            </li>`,
        )}
      </ul>`;
  }

  #point(event) {
    const x = event.clientX - event.currentTarget.getBoundingClientRect().left - LEFT;
    const n = Math.floor((x * this.days.length) / (this.width - LEFT));
    this.#choose(n >= 0 && n < this.days.length ? n : null);
  }

  #key(event) {
    const last = this.days.length - 1;
    const from = this.at ?? last + 1;
    const to = {
      ArrowLeft: from - 1,
      ArrowDown: from - 1,
      ArrowRight: from + 1,
      ArrowUp: from + 1,
      PageUp: from + 7,
      PageDown: from - 7,
      Home: 0,
      End: last,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#choose(Math.min(Math.max(to, 0), last));
  }

  #choose(at) {
    if (at === this.at) return;
    this.at = at;
    this.draw();
  }
}
