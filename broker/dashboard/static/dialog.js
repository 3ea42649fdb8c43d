// The one dialog: a view is open in it, and is drawn anew as the pool changes.

import { html, nothing, render } from "./vendor/lit-html.js";

const dialog = document.getElementById("dialog");

let view = null; // gives {title, body, gone?} of what is open, as it is now
let subject = null; // its address, if it has one
let shown = 0; // grows with each dialog that is opened and each that is closed
let left = () => {};

/**
 * Open a view.
 *
 * @param next  gives the title, the body, and `gone`: the words for a subject that is no more
 * @param about its address {kind, id}; null: it has none
 */
export function open(next, about = null) {
  shown += 1;
  if (dialog.open) dialog.close();
  else if (subject) left(subject); // it was closed, and its event is yet to come
  render(nothing, dialog); // lit would reuse the last one's fields, with what was typed into them
  [view, subject] = [next, about];
  redraw();
  dialog.showModal();
}

/** Draw what is open as it is now; what was typed into it stays. */
export function redraw() {
  if (!view) return;
  const { title, body, gone } = view();
  const acting = dialog.querySelector(".act")?.contains(document.activeElement);
  render(
    html`<form method="dialog" class="bar-top">
        <h2 id="dialog-title">${title}</h2>
        <button aria-label="Close">✕</button>
      </form>
      <p class="gone" role="status">${gone}</p>
      <div class="body ${gone ? "past" : ""}">${body}</div>
      <p class="said" role="alert"></p>`,
    dialog,
  );
  if (gone && acting) dialog.querySelector(".bar-top button").focus(); // its form is hidden
}

// The event comes later than the end: another may be open by then.
dialog.addEventListener("close", () => {
  if (dialog.open) return;
  shown += 1;
  const was = subject;
  view = subject = null;
  render(nothing, dialog);
  if (was) left(was);
});

// A click beside it closes it.
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

/** Call this when a subject was closed. */
export function onLeave(callback) {
  left = callback;
}

/** Tells, later, if what is open now still is: an answer belongs to the dialog that asked. */
export function watch() {
  const mine = shown;
  return () => mine === shown && dialog.open;
}

/** Close it. */
export const close = () => dialog.close();

/** True while one is open: keys then belong to it. */
export const isOpen = () => dialog.open;

/** The address of what is open, or null. */
export const openSubject = () => subject;

/** True until the end of what was open is dealt with, too. */
export const isBusy = () => view !== null;

/** Say something at its foot. */
export function say(text) {
  dialog.querySelector(".said").textContent = text;
}
