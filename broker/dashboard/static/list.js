// A table of any length: only the rows that can be seen are in the document.

import { html, nothing, render } from "./vendor/lit-html.js";

const BEYOND = 6; // rows above and below what is seen

export class List {
  /**
   * @param panel the section to fill
   * @param name, title  its id and heading
   * @param columns  [{name, label, cell(item), sort?(item)}]
   * @param open  called with the item that is chosen
   * @param empty what to say when there is nothing
   * @param tools what stands beside the heading
   */
  constructor(panel, { name, title, columns, open, empty, tools = nothing }) {
    Object.assign(this, { name, title, columns, open, empty });
    this.items = [];
    this.picked = null; // the id of the item under the keyboard
    this.sorted = null; // {column, down}
    render(
      html`<div class="panel-head">
          <h2 id="${name}-title">${title} <span class="count"></span></h2>
          <span class="pager"></span>
          ${tools}
        </div>
        <div class="list" role="grid" aria-labelledby="${name}-title" tabindex="0">
          <div class="row head" role="row" aria-rowindex="1"></div>
          <div class="space" role="rowgroup"><div class="rows" role="presentation"></div></div>
        </div>
        <p class="empty"></p>`,
      panel,
    );
    this.count = panel.querySelector(".count");
    this.box = panel.querySelector(".list");
    this.pager = panel.querySelector(".pager");
    this.head = panel.querySelector(".head");
    this.space = panel.querySelector(".space");
    this.rows = panel.querySelector(".rows");
    this.none = panel.querySelector(".empty");
    this.box.addEventListener("scroll", () => this.draw(), { passive: true });
    this.box.addEventListener("keydown", (event) => this.#key(event));
    this.rows.addEventListener("mouseover", (event) => {
      const cell = event.target.closest(".cell"); // what is cut short is told in full
      if (cell) cell.title = cell.scrollWidth > cell.clientWidth ? cell.innerText : "";
    });
    new ResizeObserver(() => this.draw()).observe(this.box);
  }

  /**
   * Show these, in this order unless a column is chosen.
   *
   * @param of    how many there are without the filter; null: not known, and the reason is shown
   * @param count how many these are, if not every item is one
   * @param page  `{first, matches, most, turn}` of a list that is not known whole
   */
  show(items, of, count = items.length, page = null) {
    const { column, down } = this.sorted ?? {};
    if (column) {
      const by = (item) => column.sort(item) ?? Infinity;
      items = items.toSorted(
        (a, b) => (by(a) < by(b) ? -1 : by(a) > by(b) ? 1 : 0) * (down ? -1 : 1),
      );
    }
    this.items = items;
    const part = page && count < page.matches;
    const range = part ? `${count ? page.first + 1 : 0}-${page.first + count}` : count;
    of = page && of !== null ? page.matches : of;
    this.count.textContent = of === null ? "" : range === of ? of : `${range} of ${of}`;
    render(part ? this.#pages(page, count) : nothing, this.pager);
    this.none.hidden = items.length > 0;
    render(of ? "Nothing matches the filter." : this.empty(), this.none);
    this.draw();
  }

  /** Draw what can be seen. */
  draw() {
    this.#drawHead();
    const height = parseFloat(getComputedStyle(this.box).getPropertyValue("--row"));
    const first = Math.max(0, Math.floor(this.box.scrollTop / height) - BEYOND);
    const last = Math.ceil((this.box.scrollTop + this.box.clientHeight) / height) + BEYOND;
    this.space.style.height = `${this.items.length * height}px`;
    this.rows.style.transform = `translateY(${first * height}px)`;
    this.box.setAttribute("aria-rowcount", this.items.length + 1);
    this.height = height;
    const seen = this.items.slice(first, last);
    render(
      seen.map((item, i) => this.#row(item, first + i)),
      this.rows,
    );
    const at = this.items.findIndex((item) => item.id === this.picked);
    const shown = at >= first && at < last;
    if (shown) this.box.setAttribute("aria-activedescendant", `${this.name}-${at}`);
    else this.box.removeAttribute("aria-activedescendant");
  }

  #row(item, index) {
    const picked = item.id === this.picked;
    return html`<div
      class="row ${item.kind ?? ""}"
      role="row"
      id="${this.name}-${index}"
      data-id=${item.id}
      aria-rowindex=${index + 2}
      aria-selected=${picked}
      @click=${(event) => this.#click(event, index)}
    >
      ${this.columns.map(
        (column) =>
          html`<div class="cell ${column.name}" role="gridcell">${column.cell(item)}</div>`,
      )}
    </div>`;
  }

  /** The buttons to the page before and after. */
  #pages(page, count) {
    const button = (by, label, text, enabled) =>
      html`<button
        type="button"
        aria-label="${label} ${this.title}"
        ?disabled=${!enabled}
        @click=${() => page.turn(by)}
      >
        ${text}
      </button>`;
    const more = page.first + count < page.matches;
    return html`${button(-1, "Previous", "‹", page.first > 0)}${button(1, "Next", "›", more)}`;
  }

  #click(event, index) {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // its link, in a tab of its own
    event.preventDefault();
    this.#pick(index, true);
  }

  #drawHead() {
    const cell = (column) => {
      const mine = this.sorted?.column === column;
      const order = mine ? (this.sorted.down ? "descending" : "ascending") : "none";
      const label = column.sort
        ? html`<button type="button" @click=${() => this.#sort(column)}>
            ${column.label}<span aria-hidden="true"
              >${{ ascending: " ▴", descending: " ▾" }[order]}</span
            >
          </button>`
        : column.label;
      const sorts = column.sort ? order : nothing;
      return html`<div class="cell ${column.name}" role="columnheader" aria-sort=${sorts}>
        ${label}
      </div>`;
    };
    render(this.columns.map(cell), this.head);
  }

  #sort(column) {
    const mine = this.sorted?.column === column;
    this.sorted = mine && this.sorted.down ? null : { column, down: mine };
    this.resort();
  }

  #key(event) {
    if (event.target !== this.box) return; // a heading has keys of its own
    const page = Math.max(1, Math.floor(this.box.clientHeight / this.height) - 2);
    const steps = {
      ArrowDown: 1,
      ArrowUp: -1,
      PageDown: page,
      PageUp: -page,
      Home: -Infinity,
      End: Infinity,
    };
    const at = this.items.findIndex((item) => item.id === this.picked);
    if (event.key in steps) this.#pick(at < 0 ? 0 : at + steps[event.key], false);
    else if (event.key === "Enter" && at >= 0) this.open(this.items[at]);
    else return;
    event.preventDefault();
  }

  /** Choose an item and bring it into sight, if it is there. */
  choose(id) {
    const at = this.items.findIndex((item) => item.id === id);
    if (at >= 0 && this.picked !== id) this.#pick(at, false);
  }

  #pick(index, open) {
    if (!this.items.length) return;
    const at = Math.min(Math.max(index, 0), this.items.length - 1);
    this.picked = this.items[at].id;
    const top = at * this.height;
    const room = this.box.clientHeight - this.head.offsetHeight;
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    if (top + this.height > this.box.scrollTop + room)
      this.box.scrollTop = top + this.height - room;
    this.draw();
    if (open) this.open(this.items[at]);
  }

  /** To be set: shows the items anew. */
  resort() {}
}
