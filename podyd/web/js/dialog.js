// Questions in a modal dialog.

import { showRefusal } from "./controls.js";
import { fill, h } from "./dom.js";
import { texts } from "./texts.js";
import { run } from "./work.js";

/** Asks; resolves to true if it was confirmed. `typed`: a name that has to be typed first;
 * `danger`: the button is red; `details`: elements below the text. */
export function confirm({ title, text, action, typed, danger = false, details = [] }) {
  return new Promise((resolve) => {
    const field = typed && h("input", { autocomplete: "off", spellcheck: "false", id: "typed-name" });
    const button = h(
      "button", { type: "submit", class: danger ? "danger" : "primary", disabled: Boolean(typed) }, action,
    );
    field?.addEventListener("input", () => { button.disabled = field.value !== typed; });
    const dialog = modal(title, [
      text && h("p", {}, text),
      ...details,
      typed && h("label", { for: "typed-name" }, texts.dialog.typeName(typed)),
      field,
    ], button);
    dialog.element.addEventListener("close", () => resolve(dialog.element.returnValue === "yes"));
    dialog.open(() => dialog.element.close("yes"));
  });
}

/** Tells something that has to be read. */
export function tell({ title, text, details = [] }) {
  modal(title, [h("p", {}, text), details], null, texts.dialog.close).open(() => {});
}

/** Closes what is open, unanswered: the page that has asked is left. */
export function closeDialogs() {
  for (const element of document.querySelectorAll("dialog[open]")) element.close("");
}

/** A dialog with a form of its own. `submit(dialog)` is called when it is sent; an error that it
 * raises is shown in the dialog, beside the field of `named` by the parameter that it is about, or in
 * the tray if that was closed meanwhile; else the dialog closes. `closing`: an AbortController for what
 * follows the stream in it. The dialog's `button` sends it. */
export function form({ title, fields, named = {}, action, submit, closing }) {
  const button = h("button", { type: "submit", class: "primary" }, action);
  const dialog = { ...modal(title, fields, button), button };
  dialog.element.addEventListener("close", () => closing?.abort());
  dialog.open(async () => {
    button.disabled = true;
    fill(dialog.error);
    try {
      await submit(dialog);
      dialog.element.close("yes");
    } catch (error) {
      if (dialog.element.open) showRefusal(error, named, dialog.error);
      else if (error.status !== 401) run(title, () => Promise.reject(error));
    } finally {
      button.disabled = false;
    }
  });
  return dialog;
}

function modal(title, content, button, leave = texts.dialog.cancel) {
  const error = h("p", { class: "error", role: "alert" });
  const cancel = h("button", { type: "button" }, leave);
  const body = h("form", { method: "dialog" }, h("h2", { id: "dialog-title" }, title), content, error,
    h("div", { class: "buttons" }, cancel, button));
  const element = h("dialog", { "aria-labelledby": "dialog-title" }, body);
  cancel.addEventListener("click", () => element.close(""));
  element.addEventListener("close", () => element.remove());
  const open = (submitted) => {
    body.addEventListener("submit", (event) => {
      event.preventDefault();
      submitted();
    });
    document.body.append(element);
    element.showModal();
  };
  return { element, error, open };
}
