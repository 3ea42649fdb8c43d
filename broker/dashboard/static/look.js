// What of a large pool is asked for: the words of the filter, and a page of each list.

import { large } from "./state.js";

const MOST = 100; // rows of a page
const PAUSE_MS = 400; // after the last letter of the filter

const first = { devices: 0, leases: 0, queue: 0 };
let words = "";
let changed = () => {};
let timer;

/** The query of /live: of a pool that is not large, everything. */
export function query() {
  const pages = Object.fromEntries(Object.entries(first).filter(([, at]) => at));
  return new URLSearchParams({ most: MOST, ...(words && { q: words }), ...pages });
}

/** Ask for what holds these words, from the first page on. */
export function lookFor(text) {
  clearTimeout(timer);
  if (!large() || text.trim() === words) return;
  timer = setTimeout(() => {
    words = text.trim();
    for (const name of Object.keys(first)) first[name] = 0;
    changed();
  }, PAUSE_MS);
}

/** The page of a list, `{first, matches, most, turn}`; null: all of it is known. */
export function pageOf(name) {
  const of = large();
  if (!of || !(name in first)) return null;
  const turn = (by) => {
    first[name] = Math.max(0, first[name] + by * MOST);
    changed();
  };
  return { first: first[name], matches: of.matches[name], most: MOST, turn };
}

/** Call this when something else is asked for. */
export const onLook = (callback) => (changed = callback);
