// Curves of the last hour, day, week, month or year, with the choice between them.

import { get } from "./api.js";
import { curve } from "./chart.js";
import { fill, h, setText } from "./dom.js";
import { bytes, duration, moment, quantity } from "./format.js";
import { texts } from "./texts.js";

const words = texts.history;
const SPANS = ["hour", "day", "week", "month", "year"];
const AGAIN_MS = 60_000;

/** `load(span, signal)` resolves to {start, step, curves: [{title, values, top, write}]}; `write` makes
 * a text of a value, or of null. What is pointed at, or chosen by the slider, is told of all curves. */
export function history({ load, live, signal, title }) {
  const name = `span-${Math.random().toString(36).slice(2)}`;
  const shown = h("div", { class: "curves" });
  const slider = h("input", { type: "range", min: 0, step: 1, "aria-label": words.time });
  const [first, last, note] = [h("span"), h("span"), h("p", { class: "soft" })];
  const times = h("div", { class: "times", hidden: true }, first, slider, last);
  let span = "hour";
  let point = () => {};
  const choice = h("fieldset", { class: "spans" }, h("legend", {}, title), SPANS.map((item) =>
    h("label", {}, h("input", { type: "radio", name, value: item, checked: item === span,
      onchange: () => { span = item; show(); } }), " ", words[item])));
  slider.addEventListener("input", () => point(Number(slider.value)));

  async function show() {
    const wanted = span;
    try {
      const answer = await load(wanted, signal);
      if (wanted === span) draw(wanted, answer);
    } catch (error) {
      if (error.name === "AbortError") return;
      times.hidden = true;
      fill(note);
      fill(shown, h("p", { class: "error" }, error.message));
    }
  }

  function draw(wanted, { start, step, curves }) {
    const count = Math.max(1, ...curves.map((item) => item.values.length));
    const timeOf = (index) => moment(new Date(Date.parse(start) + index * step * 1000).toISOString());
    const drawn = curves.map((item) => figure(item, words[wanted], (index) => point(index)));
    times.hidden = drawn.every((item) => item === null);
    if (times.hidden) {
      fill(note);
      fill(shown, h("p", { class: "empty" }, words.nothing));
      return;
    }
    fill(shown, drawn.map((item, at) => item?.element ?? h("p", { class: "empty" }, words.nothingOf(curves[at].title))));
    point = (index) => {
      const at = index ?? count - 1;
      const time = timeOf(at);
      for (const item of drawn) item?.show(index, time.textContent);
      slider.value = at;
      slider.setAttribute("aria-valuetext", `${time.textContent}: ${curves.map((item) => `${item.title} ${item.write(item.values[at] ?? null)}`).join(", ")}`);
    };
    const isAtEnd = document.activeElement !== slider || slider.value === slider.max;
    slider.max = count - 1;
    point(isAtEnd ? null : Number(slider.value));
    fill(first, timeOf(0));
    fill(last, timeOf(count));
    setText(note, words.means(duration(step)));
  }

  // Not while nobody sees it; it is right at once when somebody does, or when the stream is there again.
  const again = () => { if (live.isLive && document.visibilityState === "visible") show(); };
  const ticking = setInterval(again, AGAIN_MS);
  signal.addEventListener("abort", () => clearInterval(ticking));
  document.addEventListener("visibilitychange", again, { signal });
  if (!live.isLive) fill(shown, h("p", { class: "waiting" }, texts.live.connecting));
  live.onState(again, signal);
  return h("section", { class: "history" }, choice, shown, times, note);
}

/** One curve with its scale: {element, show(index, time)}; with null it shows the newest value. null if
 * nothing is known. */
function figure({ title, values, top, write }, span, pointed) {
  const known = values.filter((value) => value !== null);
  if (known.length === 0) return null;
  const newestText = write(known.at(-1));
  const mean = known.reduce((sum, value) => sum + value, 0) / known.length;
  const label = words.curve(title, span, newestText, write(Math.min(...known)), write(Math.max(...known)), write(mean));
  const { element, mark } = curve({ values, top, label, pointed });
  const [value, time] = [h("strong"), h("span", { class: "soft" })];
  return {
    element: h("figure", {}, h("figcaption", {}, title, " ", value, " ", time),
      h("div", { class: "plot" }, h("div", { class: "scale", "aria-hidden": "true" }, h("span", {}, write(top)), h("span", {}, write(0))), element)),
    show: (index, at) => {
      mark(index);
      setText(value, index === null ? newestText : write(values[index] ?? null));
      setText(time, index === null ? "" : at);
    },
  };
}

/** The highest value that is known; 0 if none is. */
export function highest(values) {
  return values.reduce((most, value) => Math.max(most, value ?? 0), 0);
}

/** The load function for GPUs (`get` of gpu/history). */
export function ofGpu(index, gpu) {
  return async (span, signal) => {
    const { start, step, gpus } = await get("gpu/history", { span }, { signal, quiet: true });
    const series = gpus[index] ?? { utilisation: [], memory_used: [], power: [], temperature: [] };
    const { cards } = texts;
    const unit = (name) => (value) => quantity(value, name);
    return { start, step, curves: [
      { title: cards.utilisation, values: series.utilisation, top: 100, write: unit("%") },
      { title: cards.memory, values: series.memory_used, top: gpu?.memory_total || highest(series.memory_used) || 1, write: bytes },
      { title: cards.power, values: series.power, top: gpu?.power_limit || highest(series.power) || 1, write: unit("W") },
      { title: cards.temperature, values: series.temperature, top: 100, write: unit("°C") },
    ] };
  };
}
