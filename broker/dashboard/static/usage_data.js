// Use in a period: what is asked of the broker, and what the view shows of its answer.

import { ask } from "./api.js";
import { now } from "./state.js";

const DAY_S = 86_400;
const SHOWN = 11; // groups with an area of their own; twelve colours, and one is for the rest
const WEEK_DAYS = 7;
const HOURS_DAYS = 30; // the longest time whose hours are added up

/** Lengths of a period in days. */
export const PERIODS = [7, 30, 90, 365];

/** Groupings, and the words by which the broker knows them. */
export const GROUPINGS = { team: "team", agent: "team,agent", model: "model", host: "host" };

/** A period and a grouping that are there, whatever the address says. */
export const known = ({ days, by }) => ({
  days: PERIODS.includes(Number(days)) ? Number(days) : 30,
  by: Object.hasOwn(GROUPINGS, by) ? by : "team",
});

const dayOf = (at) => new Date(at * 1000).toISOString().slice(0, 10);

/** The first day of a period that ends today, of UTC. */
const firstOf = (days) => dayOf(now() - (days - 1) * DAY_S);

const usage = (asked) => ask(`usage?${new URLSearchParams(asked)}`);

/** The use of a period by group, with the GPU-hours of each day. */
export const readUsage = ({ days, by }) =>
  usage({ by: GROUPINGS[by], since: firstOf(days), daily: true });

/** The use of hosts in the hours of the last week by day, or of a day by the last month. */
export const readHosts = (week) =>
  week
    ? usage({ by: "day,host", since: firstOf(WEEK_DAYS) })
    : usage({ by: "host", since: firstOf(HOURS_DAYS), daily: true });

/** Finished leases, the newest first; `of` narrows them, `cursor` goes on. */
export const readHistory = (of, cursor) =>
  ask(`history?${new URLSearchParams({ limit: 25, ...of, ...(cursor && { cursor }) })}`);

/** The days of an answer, as 2026-11-30. */
export function daysOf({ first_day, last_day }) {
  const from = Date.parse(first_day) / 1000;
  const count = Math.round((Date.parse(last_day) / 1000 - from) / DAY_S) + 1;
  return Array.from({ length: count }, (_, n) => dayOf(from + n * DAY_S));
}

const spoken = { host: { "-": "CPU" }, model: { cpu: "CPU", "-": "not known" } };

/** The name of a group. */
export const nameOf = (row, by) => spoken[by]?.[row[by]] ?? row[by];

/** A name that no other group has: agents of two teams may share theirs. */
export const keyOf = (row, by) => (by === "agent" ? `${row.team} ${row.agent}` : row[by]);

/** What narrows the finished leases to a group; null: they are not kept by it. */
export function narrowing(row, by) {
  if (by === "agent") return { team: row.team, agent: row.agent };
  return by === "team" || (by === "host" && row.host !== "-") ? { [by]: row[by] } : null;
}

/** The GPU-hours of each day by group, the largest first: [{key, name, days}]; the rest is one. */
export function seriesOf(rows, by) {
  const used = rows.filter((row) => row.gpu_hours > 0);
  const most = used.length > SHOWN + 1 ? SHOWN : used.length;
  const series = used.slice(0, most).map((row) => ({
    key: keyOf(row, by),
    name: nameOf(row, by),
    days: row.gpu_hours_by_day,
  }));
  const rest = used.slice(most);
  if (rest.length) {
    const sum = (at) => rest.reduce((all, row) => all + row.gpu_hours_by_day[at], 0);
    const days = rest[0].gpu_hours_by_day.map((_, at) => sum(at));
    series.push({ key: null, name: `${rest.length} others`, days });
  }
  return series;
}

/** How many times each hour of the day has come, from the first day of use on; now in part. */
function counted(answer) {
  const days = daysOf(answer);
  const used = (_, n) => answer.rows.some((row) => row.gpu_hours_by_day[n] > 0);
  const before = days.length - 1 - days.findIndex(used);
  const passed = (answer.now - Date.parse(answer.last_day) / 1000) / 3600;
  return Array.from({ length: 24 }, (_, hour) => before + Math.min(1, Math.max(0, passed - hour)));
}

const onGpus = (rows) => rows.filter(({ host, gpu_hours }) => host !== "-" && gpu_hours > 0);

const byName = (a, b) => a.host.localeCompare(b.host, undefined, { numeric: true });

/** Hosts with the mean of their leased GPUs in each hour of the day. */
export function hoursOf(answer) {
  const times = counted(answer);
  const rows = onGpus(answer.rows).map(({ host, gpu_hours_by_hour }) => ({
    host,
    values: gpu_hours_by_hour.map((hours, hour) => hours / (times[hour] || 1)),
  }));
  return rows.sort(byName);
}

/** Hosts with their leased GPUs in each hour of the last days. */
export function weekOf(answer) {
  const days = daysOf(answer);
  const hosts = new Map();
  for (const { host, day, gpu_hours_by_hour } of onGpus(answer.rows)) {
    if (!hosts.has(host)) hosts.set(host, Array(24 * days.length).fill(0));
    gpu_hours_by_hour.forEach((hours, hour) => {
      hosts.get(host)[24 * days.indexOf(day) + hour] += hours;
    });
  }
  return [...hosts].map(([host, values]) => ({ host, values })).sort(byName);
}

/** The most GPUs of any host in any hour: of a thousand hosts these are too many arguments. */
export const mostOf = (hosts) => hosts.reduce((most, { values }) => Math.max(most, ...values), 0);
