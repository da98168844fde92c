// Curves of the last hour, day, week, month or year, with the choice between them.

import { get } from "./api.js";
import { curve } from "./chart.js";
import { fill, h } from "./dom.js";
import { bytes, moment, quantity } from "./format.js";
import { texts } from "./texts.js";

const SPANS = ["hour", "day", "week", "month", "year"];
const AGAIN_MS = 60_000;

/** `load(span, signal)` resolves to {start, step, curves: [{title, values, top, last}]}; `last` is
 * the text of the newest value. */
export function history({ load, signal, title }) {
  const name = `span-${Math.random().toString(36).slice(2)}`;
  const shown = h("div", { class: "curves" });
  let span = "hour";
  const choice = h("fieldset", { class: "spans" }, h("legend", {}, title), SPANS.map((item) =>
    h("label", {}, h("input", { type: "radio", name, value: item, checked: item === span,
      onchange: () => { span = item; show(); } }), " ", texts.history[item])));

  async function show() {
    const wanted = span;
    try {
      const { start, step, curves } = await load(wanted, signal);
      if (wanted !== span) return;
      const count = Math.max(1, ...curves.map((item) => item.values.length));
      const end = new Date(Date.parse(start) + count * step * 1000).toISOString();
      fill(shown, curves.map(({ title: label, values, top, last }) =>
        h("figure", {}, h("figcaption", {}, label, " ", h("strong", {}, last)),
          curve({ values, top, label: texts.history.curve(label, texts.history[wanted], last) }))),
      h("p", { class: "soft" }, moment(new Date(Date.parse(start)).toISOString()), " – ", moment(end)));
    } catch (error) {
      if (error.name !== "AbortError") fill(shown, h("p", { class: "error" }, error.message));
    }
  }

  const again = setInterval(show, AGAIN_MS);
  signal.addEventListener("abort", () => clearInterval(again));
  show();
  return h("section", { class: "history" }, choice, shown);
}

/** The newest value that is known. */
export function newest(values) {
  return values.findLast((value) => value !== null) ?? null;
}

/** The load function for GPUs (`get` of gpu/history). */
export function ofGpu(index, gpu) {
  return async (span, signal) => {
    const { start, step, gpus } = await get("gpu/history", { span }, { signal, quiet: true });
    const series = gpus[index] ?? { utilisation: [], memory_used: [], power: [], temperature: [] };
    const { cards } = texts;
    return { start, step, curves: [
      { title: cards.utilisation, values: series.utilisation, top: 100, last: quantity(newest(series.utilisation), "%") },
      { title: cards.memory, values: series.memory_used, top: gpu?.memory_total ?? 1, last: bytes(newest(series.memory_used)) },
      { title: cards.power, values: series.power, top: gpu?.power_limit ?? 1000, last: quantity(newest(series.power), "W") },
      { title: cards.temperature, values: series.temperature, top: 100, last: quantity(newest(series.temperature), "°C") },
    ] };
  };
}
