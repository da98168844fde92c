// A pod's own page: its name, state and buttons, and a tab with what is asked for. A tab's module is as
// a page's; its context has also `ins`, the pod's name, and `pod()`, the pod as it is now, or was last.

import { Refused } from "../api.js";
import { fill, h, refill, setText } from "../dom.js";
import { badge, onPods, podsOf, powerButtons, stateOf } from "../pods.js";
import { texts } from "../texts.js";

const words = texts.pod;
const TABS = ["overview", "terminal", "files", "logs", "snapshots", "ports"];
// So long a pod that is not there is waited for: it may have been made just now.
const ARRIVAL_MS = 1500;

export default async function pod(context) {
  const { live, user, signal, path: [ins, tab = "overview"] } = context;
  const find = () => podsOf(live, user).find((one) => one.ins === ins);
  await live.until(() => find() !== undefined, ARRIVAL_MS, signal);
  let latest = find();
  const current = () => (latest = find() ?? latest);
  if (latest === undefined) return missing(ins, () => find() && context.go(location.hash.slice(1)), context);
  if (!TABS.includes(tab)) throw new Refused(404, { detail: texts.errors.noPage });

  const state = h("span", { role: "status" });
  const powers = powerButtons(live, current, () => { if (!signal.aborted) context.go("/pods"); });
  const content = h("div", { class: "tab" });
  const gone = h("p", { hidden: true }, words.goneText, " ", h("a", { href: "#/pods" }, words.allPods));
  const tabs = h("nav", { class: "tabs", "aria-label": words.tabs(ins) }, h("ul", {}, TABS.map((name) =>
    h("li", {}, h("a", { href: `#/pods/${ins}/${name}`, "aria-current": name === tab ? "page" : null }, words.names[name])))));
  const element = h("div", {},
    h("div", { class: "between" }, h("div", { class: "named" }, h("h1", {}, h("bdi", {}, ins)), state), powers.element), tabs, gone, content);
  let view;
  try {
    const { default: make } = await import(`./pod-${tab}.js`);
    view = await make({ ...context, ins, pod: current });
    fill(content, view.element);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    fill(content, context.whyNot(error, signal));
  }
  onPods(live, () => {
    const now = find();
    if (now === undefined) {
      if (live.get("host")?.problem) return;
      powers.element.hidden = content.hidden = true;
      gone.hidden = false;
      refill(state, badge({ text: words.gone, kind: "bad" }));
      return;
    }
    powers.element.hidden = content.hidden = false;
    gone.hidden = true;
    refill(state, badge(stateOf(live, now)));
    powers.update();
  }, signal);
  return { title: `${ins}: ${words.names[tab]}`, element, close: () => view?.close?.() };
}

function missing(ins, look, { live, signal }) {
  const heading = h("h1");
  const text = h("p");
  live.on(["pod/", "host"], () => {
    // While the engine does not answer, nobody knows which pods there are; the banner says so.
    const isUnknown = Boolean(live.get("host")?.problem);
    setText(heading, isUnknown ? ins : words.missing(ins));
    setText(text, isUnknown ? texts.pods.unknown : words.missingText);
    look();
  }, signal);
  return { title: ins, element: h("div", {}, heading, text, h("p", {}, h("a", { href: "#/pods" }, words.allPods))) };
}
