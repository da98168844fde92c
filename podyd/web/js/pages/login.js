// Login with the Linux account; a password that has expired is changed here too.

import { logIn, post } from "../api.js";
import { fill, h } from "../dom.js";
import { texts } from "../texts.js";

const words = texts.login;

/** `why`: why it is shown, if not for the first time; `loggedIn` is called afterwards. */
export default function login({ why, loggedIn }) {
  const user = field("user", words.user, { autocomplete: "username", autocapitalize: "none", spellcheck: "false" });
  const password = field("password", words.password, { type: "password", autocomplete: "current-password" });
  const fresh = field("new-password", words.newPassword, { type: "password", autocomplete: "new-password" });
  const repeat = field("repeat", words.repeat, { type: "password", autocomplete: "new-password" });
  const change = h("fieldset", { hidden: true, disabled: true }, h("legend", {}, words.mustChange), fresh.element, repeat.element);
  const error = h("p", { class: "error", role: "alert" }, why);
  const button = h("button", { type: "submit", class: "primary" }, words.submit);

  async function submit(event) {
    event.preventDefault();
    fill(error);
    button.disabled = true;
    try {
      await (change.hidden ? enter(password.input.value) : changePassword());
    } catch (refused) {
      if (refused.code === "password_expired") mustChange();
      else fill(error, refused.message);
    } finally {
      button.disabled = false;
    }
  }

  async function enter(secret) {
    await logIn({ user: user.input.value, password: secret });
    await loggedIn();
  }

  async function changePassword() {
    if (fresh.input.value !== repeat.input.value) throw new Error(words.differ);
    await post("user/ch-passwd", { passwd: fresh.input.value },
      { login: { user: user.input.value, password: password.input.value } });
    await enter(fresh.input.value);
  }

  function mustChange() {
    change.hidden = change.disabled = false;
    button.textContent = words.change;
    fresh.input.focus();
  }

  const element = h("main", { class: "login" }, h("h1", {}, "podyd"),
    h("form", { onsubmit: submit }, h("h2", {}, words.title), h("p", {}, words.hint), user.element, password.element, change, error, button));
  return { title: words.title, element, focus: () => user.input.focus() };
}

function field(id, label, attributes) {
  const input = h("input", { id, name: id, required: true, ...attributes });
  return { input, element: h("div", { class: "field" }, h("label", { for: id }, label), input) };
}
