// The two views: what is now, and what was used. The second is loaded when it is opened first.

import { html, nothing, render } from "./vendor/lit-html.js";
import { hrefOfFilter, hrefOfUsage, leaveUsage, read } from "./address.js";

const FIRST = { days: 30, by: "team" }; // of use, until something else is asked for

const $ = (id) => document.getElementById(id);

let usage = null; // a promise of the view, once it was opened
let shown = FIRST; // what of it is shown, or was last
let opened = false;

/** True while the view of use is open. */
export const isUsage = () => read().usage !== null;

/** Load the view and its style; a page that never opens it asks for neither. */
async function load() {
  const style = document.createElement("link");
  Object.assign(style, { rel: "stylesheet", href: "static/usage.css" });
  const styled = new Promise((resolve) => (style.onload = style.onerror = resolve));
  document.head.append(style);
  const [{ UsageView }] = await Promise.all([import("./usage.js"), styled]);
  return new UsageView($("usage"));
}

async function show(asked, anew) {
  usage ??= load();
  try {
    const view = await usage;
    if (isUsage()) view.show(asked, anew);
  } catch {
    usage = null; // the next opening tries again
    render(html`<p role="alert">The view of use could not be loaded.</p>`, $("usage"));
  }
}

/** Show the view that the address names. */
export function drawView() {
  const asked = read().usage;
  if (asked) shown = asked;
  if (asked) show(asked, !opened);
  opened = asked !== null;
  $("page").hidden = opened;
  $("usage").hidden = !opened;
  $("search").hidden = opened;
  $("skip").href = opened ? "#usage" : "#devices";
  $("skip").textContent = opened ? "Skip to the use" : "Skip to the GPUs";
  const link = (text, href, current) =>
    html`<a href=${href} aria-current=${current ? "page" : nothing}>${text}</a>`;
  render(
    html`${link("Now", hrefOfFilter(read().filter), !opened)}
    ${link("Usage", hrefOfUsage(shown), opened)}`,
    $("views"),
  );
}

/** Read the use anew, if it is shown: there is another key. */
export async function reread() {
  if (usage && isUsage()) (await usage).read();
}

/** Open the view of use, or go back to what is now. */
export function toggle() {
  if (isUsage()) leaveUsage();
  else location.hash = hrefOfUsage(shown).slice(2);
}
