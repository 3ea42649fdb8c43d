// The broker's HTTP door: the key, requests, and the stream of what changes.

import { createParser } from "./vendor/eventsource-parser.js";
import { query } from "./look.js";

const KEY = "gpu-broker-key";
const SILENT_MS = 15_000; // keep-alives come every 5 s
const ANSWER_MS = 8_000; // from a request to the head of its answer
const ACT_MS = 10_000; // from a request to the end of its answer
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
  const signal = AbortSignal.timeout(ACT_MS);
  let answer, said;
  try {
    answer = await fetch(path, { ...post, signal, headers: { ...headers(), ...type } });
    said = await answer.json().catch((error) => (signal.aborted ? Promise.reject(error) : {}));
  } catch {
    const unsure =
      body && signal.aborted ? `within ${ACT_MS / 1000} s: it may be done all the same` : "";
    throw new Failed(0, `the broker does not answer ${unsure}`.trim());
  }
  if (!answer.ok)
    throw new Failed(answer.status, words(said) || `the broker answers ${answer.status}`);
  return said;
}

function words(said) {
  if (!Array.isArray(said.detail)) return said.detail;
  return said.detail.map((each) => `${each.loc?.at(-1)}: ${each.msg}`).join("; ");
}

/**
 * The stream of /live, which comes back after every end until it is stopped.
 *
 * @param hear  called with the kind and the data of each message
 * @param state called with "connecting", "live", "lost" or "denied"; the last two with the reason
 */
export function stream(hear, state) {
  let ended = new AbortController();
  let pause = FIRST_PAUSE_MS;
  let timer;

  async function run() {
    const mine = (ended = new AbortController());
    try {
      await read(mine, (kind, data) => {
        pause = FIRST_PAUSE_MS;
        state("live");
        hear(kind, data);
      });
      if (mine === ended) state("lost", "the broker ended the connection");
    } catch (error) {
      if (mine !== ended) return;
      if (error.status === 401 || error.status === 403) return state("denied", error.message);
      state("lost", error instanceof Failed ? error.message : "the broker does not answer");
    }
    if (mine !== ended) return;
    timer = setTimeout(run, pause * (0.75 + Math.random() / 2));
    pause = Math.min(pause * 2, LONGEST_PAUSE_MS);
  }

  function stop() {
    clearTimeout(timer);
    const last = ended;
    ended = null;
    last?.abort();
  }

  function start() {
    stop();
    state("connecting");
    run();
  }

  return { start, stop };
}

/** Give its result, unless it takes longer: then the controller ends it, for that reason. */
async function within(ms, controller, why, work) {
  const late = setTimeout(() => controller.abort(new Failed(0, why)), ms);
  try {
    return await work;
  } finally {
    clearTimeout(late);
  }
}

async function read(ended, hear) {
  const asked = fetch(`live?${query()}`, { headers: headers(), signal: ended.signal });
  const answer = await within(ANSWER_MS, ended, "the broker does not answer", asked);
  if (!answer.ok) {
    throw new Failed(answer.status, words(await answer.json().catch(() => ({}))) ?? "");
  }
  const parser = createParser({ onEvent: (e) => e.data && hear(e.event, JSON.parse(e.data)) });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await within(SILENT_MS, ended, "the broker is silent", reader.read());
    if (done) return;
    parser.feed(value);
  }
}
