// A choice of GPUs, as the API's parameter `gpus` takes it, with who has which now.

import { h, setText } from "./dom.js";
import { holders } from "./pods.js";
import { texts } from "./texts.js";

const words = texts.gpuChoice;

/** `usual`: also offers what a new pod has of itself (no parameter). `lease`: the choice is to be leased,
 * so that none is no choice. `chosen`: indices that are ticked at first. {element, value(), error(text)}; value() is null for the usual ones, and raises an Error
 * with a sentence if nothing is chosen. */
export function gpuChoice({ live, signal, usual = false, lease = false, chosen = [], hint }) {
  const how = (value, label, isChosen, ...more) => {
    const radio = h("input", { type: "radio", name: "gpus", value, checked: isChosen });
    return h("div", { class: "choice" }, h("label", {}, radio, " ", label), more);
  };
  const count = h("input", { type: "number", min: 1, max: 64, value: Math.max(1, chosen.length), "aria-label": words.howMany });
  const boxes = h("div", { class: "cards", role: "group", "aria-label": words.which });
  const rows = new Map();
  const element = h("fieldset", { class: "gpus" }, h("legend", {}, words.legend),
    usual && how("usual", words.usual, true),
    !lease && how("none", words.none, !usual && chosen.length === 0),
    how("count", lease ? words.anyCount : words.count, lease && chosen.length === 0, count),
    how("these", words.these, !usual && chosen.length > 0, boxes),
    hint && h("p", { class: "hint" }, hint));
  const choose = (value) => { element.querySelector(`input[value="${value}"]`).checked = true; };
  count.addEventListener("input", () => choose("count"));
  boxes.addEventListener("change", () => choose("these"));

  live.on(["gpu/"], () => {
    const cards = live.all("gpu/");
    for (const [index, card] of cards) {
      if (!rows.has(index)) {
        const box = h("input", { type: "checkbox", value: index, checked: chosen.includes(card.index) });
        const who = h("span", { class: "soft" });
        rows.set(index, { box, who });
        boxes.append(h("label", {}, box, h("span", {}, words.card(index, card.name), " ", who)));
      }
      setText(rows.get(index).who, card.problem ?? holders(card).text);
    }
    if (cards.length === 0 && rows.size === 0) setText(boxes, words.noCards);
    else if (boxes.firstChild?.nodeType === Node.TEXT_NODE) boxes.firstChild.remove();
  }, signal);

  const value = () => {
    const mode = element.querySelector('input[name="gpus"]:checked').value;
    if (mode === "usual") return null;
    if (mode === "none") return "none";
    if (mode === "count") {
      if (!(Number.parseInt(count.value, 10) > 0)) throw new Error(words.noNumber);
      return String(Number.parseInt(count.value, 10));
    }
    const ticked = [...rows.values()].filter(({ box }) => box.checked).map(({ box }) => box.value);
    if (ticked.length === 0) throw new Error(lease ? words.noneTickedToLease : words.noneTicked);
    // A comma makes an index of what would be a number of them.
    return ticked.length === 1 ? `${ticked[0]},` : ticked.join(",");
  };
  return { element, value };
}
