// The part of the address after `#`: the filter, and the one thing that is open, or the use shown.

const KINDS = ["gpu", "host", "lease", "waiter", "event"];

let changed = () => {};

/**
 * The filter; the subject that is open, `{kind, id}`, or null; what the view of use shows,
 * `{days, by}` as texts, or null: that view is closed.
 */
export function read() {
  const params = new URLSearchParams(location.hash.slice(1));
  const kind = KINDS.find((each) => params.get(each));
  return {
    filter: params.get("q") ?? "",
    subject: kind ? { kind, id: params.get(kind) } : null,
    usage: params.has("usage") ? { days: params.get("usage"), by: params.get("by") } : null,
  };
}

function fragment(filter, subject) {
  const params = new URLSearchParams(filter ? { q: filter } : {});
  if (subject) params.set(subject.kind, subject.id);
  // A bare fragment would be taken for a place in the page.
  return params.size ? `./#${params}` : "./";
}

/** The address of a subject within this page; the filter stays. */
export const hrefOf = (kind, id) => fragment(read().filter, { kind, id });

/** The address of this page with another filter. */
export const hrefOfFilter = (filter) => fragment(filter, null);

/** The address of the view of use, of so many days by that word; the filter stays. */
export function hrefOfUsage({ days, by }) {
  const { filter } = read();
  return `./#${new URLSearchParams({ ...(filter && { q: filter }), usage: days, by })}`;
}

/** The whole address of a subject, to be given to others. */
export const linkTo = ({ kind, id }) => new URL(fragment("", { kind, id }), location.href).href;

/** Open a subject. Back closes it. */
export function go(kind, id) {
  history.pushState(null, "", hrefOf(kind, id));
  changed();
}

/** Leave the view of use. Back opens it. */
export function leaveUsage() {
  history.pushState(null, "", fragment(read().filter, null));
  changed();
}

/** Show another period or grouping of use. */
export function setUsage(of) {
  history.replaceState(null, "", hrefOfUsage(of));
  changed();
}

/** Set the filter; what is open stays open. */
export const setFilter = (filter) =>
  history.replaceState(null, "", fragment(filter, read().subject));

/** Forget the subject, which was closed. */
export const leave = () => history.replaceState(null, "", fragment(read().filter, null));

/** Call this when the address has changed: by a link, by Back, by `go`. */
export function onChange(callback) {
  changed = callback;
  addEventListener("popstate", () => changed());
}
