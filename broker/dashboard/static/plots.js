// The last hour by the minute, as three plots.

import { html, render } from "./vendor/lit-html.js";
import { span } from "./format.js";
import { now, rows } from "./state.js";

const HOUR_S = 3600;
const HEIGHT = 100;

const PLOTS = [
  {
    title: "Use of the GPUs",
    unit: (v) => `${Math.round(v)} %`,
    range: [0, 100],
    series: [
      ["leased", "leased_pct", "leased"],
      ["busy", "utilization_pct", "busy"],
    ],
  },
  {
    title: "Leases per minute",
    unit: (v) => `${v}`,
    series: [
      ["granted", "granted", "leased"],
      ["ended", "ended", "others"],
    ],
  },
  {
    title: "Time in the queue",
    unit: (v) => (v < 2 ? `${v.toFixed(1)} s` : span(v)),
    series: [
      ["median", "wait_s", "leased"],
      ["longest", "longest_wait_s", "others"],
    ],
  },
];

const colour = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export class Plots {
  constructor(section) {
    render(
      PLOTS.map(
        (plot) =>
          html`<figure>
            <figcaption><b>${plot.title}</b> <span class="now"></span></figcaption>
            <div class="plot" aria-hidden="true"></div>
          </figure>`,
      ),
      section,
    );
    this.figures = [...section.querySelectorAll("figure")];
    new ResizeObserver(() => this.#fit()).observe(section);
    this.restyle();
  }

  /** Make them anew, in the colours that hold now. */
  restyle() {
    for (const chart of this.charts ?? []) chart.destroy();
    this.charts = PLOTS.map((plot, i) => this.#chart(plot, this.figures[i].querySelector(".plot")));
    this.draw();
  }

  /** Draw what is known. */
  draw() {
    const minutes = [...rows.minutes.values()].toSorted((a, b) => a.at - b.at);
    PLOTS.forEach((plot, i) => {
      const values = plot.series.map(([, name]) => minutes.map((minute) => minute[name]));
      this.charts[i].setData([minutes.map((minute) => minute.at), ...values]);
      const last = (list) => list.findLast((value) => value != null);
      const said = plot.series.map(([label, , name], k) => {
        const value = last(values[k]);
        return html`<span
          ><i class=${name}></i>${label} ${value == null ? "–" : plot.unit(value)}</span
        >`;
      });
      render(said, this.figures[i].querySelector(".now"));
    });
  }

  #chart(plot, target) {
    const axis = {
      stroke: colour("quiet"),
      grid: { stroke: colour("line"), width: 1 },
      ticks: { show: false },
      font: "11px system-ui",
    };
    return new uPlot(
      {
        width: target.clientWidth || 300,
        height: HEIGHT,
        cursor: { show: false },
        legend: { show: false },
        scales: {
          x: { range: () => [now() - HOUR_S, now()] },
          y: { range: (_, low, high) => plot.range ?? [0, Math.max(1, high * 1.1)] },
        },
        axes: [
          {
            ...axis,
            size: 26,
            values: (_, at) => at.map((x) => new Date(x * 1000).toTimeString().slice(0, 5)),
            space: 60,
          },
          { ...axis, values: (_, list) => list.map((v) => plot.unit(v)), size: 52, space: 28 },
        ],
        series: [
          {},
          ...plot.series.map(([label, , name], k) => ({
            label,
            stroke: colour(name),
            width: 2,
            dash: k ? [5, 4] : [],
            points: { show: true, size: 4, fill: colour(name) },
          })),
        ],
      },
      [[]],
      target,
    );
  }

  #fit() {
    this.charts?.forEach((chart, i) => {
      const width = this.figures[i].querySelector(".plot").clientWidth;
      if (width && width !== chart.width) chart.setSize({ width, height: HEIGHT });
    });
  }
}
