// The page: what the broker tells is drawn at most once a frame, and the clocks once a second.

import { render, html, nothing } from "./vendor/lit-html.js";
import { key } from "./api.js";
import { close, isOpen, onKey, showHelp, showKey, showPolicy } from "./dialogs.js";
import { clock, span } from "./format.js";
import { fill, lists, summary } from "./panels.js";
import { Plots } from "./plots.js";
import { broker, now, pool, shownAt, take, whole, you } from "./state.js";
import { follow } from "./windows.js";

const $ = (id) => document.getElementById(id);
const all = lists($("page"));
const CONNECTED_S = 1; // a connection that takes longer is told of
const plots = new Plots($("plots"));
const filter = $("filter");
let state = "connecting";
let why = "";
let since = Date.now(); // of the state
let waiting = false;

filter.value = new URLSearchParams(location.hash.slice(1)).get("q") ?? "";
for (const list of Object.values(all)) list.resort = draw;

/** Draw everything, once, before the next frame. */
function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    fill(all, filter.value);
    if (pool()) render(summary(pool(), broker()), $("summary"));
    plots.draw();
    $("where").textContent = pool() ? pool().name : "";
    $("key").hidden = you !== null && !you.keys && !key.get();
    $("key").textContent = you?.name ? `Key: ${you.name}` : "Key";
    notice();
  });
}

/** What is wrong with what is shown, if anything. */
function notice() {
  const problem = broker()?.problem;
  const waits_s = state === "connecting" ? (Date.now() - since) / 1000 : 0;
  const stale = state === "lost" || state === "denied" || problem || (waits_s > CONNECTED_S && shownAt());
  document.body.dataset.state = stale ? "stale" : state;
  // Clocks are shown, and not read out each second.
  const quiet = (text) => html`<span aria-live="off">${text}</span>`;
  const age = shownAt() ? html` What is shown is ${quiet(span(now() - shownAt()))} old, of ${clock(shownAt())}.` : nothing;
  let said = nothing;
  if (state === "denied") said = html`<b>Not shown:</b> ${why}. <button type="button" @click=${() => showKey()}>Enter a key</button>`;
  else if (state === "lost") said = html`<b>Disconnected</b> for ${quiet(span((Date.now() - since) / 1000))}: ${why}.${age} Trying again.`;
  else if (state === "connecting" && (waits_s > CONNECTED_S || !shownAt()))
    said = html`<b>Connecting</b> for ${quiet(span(waits_s))}.${age}`;
  else if (problem) said = html`<b>The broker's store does not serve it:</b> ${problem.replace(/\.$/, "")}.${age}`;
  render(said, $("notice"));
}

const retry = follow(
  (kind, said) => {
    take(kind, said);
    draw();
  },
  (next, reason = "") => {
    if (next === "connecting" && state === "lost") return; // until it is heard again
    if (next !== state) since = Date.now();
    if (next === "denied" && state !== "denied") showKey(key.get() ? "This key is not known, or may not see this." : "This broker wants a key.");
    [state, why] = [next, reason];
    draw();
  },
  whole,
);
onKey(retry);

// Only the clocks move by themselves.
setInterval(() => {
  all.leases.draw();
  all.queue.draw();
  notice();
}, 1000);
setInterval(() => plots.draw(), 15_000);

filter.addEventListener("input", () => {
  const query = filter.value ? `#${new URLSearchParams({ q: filter.value })}` : location.pathname;
  history.replaceState(null, "", query);
  draw();
});

function theme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
  plots.restyle();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.restyle());

const go = (name) => () => {
  $(name).scrollIntoView({ block: "nearest" });
  ($(name).querySelector(".list:not([hidden])") ?? $(name)).focus();
};
const KEYS = {
  "/": () => filter.focus(),
  1: go("devices"), 2: go("leases"), 3: go("queue"), 4: go("events"),
  p: showPolicy, k: () => showKey(), t: theme, "?": showHelp,
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
draw();
