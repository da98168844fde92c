// The member's own: quota, notices, tokens, password.

import { get, logIn, post } from "../api.js";
import { button, copyable, field } from "../controls.js";
import { confirm, form, tell } from "../dialog.js";
import { fill, h, refill } from "../dom.js";
import { follow } from "../follow.js";
import { bytes, moment } from "../format.js";
import { badge, onPods, podsOf, quotaOf } from "../pods.js";
import { Table } from "../table.js";
import { texts } from "../texts.js";
import { run } from "../work.js";

const words = texts.account;

export default async function account({ user, live, signal }) {
  const notices = noticeList({ live, signal });
  const tokens = tokenTable(user);
  const logins = loginTable();
  const [limits, error] = await Promise.all([quotaOf({ live, signal }), follow({ live, signal, keys: ["me"], mark: () => live.get("me")?.logins,
    load: (quiet) => Promise.all([tokens.load({ signal, quiet }), logins.load({ signal, quiet })]) })]);
  return { title: texts.nav.account, element: h("div", {}, h("h1", {}, texts.nav.account), h("p", {}, words.who(user.name), user.is_admin ? ` ${words.admin}` : ""),
    h("h2", {}, words.notices), notices, h("h2", {}, words.quota), quota(limits, live, user, signal),
    h("h2", {}, words.tokens), error, h("p", { class: "soft" }, words.tokensHint), tokens.table.element, h("div", { class: "buttons" }, h("button", { type: "button", onclick: tokens.create }, words.newToken)),
    h("h2", {}, words.logins), h("p", { class: "soft" }, words.loginsHint), logins.element,
    h("h2", {}, words.password), passwordForm(user, live)) };
}

function noticeList({ live, signal }) {
  const list = h("ul", { class: "notices" });
  const read = h("button", { type: "button" }, words.markRead);
  let last = 0;
  const load = async () => {
    try {
      const notices = (await get("user/notices", { limit: 100 }, { signal, quiet: true })).reverse();
      last = notices[0]?.id ?? 0;
      read.hidden = !notices.some((notice) => !notice.read);
      fill(list, notices.length === 0 ? h("li", { class: "empty" }, words.noNotices) : notices.map((notice) =>
        h("li", { class: notice.read ? "soft" : "" }, moment(notice.time), " ", !notice.read && h("span", { class: "badge warn" }, words.unread), " ",
          notice.pod && [h("strong", {}, h("bdi", {}, notice.pod)), ": "], h("bdi", {}, notice.text), notice.count > 1 && ` (${words.times(notice.count)})`)));
    } catch (error) {
      if (error.name !== "AbortError") fill(list, h("li", { class: "error" }, error.message));
    }
  };
  read.addEventListener("click", () => run(words.markRead, () => post("user/notices-read", { id: last })).then(load));
  live.on(["me"], load, signal);
  return h("div", {}, list, read);
}

