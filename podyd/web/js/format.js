// How quantities are written: units, times, durations.

import { h, setText } from "./dom.js";
import { texts } from "./texts.js";

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** Bytes with a binary unit, three digits: "1.50 GiB". "–" for null, "no limit" for -1. */
export function bytes(count) {
  if (count === null || count === undefined) return texts.none;
  if (count < 0) return texts.noLimit;
  let unit = 0;
  let value = count;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

/** How much of how much, with the unit once if it is the same: "1.50 of 8.00 GiB". */
export function bytesOf(count, limit) {
  const [first, last] = [bytes(count), bytes(limit)];
  const unit = last.includes(" ") ? last.slice(last.indexOf(" ")) : null;
  return texts.of(unit && first.endsWith(unit) ? first.slice(0, -unit.length) : first, last);
}

/** A number with its unit: "71 %". "–" for null. */
export function quantity(value, unit, digits = 0) {
  return value === null || value === undefined ? texts.none : `${value.toFixed(digits)} ${unit}`;
}

/** Seconds as the two largest units: "3 h 12 min". */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return texts.none;
  const left = Math.max(0, Math.round(seconds));
  const parts = [
    [Math.floor(left / 86400), "d"], [Math.floor(left / 3600) % 24, "h"],
    [Math.floor(left / 60) % 60, "min"], [left % 60, "s"],
  ];
  const first = parts.findIndex(([count]) => count > 0);
  if (first < 0) return "0 s";
  const shown = parts.slice(first, first + 2).filter(([count]) => count > 0);
  return shown.map(([count, unit]) => `${count} ${unit}`).join(" ");
}

let ahead = 0;

/** Tells that podyd's clock shows this time (ISO 8601) now; this machine's may be wrong. */
export function setClock(iso) {
  const difference = Date.parse(iso) - Date.now();
  if (Number.isFinite(difference)) ahead = difference;
}

/** The time now by podyd's clock, in ms since 1970. */
export function clock() {
  return Date.now() + ahead;
}

const DAY_CHECK_MS = 1000;
const HALF_YEAR_MS = 183 * 86_400_000;
const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const DATE = new Intl.DateTimeFormat(undefined, {
  month: "short", day: "numeric", hour: "2-digit", minute: "2-digit",
});
const DAY = new Intl.DateTimeFormat(undefined, { year: "numeric", month: "short", day: "numeric" });
const FULL = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });

/** A time (ISO 8601) as local time, in a <time> whose title has the date and the time zone; with
 * another date once today is over. */
export function moment(iso) {
  if (!iso) return texts.none;
  return h("time", { class: "moment", datetime: iso, title: FULL.format(new Date(iso)) }, short(iso));
}

function short(iso) {
  const date = new Date(iso);
  const now = new Date(clock());
  const isToday = date.toDateString() === now.toDateString();
  const isNear = Math.abs(date - now) < HALF_YEAR_MS;
  return (isToday ? CLOCK : isNear ? DATE : DAY).format(date);
}

let today = "";
setInterval(() => {
  const day = new Date(clock()).toDateString();
  if (day === today) return;
  today = day;
  for (const time of document.querySelectorAll("time.moment")) setText(time, short(time.dateTime));
}, DAY_CHECK_MS);

const STAMP = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** A time as in a log, with date and seconds. */
export function stamp(iso) {
  return h("time", { datetime: iso, title: FULL.format(new Date(iso)) }, STAMP.format(new Date(iso)));
}

/** The time zone in which times are shown: "Europe/Berlin, GMT+1". */
export function zone() {
  const format = new Intl.DateTimeFormat("en", { timeZoneName: "shortOffset" });
  const offset = format.formatToParts().find((part) => part.type === "timeZoneName").value;
  const { timeZone } = format.resolvedOptions();
  return timeZone === offset ? timeZone : `${timeZone}, ${offset}`;
}

/** How many seconds there are until a time, by podyd's clock; negative if it is over. */
export function secondsUntil(iso, live) {
  return (Date.parse(iso) - live.now()) / 1000;
}
