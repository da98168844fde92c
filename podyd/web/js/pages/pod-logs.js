// A pod's journal, followed; of a stopped pod its console, or why its last start failed.

import { get } from "../api.js";
import { button, field } from "../controls.js";
import { fill, h, setText } from "../dom.js";
import { texts } from "../texts.js";

const words = texts.logs;
const POLL_MS = 2000;
const MAX_LINES = 10_000;
// So near to the end, what comes is followed.
const NEAR_PX = 40;

export default function logs({ signal }, ins) {
  const lines = field(words.lines, h("select", {}, [100, 1000, MAX_LINES].map((count) => h("option", { value: count }, String(count)))));
  const since = field(words.since, h("select", {}, Object.entries(words.spans).map(([value, text]) => h("option", { value }, text))));
  const search = field(words.search, h("input", { type: "search", autocomplete: "off" }));
  const follow = h("input", { type: "checkbox", checked: true });
  const source = h("p", { class: "soft", role: "status" });
  const error = h("p", { class: "error", role: "alert" });
  const shown = h("pre", { class: "log", tabindex: "0", role: "log", "aria-live": "off", "aria-label": words.label(ins) });
  const matches = h("p", { class: "soft", role: "status" });
  let text = "";

  const save = button(words.save, () => {
    const link = h("a", { href: URL.createObjectURL(new Blob([text], { type: "text/plain" })), download: `${ins}.log` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  async function load(quiet) {
    try {
      const answer = await get("pod/logs", { ins, lines: lines.input.value, since: since.input.value || null }, { signal, quiet });
      fill(error);
      setText(source, [words.sources[answer.source], answer.truncated && words.truncated].filter(Boolean).join(" "));
      if (answer.log === text) return;
      text = answer.log;
      draw();
    } catch (refused) {
      if (refused.name !== "AbortError") fill(error, refused.message);
    }
  }

  function draw() {
    const isAtEnd = shown.scrollHeight - shown.scrollTop - shown.clientHeight < NEAR_PX;
    const wanted = search.input.value;
    if (wanted) {
      const parts = text.split(wanted);
      fill(shown, parts.map((part, at) => [part, at < parts.length - 1 && h("mark", {}, wanted)]));
      setText(matches, words.matches(parts.length - 1));
    } else {
      fill(shown, text || words.empty);
      setText(matches, "");
    }
    if (isAtEnd || !draw.before) shown.scrollTop = shown.scrollHeight;
    draw.before = true;
  }
  draw.before = false;

  /** One look after the other: a slow one is waited for. */
  async function poll() {
    await load(false);
    while (!signal.aborted) {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      if (!signal.aborted && follow.checked && document.visibilityState === "visible") await load(true);
    }
  }

  lines.input.addEventListener("change", () => load(false));
  since.input.addEventListener("change", () => load(false));
  search.input.addEventListener("input", draw);
  poll();
  return { element: h("section", { class: "logs" }, h("div", { class: "row" }, lines.element, since.element, search.element),
    h("div", { class: "buttons" }, h("label", {}, follow, " ", words.follow), save), error, source, matches, shown) };
}
