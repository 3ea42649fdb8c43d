// The view of use: read when it is opened, when something else is asked for, and on demand.

import { html, nothing, render } from "./vendor/lit-html.js";
import { setUsage } from "./address.js";
import { clock, count, hours, money, percent, span } from "./format.js";
import { PastLeases } from "./past_leases.js";
import { Areas } from "./usage_areas.js";
import { daysOf, GROUPINGS, hoursOf, keyOf, known, PERIODS } from "./usage_data.js";
import { readHosts, readUsage, seriesOf, weekOf } from "./usage_data.js";
import { HeatMap } from "./usage_heat.js";
import { UsageTable } from "./usage_table.js";

const UNUSED = html`No GPU was leased in this period. To lease one:
  <code>gpu-broker run --memory 8GiB -- python train.py</code>`;

const PARTS = [
  ["leased", "busy"],
  ["others", "idle"],
  ["system", "not known"],
];

const figure = (label, value, note) =>
  html`<div class="figure">
    <dt>${label}</dt>
    <dd>${value}</dd>
    <dd class="note">${note}</dd>
  </div>`;

/** The figures of the whole period. */
function figures({ total, unpriced }) {
  const seen = total.busy_gpu_hours + total.idle_gpu_hours;
  const energy = total.energy_kwh ? `${hours(total.energy_kwh)} kWh` : "energy is not known";
  const unused = percent(total.above_peak_mb_hours, total.mb_hours);
  const running = total.running ? `${count(total.running)} of them run` : "none of them runs";
  return html`<dl class="figures">
    ${figure("GPU-hours", hours(total.gpu_hours), energy)}
    ${figure("Busy", percent(total.busy_gpu_hours, seen), `of ${hours(seen)} observed`)}
    ${figure("Idle GPU-hours", hours(total.idle_gpu_hours), "leased, not computing")}
    ${figure("Memory unused", unused, "above the peaks")}
    ${figure("Leases", count(total.leases + total.running), running)}
    ${figure(
      "Mean wait",
      total.mean_wait_s == null ? "–" : span(total.mean_wait_s),
      total.waits ? `of ${count(total.waits)} that waited` : "none waited",
    )}
    ${
      total.cost == null
        ? nothing
        : figure(
            "Cost",
            money(total.cost),
            unpriced.length ? `no price: ${unpriced.join(", ")}` : "by the policy's prices",
          )
    }
  </dl>`;
}

/** One of a few words, as buttons beside each other. */
const choice = (label, words, chosen, choose) =>
  html`<span class="choice" role="group" aria-label=${label}>
    ${words.map(
      ([word, text]) =>
        html`<button type="button" aria-pressed=${word === chosen} @click=${() => choose(word)}>
          ${text}
        </button>`,
    )}
  </span>`;

export class UsageView {
  /** @param section the element to fill */
  constructor(section) {
    this.section = section;
    this.asked = null;
    this.answer = this.hosts = null; // null: not known yet
    this.failed = this.hostsFailed = "";
    this.week = false;
    render(this.#frame(), section);
    this.areas = new Areas(section.querySelector(".areas-box"));
    this.heat = new HeatMap(section.querySelector(".heat-box"));
    this.past = new PastLeases(() => this.draw());
    this.table = new UsageTable(
      () => this.draw(),
      (group) => this.#narrow(group),
    );
  }

  #frame = () =>
    html`<div class="usage-head"></div>
      <div class="usage-figures"></div>
      <section class="panel by-day" aria-labelledby="days-title">
        <div class="panel-head"><h2 id="days-title">GPU-hours a day</h2></div>
        <div class="areas-box"></div>
        <p class="empty"></p>
      </section>
      <section class="panel by-group" aria-labelledby="groups-title"></section>
      <section class="panel by-hour" aria-labelledby="heat-title">
        <div class="panel-head"></div>
        <div class="heat-box"></div>
        <p class="empty"></p>
      </section>
      <section class="panel past" aria-labelledby="past-title"></section>`;

  /** Show what the address asks for; it is read if it is something else, or `anew`. */
  show(asked, anew) {
    const next = known(asked);
    const same = this.asked && next.days === this.asked.days && next.by === this.asked.by;
    if (same && !anew) return;
    const regrouped = this.asked && next.by !== this.asked.by;
    this.asked = next;
    if (anew || !this.hosts) return this.read(regrouped ? null : this.past.of);
    this.#readUsage();
    if (regrouped && this.past.of) this.past.read(null); // their group has no row now
  }

  /** Read all of it; the finished leases of a group, or of all. */
  read(of = this.past.of) {
    this.past.read(of);
    this.#readUsage().then(() => this.#readHosts());
  }

  async #readUsage() {
    const asked = this.asked;
    this.reading = true;
    this.draw();
    try {
      const answer = await readUsage(asked);
      if (asked !== this.asked) return;
      [this.answer, this.by, this.failed] = [answer, asked.by, ""];
      this.#drawDays();
    } catch (error) {
      if (asked !== this.asked) return;
      [this.answer, this.failed] = [null, error.message];
    }
    this.reading = false;
    this.draw();
  }

