// Windows of this page in one browser: the oldest in sight has the stream, and tells the others.
// A browser keeps six connections to a server: with a stream for each window they block each other.

import { key, stream } from "./api.js";
import { query } from "./look.js";

const BEAT_MS = 2_000;
const GONE_MS = 7_000; // a window that has said nothing for so long
const SETTLE_MS = 250; // in which a newcomer hears of the others

/** Two numbers that stand for a text: they tell texts apart, and do not tell the text. */
function mark(text) {
  let [a, b] = [0x811c9dc5, 0x01000193];
  for (const letter of text) {
    a = Math.imul(a ^ letter.codePointAt(0), 0x01000193);
    b = Math.imul(b + letter.codePointAt(0), 0x85ebca6b) ^ (b >>> 13);
  }
  return `${(a >>> 0).toString(36)}.${(b >>> 0).toString(36)}`;
}

/**
 * Follows /live for as long as the page is looked at, by a stream of its own or another window's.
 *
 * @param hear  called with the kind and the data of each message
 * @param state called with "connecting", "live", "lost" or "denied"; the last two with the reason
 * @param whole gives all that is shown, as the data of a reset; null: nothing is yet
 * @returns what to call when there is another key, or something else is asked for
 */
export function follow(hear, state, whole) {
  const others = new Map(); // id -> when it was heard last
  let channel = null;
  let id;
  let beats;
  let leads = false;
  let told = false; // a reset was heard: what changes is known from there on
  let now = { state: "connecting", why: "" };

  const own = stream(
    (kind, data) => {
      send({ kind, data });
      hear(kind, data);
    },
    (next, why = "") => say({ state: next, why }),
  );

  function say(next) {
    now = next;
    send(now);
    state(now.state, now.why);
  }

  const send = (what) => channel?.postMessage({ id, ...what });
  const first = () => [...others.keys()].toSorted()[0];

  function enter() {
    leave();
    id = `${Date.now()}`.padStart(16, "0") + Math.random();
    const asked = `${location.pathname}${key.get()}?${query()}`;
    channel = new BroadcastChannel(`gpu-broker ${mark(asked)}`);
    channel.onmessage = ({ data }) => heard(data);
    beats = [setInterval(beat, BEAT_MS), setTimeout(decide, SETTLE_MS)];
    send({ asks: true });
    state("connecting");
  }

  function leave() {
    if (!channel) return;
    send({ gone: true });
    channel.close();
    channel = null;
    beats.forEach(clearInterval); // timeouts too: they share their numbers
    others.clear();
    if (leads) own.stop();
    leads = told = false;
  }

  function beat() {
    for (const [other, at] of others) if (performance.now() - at > GONE_MS) others.delete(other);
    send(leads ? now : {});
    decide();
  }

  function decide() {
    const lead = !others.size || id < first();
    if (lead === leads) return;
    leads = lead;
    if (lead) own.start();
    else {
      own.stop();
      send({ asks: true });
    }
  }

  function heard(said) {
    if (said.gone) {
      others.delete(said.id);
      return decide();
    }
    others.set(said.id, performance.now());
    if (said.asks) {
      const data = leads ? whole() : null;
      return send(data ? { ...now, kind: "reset", data } : leads ? now : {});
    }
    if (leads || said.id !== first()) return;
    told ||= said.kind === "reset";
    if (said.kind && told) hear(said.kind, said.data);
    if (said.state) state(said.state, said.why);
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? leave() : enter()));
  addEventListener("pagehide", leave);
  if (!document.hidden) enter();
  return enter;
}
