// Buttons and fields.

import { fill, h, setText } from "./dom.js";
import { texts } from "./texts.js";
import { tray } from "./work.js";

const COPIED_MS = 2000;

/** A button. */
export function button(label, onclick, { kind, name } = {}) {
  const element = h("button", { type: "button", class: kind, "aria-label": name }, label);
  element.addEventListener("click", (event) => {
    if (element.getAttribute("aria-disabled") !== "true") onclick(event);
  });
  return element;
}

// Why the button that has the focus, or was pressed, can't be pressed now; a tooltip is for a mouse.
// A form says it itself when it is to be sent.
const line = h("div", { class: "work" });
let asked = null;

function explain() {
  const text = asked?.getAttribute("aria-disabled") === "true" && asked.title;
  if (!text) {
    line.remove();
    return;
  }
  setText(line, text);
  if (!line.isConnected) tray.append(line);
}

for (const [type, role] of [["focusin", "status"], ["click", "alert"], ["focusout", "status"]]) {
  document.addEventListener(type, ({ target }) => {
    asked = type === "focusout" ? null : target.closest?.(type === "click" ? "button[type=button]" : "button");
    if (role !== line.getAttribute("role")) line.remove();
    line.setAttribute("role", role);
    explain();
  });
}

// Where it is said why what was entered is not sent.
const told = new WeakMap();

/** Says why a button can't be pressed now, or with null that it can. It can still be reached by the
 * keyboard, so that everybody learns the reason. */
export function refuse(element, reason) {
  if ((element.title || null) === (reason ?? null)) return;
  const place = told.get(element);
  if (place?.textContent === element.title) fill(place);
  if (reason) {
    element.setAttribute("aria-disabled", "true");
    element.title = reason;
  } else {
    element.removeAttribute("aria-disabled");
    element.removeAttribute("title");
  }
  if (element === asked && line.isConnected) explain();
}

/** Whether the form of this button can't be sent now, by `refuse`; then says why in `place`, until it
 * can. */
export function isHeldBack(submit, place) {
  if (submit.getAttribute("aria-disabled") !== "true") return false;
  told.set(submit, place);
  fill(place, submit.title);
  return true;
}

let fields = 0;

/** A field with its label: {element, input, hint, error(text)}. `input` is an element that has none
 * yet; `hint` stands below it, and what is wrong with it too. */
export function field(label, input, hint) {
  const id = `field-${++fields}`;
  input.id = id;
  const below = h("span", { class: "hint", id: `${id}-hint` }, hint);
  const wrong = h("span", { class: "error", id: `${id}-error`, role: "alert" });
  input.setAttribute("aria-describedby", `${id}-hint ${id}-error`);
  const error = (text) => {
    fill(wrong, text);
    if (text) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
  };
  input.addEventListener("input", () => error(null));
  return { input, hint: below, error, element: h("div", { class: "field" }, h("label", { for: id }, label), input, below, wrong) };
}

/** Shows a refusal beside the field that it names, else in `place`. `fields` by the parameter's name. */
export function showRefusal(refused, fields, place) {
  const named = fields[refused.body?.parameter];
  if (!named) {
    fill(place, refused.message);
    return;
  }
  named.error(refused.message);
  named.input.focus();
}

/** Text to copy, with a button for it. `name`: what it is. */
export function copyable(name, text) {
  const shown = h("pre", { tabindex: "0", role: "group", "aria-label": name }, text);
  const said = h("span", { class: "visually-hidden", role: "status" });
  const copy = button(texts.controls.copy, async () => {
    const isDone = await toClipboard(text);
    copy.textContent = isDone ? texts.controls.copied : texts.controls.notCopied;
    fill(said, copy.textContent);
    setTimeout(() => {
      copy.textContent = texts.controls.copy;
      fill(said);
    }, COPIED_MS);
  }, { name: texts.controls.copyWhat(name) });
  return h("div", { class: "copyable" }, shown, copy, said);
}

/** Copies text; whether the browser lets that be. */
export async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Browsers have no clipboard for a page that came over http from another machine.
    const area = h("textarea", { class: "visually-hidden", readonly: true }, text);
    const focused = document.activeElement;
    // Below a dialog nothing can be selected.
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const isDone = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return isDone;
  }
}
