// What an operator may do: forms that ask for a reason.

import { html, nothing } from "./vendor/lit-html.js";
import { ask } from "./api.js";
import { close, say, watch } from "./dialog.js";
import { needsKey } from "./key.js";
import { operates } from "./state.js";

/**
 * A form that acts.
 *
 * @param label     the button's
 * @param explained what will be
 * @param path,body the request, to which the reason is added
 * @param options   force: offer to end it at once; danger: colour the button so
 */
function act(label, explained, path, body, { force = false, danger = false } = {}) {
  if (!operates()) return needsKey(`To ${label.toLowerCase()}`);
  const submit = async (event) => {
    event.preventDefault();
    const form = event.target;
    const here = watch();
    form.inert = true;
    say("");
    try {
      const reason = form.elements.reason.value;
      await ask(path, {
        ...body,
        reason,
        ...(force && form.elements.force.checked ? { force: true } : {}),
      });
      if (here()) close();
    } catch (error) {
      form.inert = false;
      if (!here()) return;
      say(error.message);
      event.submitter.focus(); // inert took it away
    }
  };
  return html`<form class="act" @submit=${submit}>
    <p>${explained}</p>
    <label
      >Reason <input name="reason" maxlength="256" placeholder="for the log" autocomplete="off"
    /></label>
    ${
      force
        ? html`<label class="check"
            ><input type="checkbox" name="force" /> End it now, although its holder still trusts
            it</label
          >`
        : nothing
    }
    <button class=${danger ? "danger" : ""}>${label}</button>
  </form>`;
}

/** Drain, or undrain what is drained. */
export const drainForm = (drained, body, what) =>
  drained
    ? act(
        "Undrain",
        `Undrained, ${what} takes new leases again. A quarantine is lifted too.`,
        "undrain",
        body,
      )
    : act("Drain", `Drained, ${what} takes no new leases; those that run go on.`, "drain", body);

/** Lift a quarantine. */
export const quarantineForm = (body) =>
  act(
    "Undrain",
    "Undrained, its quarantine is lifted: the GPU takes new leases again, whatever its host found.",
    "undrain",
    body,
  );

/** Revoke a lease. */
export const revokeLeaseForm = (token) =>
  act(
    "Revoke",
    "Revoked, it ends at its holder's next renewal, within a minute.",
    "revoke",
    { token },
    { force: true, danger: true },
  );

/** Revoke a waiter's place. */
export const revokeWaiterForm = (token) =>
  act("Revoke", "Revoked, it loses its place in the queue.", "revoke", { token }, { danger: true });
