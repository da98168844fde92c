// What is asked for again once podyd says that it has changed: not more often than each five seconds,
// and not while nobody sees the page.

import { fill, h } from "./dom.js";

const LEAST_MS = 5000;

/** Calls `load(quiet)` now, and again when what `mark()` gives of the values of these keys is another
 * one, or the stream was lost. Resolves to an element for errors once the first call is done, whose
 * error is raised. */
export async function follow({ live, keys, mark, signal, load }) {
  const error = h("p", { class: "error", role: "alert" });
  let known = mark();
  let wasLive = live.isLive;
  let isDue = false;
  let isBusy = false;
  let last = Date.now();
  let timer;
  const again = async () => {
    clearTimeout(timer);
    if (!isDue || isBusy || signal.aborted || document.visibilityState === "hidden") return;
    const wait = last + LEAST_MS - Date.now();
    if (wait > 0) {
      timer = setTimeout(again, wait);
      return;
    }
    [isDue, isBusy, last] = [false, true, Date.now()];
    try {
      await load(true);
      fill(error);
    } catch (refused) {
      if (refused.name === "AbortError") return;
      fill(error, refused.message);
      isDue = true;
    } finally {
      isBusy = false;
    }
    again();
  };
  await load(false);
  live.on(keys, () => {
    const now = mark();
    if (now === known) return;
    known = now;
    isDue = true;
    again();
  }, signal);
  live.onState((isLive) => {
    if (isLive && !wasLive) isDue = true;
    wasLive = isLive;
    again();
  }, signal);
  document.addEventListener("visibilitychange", again, { signal });
  signal.addEventListener("abort", () => clearTimeout(timer));
  return error;
}
