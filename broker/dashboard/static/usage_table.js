// Groups of use as a table that sorts.

import { html, nothing } from "./vendor/lit-html.js";
import { count, hours, money, percent, span } from "./format.js";
import { keyOf, nameOf, narrowing } from "./usage_data.js";

const SHOWN = 20; // rows until all are asked for
const MB_PER_GB = 1024;

/** GPU-hours as a bar: busy, idle and not known parts, beside the largest of all. */
function bar(row, most) {
  const part = (value) => `${(100 * value) / (most || 1)}%`;
  const says = `${hours(row.busy_gpu_hours)} busy, ${hours(row.idle_gpu_hours)} idle, ${hours(
    row.unknown_gpu_hours,
  )} not known`;
  const [busy, idle] = [row.busy_gpu_hours, row.busy_gpu_hours + row.idle_gpu_hours];
  return html`<svg class="bar" role="img" aria-label=${says}>
    <title>${says}</title>
    <rect class="leased" x="0" y="0" height="100%" width=${part(busy)}></rect>
    <rect
      class="others"
      x=${part(busy)}
      y="0"
      height="100%"
      width=${part(row.idle_gpu_hours)}
    ></rect>
    <rect
      class="system"
      x=${part(idle)}
      y="0"
      height="100%"
      width=${part(row.unknown_gpu_hours)}
    ></rect>
  </svg>`;
}

const share = (value) => (value == null ? "–" : percent(value, 1));

const aside = (text) => html` <small>${text}</small>`;

const beyond = (row) =>
  row.above_peak_mb_hours
    ? html`${hours(row.above_peak_mb_hours / MB_PER_GB)}${aside(
        percent(row.above_peak_mb_hours, row.mb_hours),
      )}`
    : "–";

const waits = (row) =>
  row.waits ? html`${count(row.waits)}${aside(`${span(row.mean_wait_s)} each`)}` : "–";

const leases = (row) =>
  html`${count(row.leases)}${row.running ? aside(`${count(row.running)} run`) : nothing}`;

const COLUMNS = [
  { label: "GPU-hours", of: (row) => row.gpu_hours, cell: (row) => hours(row.gpu_hours) },
  { label: "Busy", of: (row) => row.busy_share ?? -1, cell: (row) => share(row.busy_share) },
  {
    label: "Idle GPU-hours",
    means: "Leased and observed, and the lease's processes did not compute",
    of: (row) => row.idle_gpu_hours,
    cell: (row) => (row.idle_gpu_hours ? hours(row.idle_gpu_hours) : "–"),
  },
  {
    label: "Unused GiB-hours",
    means: "Memory leased beyond the peak that the leases' processes reached",
    of: (row) => row.above_peak_mb_hours,
    cell: beyond,
  },
  { label: "Waits", of: (row) => row.waits, cell: waits },
  { label: "Leases", of: (row) => row.leases + row.running, cell: leases },
  {
    label: "kWh",
    of: (row) => row.energy_kwh,
    cell: (row) => (row.energy_kwh ? hours(row.energy_kwh) : "–"),
  },
];

const COST = { label: "Cost", of: (row) => row.cost, cell: (row) => money(row.cost) };

export class UsageTable {
  /**
   * @param redraw called when another order is chosen
   * @param narrow called with a group's key, name and what narrows leases to it
   */
  constructor(redraw, narrow) {
    Object.assign(this, { redraw, narrow });
    this.sorted = { label: "GPU-hours", down: true };
    this.whole = false;
  }

  /** The table of an answer; `chosen` is the key of the group that leases are narrowed to. */
  body(answer, by, chosen) {
    const columns = answer.total.cost == null ? COLUMNS : [...COLUMNS, COST];
    const rows = this.#order(answer.rows, columns, by);
    const most = Math.max(...rows.map((row) => row.gpu_hours));
    const shown = this.whole ? rows : rows.slice(0, SHOWN);
    return html`<div class="teams" tabindex="0" role="region" aria-label="Table of use">
        <table class="use">
          <thead>
            <tr>
              ${this.#head({ label: by[0].toUpperCase() + by.slice(1) })}
              ${columns.map((column) => this.#head(column))}
            </tr>
          </thead>
          <tbody>
            ${shown.map((row) => this.#row(row, by, columns, most, chosen))}
          </tbody>
          <tfoot>
            <tr>
              <th scope="row">All</th>
              ${columns.map(({ cell }) => html`<td class="number">${cell(answer.total)}</td>`)}
            </tr>
          </tfoot>
        </table>
      </div>
      ${shown.length < rows.length ? this.#more(rows.length) : nothing}`;
  }

  #order(rows, columns, by) {
    const { label, down } = this.sorted;
    const of = columns.find((each) => each.label === label)?.of ?? ((row) => nameOf(row, by));
    return rows.toSorted((a, b) => (of(a) < of(b) ? -1 : of(a) > of(b) ? 1 : 0) * (down ? -1 : 1));
  }

  #head({ label, of, means }) {
    const mine = this.sorted.label === label;
    const order = mine ? (this.sorted.down ? "descending" : "ascending") : "none";
    const sort = () => {
      this.sorted = { label, down: mine ? !this.sorted.down : Boolean(of) };
      this.redraw();
    };
    const arrow = { ascending: " ▴", descending: " ▾" }[order];
    return html`<th
      scope="col"
      class=${of ? "number" : "group"}
      aria-sort=${order}
      title=${means ?? nothing}
    >
      <button type="button" @click=${sort}>${label}<span aria-hidden="true">${arrow}</span></button>
    </th>`;
  }

  #row(row, by, columns, most, chosen) {
    const [key, name, of] = [keyOf(row, by), nameOf(row, by), narrowing(row, by)];
    const team = by === "agent" ? aside(row.team) : nothing;
    const title = of
      ? html`<button
          type="button"
          aria-pressed=${key === chosen}
          title="Its finished leases"
          @click=${() => this.narrow(key === chosen ? null : { key, name, of })}
        >
          ${name}
        </button>`
      : name;
    return html`<tr>
      <th scope="row">${title}${team}</th>
      ${columns.map(
        ({ cell }, n) =>
          html`<td class="number">
            ${n ? cell(row) : html`${bar(row, most)}<span class="sum">${cell(row)}</span>`}
          </td>`,
      )}
    </tr>`;
  }

  #more(all) {
    const show = () => {
      this.whole = true;
      this.redraw();
    };
    return html`<p class="more"><button type="button" @click=${show}>Show all ${all}</button></p>`;
  }
}
