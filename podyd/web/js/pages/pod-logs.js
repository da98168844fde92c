// A pod's journal, followed; of a stopped pod its console, or why its last start failed.

import { get } from "../api.js";
import { button, field } from "../controls.js";
import { fill, h, setText } from "../dom.js";
import { harmless } from "../names.js";
import { texts } from "../texts.js";

const words = texts.logs;
const POLL_MS = 2000;
const WAITING_MS = 500;
// What takes long is asked for less often.
const REST = 10;
const MAX_LINES = 10_000;
// So near to the end, what comes is followed.
const NEAR_PX = 40;
const MAX_MARKS = 2000;

export default async function logs({ live, signal, ins }) {
  const lines = field(words.lines, h("select", {}, [100, 1000, MAX_LINES].map((count) => h("option", { value: count }, String(count)))));
  const since = field(words.since, h("select", {}, Object.entries(words.spans).map(([value, text]) => h("option", { value }, text))));
  const search = field(words.search, h("input", { type: "search", autocomplete: "off", spellcheck: "false" }));
  const follow = h("input", { type: "checkbox", checked: true });
  const source = h("p", { class: "soft", role: "status" });
  const error = h("p", { class: "error", role: "alert" });
  const shown = h("pre", { class: "log", tabindex: "0", role: "log", "aria-live": "off", "aria-label": words.label(ins) });
  const matches = h("span", { class: "soft", role: "status" });
  const newer = button(words.newer, () => {
    draw();
    toEnd();
    shown.focus();
  });
  const previous = button(words.previous, () => step(-1), { name: words.previousMatch });
  const next = button(words.next, () => step(1), { name: words.nextMatch });
  const found = h("div", { class: "inline", hidden: true }, matches, previous, next);
  // What podyd has said last, and what of it is drawn.
  let text = null;
  let drawn = null;
  let marks = [];
  let current = -1;
  newer.hidden = true;

  const save = button(words.save, () => {
    const link = h("a", { href: URL.createObjectURL(new Blob([text ?? ""], { type: "text/plain" })), download: `${ins}.log` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });

  /** `isAsked`: by the user, who is shown the end of it; else what is being read stays. */
  async function load(isAsked) {
    try {
      const answer = await get("pod/logs", { ins, lines: lines.input.value, since: since.input.value || null }, { signal, quiet: !isAsked });
      setText(error, "");
      setText(source, [words.sources[answer.source], answer.truncated && words.truncated].filter(Boolean).join(" "));
      text = harmless(answer.log);
    } catch (refused) {
      if (refused.name !== "AbortError") setText(error, refused.message);
      return;
    }
    if (isAsked || (text !== drawn && isAtEnd() && !isSelected())) {
      draw();
      toEnd();
    }
    newer.hidden = text === drawn;
  }

  const isAtEnd = () => shown.scrollHeight - shown.scrollTop - shown.clientHeight < NEAR_PX;
  const isSelected = () => {
    const selection = document.getSelection();
    return !selection.isCollapsed && shown.contains(selection.anchorNode);
  };
  const toEnd = () => { shown.scrollTop = shown.scrollHeight; };

  function draw() {
    drawn = text ?? "";
    newer.hidden = true;
    marks = [];
    current = -1;
    const wanted = search.input.value;
    found.hidden = !wanted;
    if (!wanted) {
      fill(shown, drawn || (since.input.value ? words.emptySince : words.empty));
      return;
    }
    const parts = drawn.split(new RegExp(`(${wanted.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&")})`, "i"), 2 * MAX_MARKS + 1);
    const length = parts.reduce((sum, part) => sum + part.length, 0);
    const nodes = parts.map((part, at) => (at % 2 ? h("mark", {}, part) : part));
    marks = nodes.filter((node) => node instanceof Node);
    fill(shown, nodes, drawn.slice(length));
    setText(matches, words.matches(marks.length, marks.length >= MAX_MARKS));
    previous.hidden = next.hidden = marks.length === 0;
  }

  function step(by) {
    if (marks.length === 0) return;
    marks[current]?.classList.remove("current");
    // The newest is found first.
    current = current < 0 ? marks.length - 1 : (current + by + marks.length) % marks.length;
    marks[current].classList.add("current");
    shown.scrollTop = marks[current].offsetTop - shown.offsetTop - shown.clientHeight / 2;
    setText(matches, words.match(current + 1, marks.length));
  }

  /** One look after the other: a slow one is waited for. */
  async function poll() {
    let took = 0;
    while (!signal.aborted) {
      await new Promise((resolve) => setTimeout(resolve, Math.max(POLL_MS, REST * took)));
      const begun = performance.now();
      if (!signal.aborted && follow.checked && document.visibilityState === "visible") await load(false);
      took = performance.now() - begun;
    }
  }

  lines.input.addEventListener("change", () => load(true));
  since.input.addEventListener("change", () => load(true));
  search.input.addEventListener("input", () => {
    const { scrollTop } = shown;
    draw();
    shown.scrollTop = scrollTop;
  });
  search.input.addEventListener("keydown", (event) => { if (event.key === "Enter") step(event.shiftKey ? 1 : -1); });
  live.onReturn(() => { if (follow.checked) load(false); }, signal);
  setText(source, texts.files.reading);
  const loading = load(true);
  loading.then(poll);
  // A slow one is seen to be read.
  await Promise.race([loading, new Promise((resolve) => setTimeout(resolve, WAITING_MS))]);
  const element = h("section", { class: "logs" }, h("div", { class: "row" }, lines.element, since.element, search.element),
    h("div", { class: "between" }, h("div", { class: "inline" }, h("label", {}, follow, " ", words.follow), save), found), error,
    h("div", { class: "between" }, source, newer), shown);
  // It can be scrolled once it is in the page.
  requestAnimationFrame(toEnd);
  return { element };
}
