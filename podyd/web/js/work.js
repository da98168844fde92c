// Long work: a line for each in a corner, with the time it takes, until it is done or dismissed. The
// work goes on when another page is opened.

import { h, setText } from "./dom.js";
import { duration } from "./format.js";
import { texts } from "./texts.js";

const DONE_MS = 6000;
export const tray = h("section", { class: "tray", "aria-label": texts.work.label });

/** Shows `what` while `promise` is open; what it raises stays until it is dismissed. `progress` may
 * be called with {text, share (0 to 1; null: not known)}. Resolves to the promise's value, or undefined
 * if it failed. `failed(error)` may show an error where the work was begun, and then returns true;
 * `cancel` is called by a button. */
export async function run(what, start, failed, cancel) {
  // Each second another text: not to be read out.
  const state = h("span", { class: "state", "aria-live": "off" });
  const bar = h("progress", { "aria-label": what });
  const line = h("div", { class: "work", role: "status" }, h("span", { class: "what" }, what), bar, state);
  if (cancel) line.append(h("button", { type: "button", class: "quiet", onclick: cancel }, texts.dialog.cancel));
  tray.append(line);
  const begun = Date.now();
  let note = "";
  const show = () => setText(state, [note, duration((Date.now() - begun) / 1000)].filter(Boolean).join(", "));
  const ticking = setInterval(show, 1000);
  const progress = ({ text = "", share }) => {
    note = text;
    if (share === null) bar.removeAttribute("value");
    else if (share !== undefined) bar.value = share;
    show();
  };
  try {
    const value = await start(progress);
    finish(line, "done", value?.log ?? texts.work.done);
    setTimeout(() => line.remove(), DONE_MS);
    return value;
  } catch (error) {
    if (error.name === "AbortError" || failed?.(error)) line.remove();
    else finish(line, "failed", error.message);
    return undefined;
  } finally {
    clearInterval(ticking);
  }
}

function finish(line, outcome, text) {
  line.classList.add(outcome);
  line.querySelector("progress").remove();
  line.querySelector("button")?.remove();
  const state = line.querySelector(".state");
  state.removeAttribute("aria-live");
  state.setAttribute("role", outcome === "failed" ? "alert" : "none");
  setText(state, text);
  line.append(h("button", { type: "button", class: "quiet", onclick: () => line.remove() }, texts.work.dismiss));
}
