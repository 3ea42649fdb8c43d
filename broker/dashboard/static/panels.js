// The four lists: devices, leases, the queue, events. What of them matches the filter.

import { html } from "./vendor/lit-html.js";
import { DEVICES, EVENTS, LEASES, QUEUE } from "./columns.js";
import { findingsOf, leasable, places, stateLine, stateOf, wordsOf } from "./describe.js";
import { List } from "./list.js";
import { pageOf } from "./look.js";
import { events, large, leasesByDevice, rows } from "./state.js";

const EMPTY = {
  devices: () =>
    html`No host has reported GPUs to this pool. On a machine that has some:
      <code>gpu-broker host</code>, or <code>gpu-broker serve --demo</code> for simulated ones.`,
  leases: () =>
    html`No lease is held. To get one:
      <code>gpu-broker run --memory 8GiB -- python train.py</code>`,
  queue: () => "No request waits.",
  events: () => "Nothing has happened yet.",
};

/**
 * The four lists.
 *
 * @param page   the element with their sections
 * @param open   called with the kind and the id of what is chosen
 * @param unseen gives why nothing is shown; empty: all is
 * @param tools  what stands beside the heading of the GPUs
 */
export function lists(page, open, unseen, tools) {
  const list = (name, title, columns, chosen, more = {}) =>
    new List(page.querySelector(`#${name}`), {
      name,
      title,
      columns,
      open: chosen,
      empty: () => unseen() || EMPTY[name](),
      ...more,
    });
  return {
    devices: list(
      "devices",
      "GPUs",
      DEVICES,
      (item) => (item.host ? open("host", item.host.host) : open("gpu", item.gpu.uuid)),
      { tools },
    ),
    leases: list("leases", "Leases", LEASES, (item) => open("lease", item.id)),
    queue: list("queue", "Queue", QUEUE, (item) => open("waiter", item.id)),
    events: list("events", "Events", EVENTS, (item) => open("event", item.id)),
  };
}

/** A test of texts: true of those that hold every word of the filter; a large pool's are chosen. */
function matcher(filter) {
  if (large()) return () => true;
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  return (...texts) => {
    const text = texts.join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  };
}

/** The GPUs that match, by host: [{host, gpus, free_mb, leases}], in their order. */
export function hostsOf(filter) {
  const matches = matcher(filter);
  const hosts = new Map();
  for (const gpu of rows.devices.values()) {
    const holders = (leasesByDevice().get(gpu.uuid) ?? []).map((each) => each.lease.agent);
    if (
      !matches(
        gpu.host,
        `${gpu.host}:${gpu.index}`,
        gpu.name,
        gpu.uuid,
        stateLine(stateOf(gpu)),
        wordsOf(findingsOf(gpu)),
        ...holders,
      )
    )
      continue;
    if (!hosts.has(gpu.host)) hosts.set(gpu.host, []);
    hosts.get(gpu.host).push(gpu);
  }
  for (const { host, trouble } of rows.hosts.values()) {
    if (trouble && !hosts.has(host) && matches(host, trouble)) hosts.set(host, []);
  }
  return [...hosts.keys()].sort().map((name) => {
    const gpus = hosts.get(name).sort((a, b) => a.index - b.index);
    return {
      host: rows.hosts.get(name) ?? { host: name, alive: false, reported_at: 0 },
      gpus,
      free_mb: gpus.reduce((sum, gpu) => sum + leasable(gpu), 0),
      leases: gpus.reduce((sum, gpu) => sum + gpu.leases, 0),
    };
  });
}

/** Fill the lists with what matches the filter; `hosts` are those of `hostsOf`. */
export function fill(all, filter, hosts, known) {
  const matches = matcher(filter);
  const total = (number) => (known ? number : null);
  const grouped = hosts.flatMap(({ gpus, ...host }) => [
    { id: host.host.host, kind: "host", ...host },
    ...gpus.map((gpu) => ({ id: gpu.uuid, kind: "device", gpu })),
  ]);
  all.devices.show(
    grouped,
    total(rows.devices.size),
    grouped.length - hosts.length,
    pageOf("devices"),
  );
  const leases = [...rows.leases].map(([id, lease]) => ({ id, lease }));
  all.leases.show(
    leases.filter(({ id, lease }) =>
      matches(
        lease.agent,
        lease.team,
        id,
        lease.token,
        ...lease.findings,
        places(lease.gpus),
        ...lease.gpus.map((g) => g.uuid),
      ),
    ),
    total(leases.length),
    undefined,
    pageOf("leases"),
  );
  const waiters = [...rows.queue].map(([id, waiter]) => ({ id, waiter }));
  all.queue.show(
    waiters.filter(({ id, waiter }) =>
      matches(waiter.agent, waiter.team, id, waiter.token, waiter.host, waiter.model, waiter.why),
    ),
    total(waiters.length),
    undefined,
    pageOf("queue"),
  );
  const happened = events.map((event) => ({ id: event.id, event }));
  all.events.show(
    happened.filter(({ event: e }) =>
      matches(
        e.event,
        e.agent,
        e.token,
        e.host,
        e.by,
        e.reason,
        e.finding,
        places(e.devices),
        ...e.devices.map((d) => d.uuid),
      ),
    ),
    total(happened.length),
  );
}
