// A colour for each agent: one of twelve, the same for as long as the page is open.

const COLOURS = 12;

/** The number that a name leads to. */
function slot(name) {
  let sum = 0x811c9dc5;
  for (const letter of name) sum = Math.imul(sum ^ letter.codePointAt(0), 0x01000193);
  return (sum >>> 0) % COLOURS;
}

/** A function that gives the class of a name's colour. Two names share one only after twelve. */
export function palette() {
  const given = new Map();
  return (name) => {
    if (!given.has(name)) {
      const taken = new Set(given.values());
      let at = slot(name);
      for (let n = 0; n < COLOURS && taken.has(at); n++) at = (at + 1) % COLOURS;
      given.set(name, at);
    }
    return `agent-${given.get(name)}`;
  };
}

/** The class of an agent's colour. */
export const colourOf = palette();
