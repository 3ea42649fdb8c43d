// A colour for each agent: one of twelve, the same for as long as the page is open.

const COLOURS = 12;

const given = new Map();

/** The number that a name leads to. */
function slot(name) {
  let sum = 0x811c9dc5;
  for (const letter of name) sum = Math.imul(sum ^ letter.codePointAt(0), 0x01000193);
  return (sum >>> 0) % COLOURS;
}

/** The class of an agent's colour. Two agents share one only when there are more than twelve. */
export function colourOf(agent) {
  if (!given.has(agent)) {
    const taken = new Set(given.values());
    let at = slot(agent);
    for (let n = 0; n < COLOURS && taken.has(at); n++) at = (at + 1) % COLOURS;
    given.set(agent, at);
  }
  return `agent-${given.get(agent)}`;
}