function quota(limits, live, user, signal) {
  const list = h("dl", { class: "facts" });
  onPods(live, () => {
    const mine = podsOf(live, user);
    const gpus = mine.reduce((sum, pod) => sum + pod.gpus, 0);
    const disks = mine.every((pod) => (pod.disk_limit ?? -1) >= 0) ? mine.reduce((sum, pod) => sum + pod.disk_limit, 0) : -1;
    const most = (used, limit, shown = String) => (limit < 0 ? words.unlimited(used) : texts.of(used, shown(limit)));
    const rows = [
      [words.pods, most(mine.length, limits.max_pods)], [words.gpus, most(gpus, limits.gpu_count)],
      [words.memory, bytes(limits.memory_limit)], [words.cpus, count(limits.cpu_limit)], [words.disk, bytes(limits.disk_limit)], [words.diskTotal, disks < 0 ? bytes(limits.disk_total) : most(bytes(disks), limits.disk_total, bytes)],
      [words.snapshots, count(limits.max_snapshots)], [words.ports, count(limits.max_ports)], [words.images, count(limits.max_images)], [words.imageSize, bytes(limits.image_size)],
    ];
    refill(list, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
  }, signal);
  return list;
}

function count(value) {
  return value < 0 ? texts.noLimit : String(value);
}

function tokenTable(user) {
  const table = new Table({ caption: words.tokensCaption, empty: words.noTokens, key: (token) => token.id, columns: [
    { title: words.name, cell: (token) => h("bdi", {}, token.name), header: true }, { title: words.scope, cell: (token) => token.scope },
    { title: words.created, cell: (token) => moment(token.created) }, { title: words.expires, cell: (token) => moment(token.expires) },
    { title: words.lastUsed, cell: (token) => (token.last_used ? moment(token.last_used) : words.never) },
    { title: words.actions, once: true, cell: (token) => h("button", { type: "button", class: "danger", "aria-label": words.revokeNamed(token().name), onclick: () => revoke(token()) }, words.revoke) },
  ] });
  const load = async (options) => table.update(await get("user/tokens", {}, options));

  async function revoke(token) {
    const password = passwordInput();
    form({ title: words.revokeNamed(token.name), fields: [h("p", {}, words.revokeText), field(words.yourPassword, password).element], action: words.revoke, submit: async () => {
      try {
        await post("user/token-revoke", { id: token.id }, { login: { user: user.name, password: password.value } });
      } finally {
        // What another session has revoked goes as well.
        await load();
      }
    } });
  }

  function create() {
    const name = h("input", { required: true, maxlength: "100" });
    const days = h("input", { type: "number", min: "1", step: "any", placeholder: "30" });
    const scope = h("select", {}, h("option", { value: "all" }, words.scopeAll), h("option", { value: "read" }, words.scopeRead));
    const password = passwordInput();
    form({ title: words.newToken, fields: [field(words.name, name, words.nameHint).element, field(words.days, days).element, field(words.scope, scope).element, field(words.yourPassword, password).element], action: words.newToken, submit: async (dialog) => {
      const made = await post("user/token", { name: name.value, days: days.value || undefined, scope: scope.value }, { login: { user: user.name, password: password.value } });
      await load();
      dialog.element.close("yes");
      tell({ title: words.tokenMade, text: words.tokenOnce, details: [copyable(words.token, made.token)] });
    } });
  }
  return { table, create, load };
}

/** The member's logins on the page, here and elsewhere. */
function loginTable() {
  const table = new Table({ caption: words.loginsCaption, empty: words.noLogins, key: (login) => login.id, columns: [
    { title: words.from, cell: (login) => h("span", {}, login.address || texts.none, login.here && [" ", badge({ text: words.here, kind: "good" })]), header: true },
    { title: words.created, cell: (login) => moment(login.created) }, { title: words.lastUsed, cell: (login) => moment(login.last_used) }, { title: words.expires, cell: (login) => moment(login.expires) },
    { title: words.actions, once: true, cell: (login) => !login().here && button(words.end, () => end(words.endNamed(login().address), login().id), { kind: "danger", name: words.endNamed(login().address) }) },
  ] });
  const others = h("div", { class: "buttons" }, button(words.endOthers, async () => {
    if (await confirm({ title: words.endOthers, text: words.endOthersText, action: words.endOthers })) end(words.endOthers, "others");
  }));
  const load = async (options) => {
    const logins = await get("user/logins", {}, options);
    table.update(logins);
    others.hidden = logins.every((login) => login.here);
  };
  const end = (what, id) => run(what, () => post("user/logout", { id })).then(() => load({}).catch(() => {}));
  return { element: h("div", {}, table.element, others), load };
}

function passwordForm(user, live) {
  const old = passwordInput();
  const fresh = passwordInput("new-password");
  const repeat = passwordInput("new-password");
  const error = h("p", { class: "error", role: "alert" });
  const submit = async (event) => {
    event.preventDefault();
    const { currentTarget: form, submitter } = event;
    submitter.disabled = true;
    fill(error);
    try {
      if (fresh.value !== repeat.value) throw new Error(texts.login.differ);
      // A change ends all sessions, this page's too.
      live.close();
      try {
        await post("user/ch-passwd", { passwd: fresh.value }, { login: { user: user.name, password: old.value } });
        await logIn({ user: user.name, password: fresh.value });
      } finally {
        live.open();
      }
      form.reset();
      run(words.password, async () => ({ log: words.passwordChanged }));
    } catch (refused) {
      fill(error, refused.message);
    } finally {
      submitter.disabled = false;
    }
  };
  return h("form", { onsubmit: submit }, h("p", { class: "soft" }, words.passwordHint), field(words.oldPassword, old).element, field(texts.login.newPassword, fresh).element, field(texts.login.repeat, repeat).element, error,
    h("div", { class: "buttons" }, h("button", { type: "submit" }, words.changePassword)));
}

function passwordInput(kind = "current-password") {
  return h("input", { type: "password", required: true, autocomplete: kind });
}
