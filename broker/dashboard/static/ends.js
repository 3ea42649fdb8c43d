// How leases and waits that are gone have ended, by the events that are known.

import { short } from "./format.js";
import { events } from "./state.js";

const OF_LEASE = ["released", "expired", "revoked", "preempted"];
const OF_WAIT = ["granted", "revoked", "cancelled", "timed_out"];

/** The event that ended a lease, by the id of its row: its token's beginning, and its fence. */
export const endOfLease = (id) =>
  events.find(
    ({ event, token, fence }) =>
      OF_LEASE.includes(event) && token && `${short(token)}…${fence}` === id,
  );

/**
 * The event that ended a wait.
 *
 * @param id     the id of its row: its token's beginning, and its rank, which no event has
 * @param waiter the row as it was last known; null: it was not
 */
export function endOfWait(id, waiter) {
  const isOf = ({ agent, token }) =>
    short(token) === short(id) &&
    (!waiter || (agent === waiter.agent && (token.includes("…") || token === waiter.token)));
  // With a fence it is the end of a lease, maybe of the one that it waited for.
  return events.find(
    (each) =>
      OF_WAIT.includes(each.event) &&
      (each.event === "granted" || !each.fence) &&
      each.token &&
      isOf(each),
  );
}
