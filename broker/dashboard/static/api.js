// The broker's HTTP door: the key, requests, and the stream of what changes.

import { createParser } from "./vendor/eventsource-parser.js";

const KEY = "gpu-broker-key";
const SILENT_MS = 40_000; // keep-alives come every 15 s
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 5_000;

/** The key lives as long as this tab, and goes out in a header alone. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

const headers = () => (key.get() ? { Authorization: `Bearer ${key.get()}` } : {});

/** Why a request failed: `status`, and the broker's words. */
export class Failed extends Error {
  constructor(status, said) {
    super(said);
    this.status = status;
  }
}

/** The JSON answer to a request. */
export async function ask(path, body) {
  const post = body && { method: "POST", body: JSON.stringify(body) };
  const type = body && { "Content-Type": "application/json" };
  let answer;
  try {
    answer = await fetch(path, { ...post, headers: { ...headers(), ...type } });
  } catch {
    throw new Failed(0, "the broker does not answer");
  }
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Failed(answer.status, words(said) || `the broker answers ${answer.status}`);
  return said;
}

function words(said) {
  if (!Array.isArray(said.detail)) return said.detail;
  return said.detail.map((each) => `${each.loc?.at(-1)}: ${each.msg}`).join("; ");
}

/**
 * Follows /live for as long as the page is looked at, and comes back after every end.
 *
 * @param hear  called with the kind and the data of each message
 * @param state called with "live", "lost" or "denied" and, of the last two, the reason
 */
export function follow(hear, state) {
  let ended = new AbortController();
  let pause = FIRST_PAUSE_MS;
  let timer;

  async function run() {
    clearTimeout(timer);
    ended.abort();
    const mine = (ended = new AbortController());
    try {
      await read(mine, (kind, data) => {
        pause = FIRST_PAUSE_MS;
        state("live");
        hear(kind, data);
      });
      if (!mine.signal.aborted) state("lost", "the broker ended the connection");
    } catch (error) {
      if (mine !== ended || document.hidden) return;
      if (error.status === 401 || error.status === 403) return state("denied", error.message);
      state("lost", error instanceof Failed ? error.message : "the broker does not answer");
    }
    if (mine !== ended) return;
    timer = setTimeout(run, pause * (0.75 + Math.random() / 2));
    pause = Math.min(pause * 2, LONGEST_PAUSE_MS);
  }

  // A browser keeps six connections to a server: tabs that nobody looks at need none.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      clearTimeout(timer);
      ended.abort();
    } else run();
  });
  if (!document.hidden) run();
  return run;
}

async function read(ended, hear) {
  const answer = await fetch("live", { headers: headers(), signal: ended.signal });
  if (!answer.ok) {
    throw new Failed(answer.status, words(await answer.json().catch(() => ({}))) ?? "");
  }
  const parser = createParser({ onEvent: (e) => e.data && hear(e.event, JSON.parse(e.data)) });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const silent = setTimeout(() => ended.abort(new Failed(0, "the broker is silent")), SILENT_MS);
    try {
      const { done, value } = await reader.read();
      if (done) return;
      parser.feed(value);
    } finally {
      clearTimeout(silent);
    }
  }
}
