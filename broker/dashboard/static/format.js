// Sizes, times and tokens as a person reads them.

const UNITS = [
  [86400, "d"],
  [3600, "h"],
  [60, "min"],
];

/** MiB. */
export function size(mb) {
  if (mb == null) return "–";
  return mb < 1024 ? `${mb} MiB` : `${(mb / 1024).toFixed(1)} GiB`;
}

/** A part of a whole, both MiB. */
export function sizeOf(part, whole) {
  if (whole == null) return size(part);
  return whole < 1024 ? `${part} of ${whole} MiB` : `${(part / 1024).toFixed(1)} of ${size(whole)}`;
}

/** Seconds, in the largest unit of which it is at least two. */
export function span(seconds) {
  const s = Math.max(0, seconds);
  for (const [unit, name] of UNITS) if (s >= 2 * unit) return `${Math.round(s / unit)} ${name}`;
  return `${Math.round(s)} s`;
}

/** Epoch seconds as the time of day here; with the day when it is not today. */
export function clock(at) {
  const date = new Date(at * 1000);
  const time = date.toLocaleTimeString([], { hour12: false });
  return date.toDateString() === new Date().toDateString()
    ? time
    : `${date.toLocaleDateString()} ${time}`;
}

/** The beginning of a token, which is enough for people. */
export const short = (token) => token.slice(0, 8);

/** A share of one, as whole percents. */
export const percent = (part, whole) => (whole ? `${Math.round((100 * part) / whole)} %` : "–");

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const hundredths = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });

/** A count, in groups of three digits. */
export const count = (number) => whole.format(number);

/** GPU-hours and the like: three digits are enough. */
export const hours = (number) =>
  (number < 1 ? hundredths : number < 100 ? tenths : whole).format(number);

/** A mean number of GPUs. */
export const gpus = (number) =>
  `${(number < 10 ? hundredths : tenths).format(number)} GPU${number === 1 ? "" : "s"}`;

/** A price of something, in the currency of whoever set the prices. */
export const money = (number) =>
  new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 }).format(
    number,
  );

const named = (options) => new Intl.DateTimeFormat("en", { timeZone: "UTC", ...options });
const days = named({ day: "numeric", month: "short" });
const fullDays = named({ weekday: "short", day: "numeric", month: "short", year: "numeric" });
const months = named({ month: "short" });

/** A day of UTC, as 2026-11-30, in short or in full. */
export const dayName = (day, full = false) => (full ? fullDays : days).format(new Date(day));

/** The month of a day; of January the year. */
export const monthName = (day) =>
  day.slice(5, 7) === "01" ? day.slice(0, 4) : months.format(new Date(day));
