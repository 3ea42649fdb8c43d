// The page: what the broker tells is drawn at most once a frame, and the clocks once a second.

import { html, nothing, render } from "./vendor/lit-html.js";
import * as address from "./address.js";
import { key } from "./api.js";
import { close, isBusy, isOpen, onLeave, openSubject, redraw } from "./dialog.js";
import { clock, span } from "./format.js";
import { showHelp } from "./help.js";
import { onKey, showKey } from "./key.js";
import { lookFor, onLook } from "./look.js";
import { fill, hostsOf, lists } from "./panels.js";
import { Plots } from "./plots.js";
import { showPolicy } from "./policy.js";
import { broker, now, pool, rows, shownAt, take, whole, you } from "./state.js";
import { show } from "./subjects.js";
import { summary } from "./summary.js";
import { drawTeams } from "./teams.js";
import { Tiles } from "./tiles.js";
import { note } from "./trends.js";
import { drawView, isUsage, reread, toggle } from "./views.js";
import { follow } from "./windows.js";

const $ = (id) => document.getElementById(id);
const CONNECTED_S = 1; // a connection that takes longer is told of
const NOTE_MS = 5_000; // between two notes of the trends while nothing is told
const filter = $("filter");
const plots = new Plots($("plots"));
const tiles = new Tiles($("devices"), draw);
const all = lists($("page"), address.go, unseen, tiles.tools);
let state = "connecting";
let why = "";
let since = Date.now(); // of the state
let waiting = false;

for (const list of Object.values(all)) list.resort = draw;

/** Why nothing is shown; empty: all is. */
function unseen() {
  if (you) return "";
  if (state === "denied") return "Not shown to you: a key is needed.";
  return "Not known yet.";
}

/** Draw everything, once, before the next frame. */
function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const hosts = hostsOf(filter.value);
    fill(all, filter.value, hosts, Boolean(you));
    tiles.draw(hosts);
    if (pool()) render(summary(pool(), broker()), $("summary"));
    plots.draw();
    drawTeams($("teams"));
    $("where").textContent = pool() ? pool().name : "";
    $("key").hidden = you !== null && !you.keys && !key.get();
    $("key").textContent = you?.name ? `Key: ${you.name}` : "Key";
    notice();
    redraw();
    if (!isBusy()) openAddressed();
  });
}

/** What is wrong with what is shown, if anything. */
function notice() {
  const problem = broker()?.problem;
  const waits_s = state === "connecting" ? (Date.now() - since) / 1000 : 0;
  const stale =
    state === "lost" || state === "denied" || problem || (waits_s > CONNECTED_S && shownAt());
  document.body.dataset.state = stale ? "stale" : state;
  // Clocks are shown, and not read out each second.
  const quiet = (text) => html`<span aria-live="off">${text}</span>`;
  const age = shownAt()
    ? html` What is shown is ${quiet(span(now() - shownAt()))} old, of ${clock(shownAt())}.`
    : nothing;
  let said = nothing;
  if (state === "denied")
    said = html`<b>Not shown:</b> ${why}.
      <button type="button" @click=${() => showKey()}>Enter a key</button>`;
  else if (state === "lost")
    said = html`<b>Disconnected</b> for ${quiet(span((Date.now() - since) / 1000))}: ${why}.${age}
      Trying again.`;
  else if (state === "connecting" && (waits_s > CONNECTED_S || !shownAt()))
    said = html`<b>Connecting</b> for ${quiet(span(waits_s))}.${age}`;
  else if (problem)
    said = html`<b>The broker's store does not serve it:</b> ${problem.replace(/\.$/, "")}.${age}`;
  render(said, $("notice"));
}

const retry = follow(
  (kind, said) => {
    take(kind, said);
    lookFor(filter.value);
    draw();
  },
  (next, reason = "") => {
    if (next === "connecting" && state === "lost") return; // until it is heard again
    if (next !== state) since = Date.now();
    if (next === "denied") take("reset", { you: null, rows: {}, events: [] });
    if (next === "denied" && state !== "denied")
      showKey(
        key.get() ? "This key is not known, or may not see this." : "This broker wants a key.",
      );
    [state, why] = [next, reason];
    draw();
  },
  whole,
);
onKey(() => {
  retry();
  reread();
});
onLook(retry);

/** Open the subject of the address, or close one that the address has left. */
function openAddressed() {
  if (!you) return;
  const { subject } = address.read();
  const open = openSubject();
  if (subject?.kind === open?.kind && subject?.id === open?.id) return;
  if (!subject) return open && close();
  show(subject.kind, subject.id);
  all[{ lease: "leases", waiter: "queue", event: "events" }[subject.kind] ?? "devices"].choose(
    subject.id,
  );
  if (subject.kind === "gpu") tiles.mark(subject.id);
}

address.onChange(() => {
  drawView();
  filter.value = address.read().filter;
  lookFor(filter.value);
  openAddressed();
  draw();
});
onLeave(({ kind, id }) => {
  const { subject } = address.read();
  if (subject?.kind === kind && subject?.id === id) address.leave();
});

// Only the clocks and the trends move by themselves.
setInterval(() => {
  all.leases.draw();
  all.queue.draw();
  notice();
  redraw();
}, 1000);
setInterval(() => {
  if (document.body.dataset.state !== "live" || !shownAt()) return;
  note(rows.devices, now());
  draw();
}, NOTE_MS);

filter.value = address.read().filter;
filter.addEventListener("input", () => {
  address.setFilter(filter.value);
  lookFor(filter.value);
  draw();
});

function theme() {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
  plots.restyle();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.restyle());

/** An act on what is now: the view of use is left first. */
const onNow = (act) => () => {
  if (isUsage()) address.leaveUsage();
  act();
};
const focus = (name) => () => {
  $(name).scrollIntoView({ block: "nearest" });
  const tile = name === "devices" && tiles.shown && $(name).querySelector('.tile[tabindex="0"]');
  (tile || ($(name).querySelector(".list:not([hidden])") ?? $(name))).focus();
};
const go = (name) => onNow(focus(name));
const KEYS = {
  "/": onNow(() => filter.focus()),
  1: go("devices"),
  2: go("leases"),
  3: go("queue"),
  4: go("events"),
  v: onNow(() => tiles.choose()),
  u: toggle,
  p: showPolicy,
  k: () => showKey(),
  t: theme,
  "?": showHelp,
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || isOpen()) return;
  if (event.key === "Escape" && event.target === filter) {
    filter.value = "";
    filter.dispatchEvent(new Event("input"));
    filter.blur();
  } else if (event.key in KEYS && !event.target.matches("input, textarea, select")) {
    event.preventDefault();
    KEYS[event.key]();
  }
});
$("policy").addEventListener("click", showPolicy);
$("key").addEventListener("click", () => showKey());
$("theme").addEventListener("click", theme);
$("help").addEventListener("click", showHelp);
addEventListener("pagehide", close);
drawView();
draw();
