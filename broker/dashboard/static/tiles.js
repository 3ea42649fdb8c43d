// The GPUs as tiles, by host, coloured by agent.

import { html, nothing, render } from "./vendor/lit-html.js";
import { hrefOf } from "./address.js";
import { colourOf } from "./colours.js";
import { holders, hostState, inUnit, leasable, model, troubled } from "./describe.js";
import { size } from "./format.js";
import { gpuState, link, memoryBar, stateCell } from "./markup.js";
import { sparkline } from "./sparkline.js";
import { leasesByDevice } from "./state.js";

const STORED = "gpus-as";
const NAMED = 3; // agents that a tile names

const swatch = (agent) => html`<i class="swatch ${colourOf(agent)}"></i>`;

const colour = (part) => (part.lease ? colourOf(part.lease.agent) : part.kind);

function tile(gpu, current) {
  const leases = leasesByDevice().get(gpu.uuid) ?? [];
  const agents = holders(leases);
  const figures = [inUnit(gpu.temperature_c, "°C"), inUnit(gpu.power_draw_w, "W")]
    .filter(Boolean)
    .join(" · ");
  const well = !troubled(gpu) && !gpu.findings.length;
  return html`<li>
    <a
      class="tile ${well ? "" : "trouble"}"
      href=${hrefOf("gpu", gpu.uuid)}
      data-id=${gpu.uuid}
      tabindex=${gpu.uuid === current ? 0 : -1}
    >
      <span class="line"
        ><span><b>${gpu.index}</b> ${model(gpu.name)}</span
        ><b class="number">${inUnit(gpu.utilization_gpu_pct, "%") ?? ""}</b></span
      >
      ${memoryBar(gpu, leases, colour)}
      <span class="holders"
        >${agents.slice(0, NAMED).map((agent) => html`<span>${swatch(agent)}${agent}</span>`)}
        ${agents.length > NAMED ? html`<b>+${agents.length - NAMED}</b>` : nothing}
        ${leasable(gpu) ? html`<span>${size(leasable(gpu))} free</span>` : nothing}</span
      >
      ${sparkline(gpu.uuid)}
      <span class="line"><span>${gpuState(gpu)}</span><span class="number">${figures}</span></span>
    </a>
  </li>`;
}

const group = ({ host, gpus, free_mb }, current) =>
  html`<section class="group">
    <h3>
      ${link("host", host.host, host.host)}
      <span class="hint">${size(free_mb)} free</span>
      ${hostState(host).word === "ok" ? nothing : stateCell(hostState(host), true)}
    </h3>
    <ul>
      ${gpus.map((gpu) => tile(gpu, current))}
    </ul>
  </section>`;

/** The agents of these GPUs with their colours. */
function legend(hosts) {
  const agents = new Set(
    hosts.flatMap(({ gpus }) =>
      gpus.flatMap((gpu) => holders(leasesByDevice().get(gpu.uuid) ?? [])),
    ),
  );
  if (!agents.size) return nothing;
  return html`<ul class="legend" aria-label="Colours of the agents">
    ${[...agents].toSorted().map((agent) => html`<li>${swatch(agent)}${agent}</li>`)}
    <li><i class="free"></i>free</li>
  </ul>`;
}

/** The two ways to show the GPUs, and the choice between them, which is remembered. */
export class Tiles {
  #current = null; // the id of the tile that Tab goes to

  /**
   * @param panel   the section of the GPUs: its list is hidden while tiles are shown
   * @param changed called when the other way was chosen
   */
  constructor(panel, changed) {
    this.panel = panel;
    this.changed = changed;
    /** The buttons that choose. */
    this.tools = Object.assign(document.createElement("span"), { className: "choice" });
    this.tools.setAttribute("role", "group");
    this.tools.setAttribute("aria-label", "Show the GPUs as");
    this.box = Object.assign(document.createElement("div"), { className: "tiles" });
    this.box.addEventListener("keydown", (event) => this.#key(event));
    this.box.addEventListener("focusin", (event) => this.#focused(event.target.closest(".tile")));
  }

  get shown() {
    return localStorage.getItem(STORED) === "tiles";
  }

  /** Show tiles, or the list; without a word, the other of them. */
  choose(tiles = !this.shown) {
    localStorage.setItem(STORED, tiles ? "tiles" : "list");
    this.changed();
  }

  /** Draw the buttons, and the tiles if they are shown. */
  draw(hosts) {
    if (!this.box.isConnected) this.panel.append(this.box);
    this.panel.dataset.as = this.shown ? "tiles" : "list";
    const button = (tiles, label) =>
      html`<button
        type="button"
        aria-pressed=${this.shown === tiles}
        @click=${() => this.choose(tiles)}
      >
        ${label}
      </button>`;
    render(html`${button(false, "List")}${button(true, "Tiles")}`, this.tools);
    this.box.hidden = !this.shown;
    if (!this.shown) return render(nothing, this.box);
    const ids = hosts.flatMap(({ gpus }) => gpus.map((gpu) => gpu.uuid));
    if (!ids.includes(this.#current)) this.#current = ids[0];
    render(html`${legend(hosts)}${hosts.map((host) => group(host, this.#current))}`, this.box);
  }

  /** Mark a tile and bring it into sight. */
  mark(uuid) {
    for (const each of this.box.querySelectorAll(".tile.marked")) each.classList.remove("marked");
    const found = this.#tiles().find((each) => each.dataset.id === uuid);
    found?.classList.add("marked");
    found?.scrollIntoView({ block: "nearest" });
  }

  #tiles() {
    return [...this.box.querySelectorAll(".tile")];
  }

  #focused(tile) {
    if (!tile) return;
    for (const each of this.#tiles()) each.tabIndex = each === tile ? 0 : -1;
    this.#current = tile.dataset.id;
  }

  #key(event) {
    const all = this.#tiles();
    const at = all.indexOf(document.activeElement);
    const to =
      { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key] ??
      beside(all, at, event.key);
    if (at < 0 || to === null) return;
    all[to]?.focus();
    event.preventDefault();
  }
}

/** The index of the tile above or below one; null for another key. */
function beside(all, at, key) {
  if (key !== "ArrowDown" && key !== "ArrowUp") return null;
  const places = all.map((tile) => tile.getBoundingClientRect());
  const ahead = (place) =>
    key === "ArrowDown" ? place.top - places[at].top : places[at].top - place.top;
  const nearest = Math.min(...places.map(ahead).filter((by) => by > 1));
  const row = all.map((_, i) => i).filter((i) => Math.abs(ahead(places[i]) - nearest) <= 1);
  const aside = (i) => Math.abs(places[i].left - places[at].left);
  return row.length ? row.reduce((best, i) => (aside(i) < aside(best) ? i : best)) : at;
}
