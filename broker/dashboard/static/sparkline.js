// A GPU's last minutes as a small picture: memory as an area, use as a line.

import { html, nothing, svg } from "./vendor/lit-html.js";
import { minutes, trendOf } from "./trends.js";

const WIDTH = 80;
const HEIGHT = 20;

const GROUND = svg`<line x1="0" x2=${WIDTH} y1=${HEIGHT - 1} y2=${HEIGHT - 1}/>`;

/** The runs of points that are known, each as `x,y x,y`. */
function runs(points, name) {
  const found = [[]];
  for (const point of points) {
    if (point[name] == null) found.push([]);
    else {
      const y = HEIGHT - 1 - (point[name] / 100) * (HEIGHT - 2);
      found.at(-1).push(`${(point.x * WIDTH).toFixed(1)},${y.toFixed(1)}`);
    }
  }
  return found.filter((run) => run.length > 1);
}

const beginning = (run) => run[0].split(",")[0];
const end = (run) => run.at(-1).split(",")[0];

/** Between which values a GPU was, in words. */
function says(points, name) {
  const values = points.map((point) => point[name]).filter((value) => value != null);
  return values.length ? `${Math.min(...values)} to ${Math.max(...values)} %` : "not told";
}

/** The sparkline of a GPU. */
export function sparkline(uuid) {
  const points = trendOf(uuid);
  const busy = `busy ${says(points, "busy")}, memory in use ${says(points, "memory")}`;
  const text = `Last ${minutes()} minutes: ${busy}`;
  const areas = runs(points, "memory").map(
    (run) =>
      svg`<polygon points="${beginning(run)},${HEIGHT} ${run.join(" ")} ${end(run)},${HEIGHT}"/>`,
  );
  const lines = runs(points, "busy").map((run) => svg`<polyline points=${run.join(" ")}/>`);
  return html`<svg
    class="spark"
    viewBox="0 0 ${WIDTH} ${HEIGHT}"
    preserveAspectRatio="none"
    role="img"
    aria-label=${text}
  >
    <title>${text}</title>
    ${areas}${lines}${points.length ? nothing : GROUND}
  </svg>`;
}