  async #readHosts() {
    const mine = (this.hostsAsked = { week: this.week });
    try {
      const answer = await readHosts(mine.week);
      if (mine !== this.hostsAsked) return;
      this.hosts = mine.week ? weekOf(answer) : hoursOf(answer);
      this.hostsFailed = "";
      if (this.hosts.length) this.heat.show(this.hosts, mine.week ? daysOf(answer) : null);
    } catch (error) {
      if (mine !== this.hostsAsked) return;
      [this.hosts, this.hostsFailed] = [null, error.message];
    }
    this.draw();
  }

  #narrow(group) {
    this.past.read(group);
    this.draw();
  }

  #drawDays() {
    const series = seriesOf(this.answer.rows, this.by);
    this.section.querySelector(".areas-box").hidden = !series.length;
    if (series.length) this.areas.show(daysOf(this.answer), series, this.by);
  }

  /** Draw what is known. */
  draw() {
    const part = (name) => this.section.querySelector(name);
    const { answer } = this;
    render(this.#head(), part(".usage-head"));
    render(answer ? figures(answer) : nothing, part(".usage-figures"));
    part(".by-group").hidden = !answer;
    render(this.#groups(), part(".by-group"));
    render(this.#hoursHead(), part(".by-hour .panel-head"));
    render(this.past.body(), part(".past"));
    this.#say(part(".by-day"), ".areas-box", answer?.total.gpu_hours > 0, this.failed, answer);
    this.#say(part(".by-hour"), ".heat-box", this.hosts?.length > 0, this.hostsFailed, this.hosts);
  }

  /** Show a part, or say why there is nothing to show. */
  #say(panel, box, there, failed, read) {
    panel.querySelector(box).hidden = !there;
    panel.querySelector(".empty").hidden = there;
    render(
      failed ? `Not shown: ${failed}.` : read ? UNUSED : "Being read.",
      panel.querySelector(".empty"),
    );
  }

  #head() {
    const { days, by } = this.asked;
    const periods = PERIODS.map((each) => [each, each === 365 ? "A year" : `${each} days`]);
    const groups = Object.keys(GROUPINGS).map((word) => [word, `By ${word}`]);
    const read = this.reading
      ? "Being read."
      : this.failed
        ? `Not shown: ${this.failed}.`
        : `As of ${clock(this.answer.now)}; days and hours of UTC.`;
    return html`${choice("Period", periods, days, (next) => setUsage({ days: next, by }))}
      ${choice("Grouping", groups, by, (next) => setUsage({ days, by: next }))}
      <span class="read" role="status">${read}</span>
      <button type="button" @click=${() => this.read()}>Read again</button>`;
  }

  #groups() {
    const { answer, by } = this;
    if (!answer) return nothing;
    const counted = html`<span class="count">${answer.rows.length}</span>`;
    const head = html`<div class="panel-head">
      <h2 id="groups-title">Use by ${by} ${counted}</h2>
      <ul class="legend" aria-label="Colours of the bars">
        ${PARTS.map(([kind, label]) => html`<li><i class=${kind}></i>${label}</li>`)}
      </ul>
    </div>`;
    if (!answer.rows.length)
      return html`${head}
        <p class="empty">${UNUSED}</p>`;
    return html`${head} ${this.table.body(answer, by, this.past.of?.key)}`;
  }

  #hoursHead() {
    const words = [
      [false, "Mean of 30 days"],
      [true, "The last 7 days"],
    ];
    const choose = (week) => {
      this.week = week;
      this.#readHosts();
      this.draw();
    };
    return html`<h2 id="heat-title">Hosts by hour</h2>
      ${choice("Hours", words, this.week, choose)}`;
  }
}
