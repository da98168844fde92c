// A table that follows its data: rows stay the same elements, so that focus and selection survive.

import { fill, h, refill, setText } from "./dom.js";

/** `columns`: [{title, cell(row) -> text or node, once: true (made once per row; it gets a function
 * that gives the row as it is now), header: true (the row's header), class,
 * sort(row) -> what its rows can be sorted by}]; `key(row)`: what tells
 * rows apart; `empty`: what stands in place of no rows. */
export class Table {
  constructor({ caption, columns, key, empty }) {
    this.columns = columns;
    this.key = key;
    this.rows = new Map();
    this.body = h("tbody");
    this.table = h("table", {}, h("caption", {}, caption),
      h("thead", {}, h("tr", {}, columns.map((column) => this.head(column)))),
      this.body);
    this.empty = h("p", { class: "empty" }, empty);
    this.element = h("div", { class: "table" }, this.table, this.empty);
    new ResizeObserver(() => this.letScroll(caption)).observe(this.table);
    this.update([]);
  }

  /** The head of a column; by its button the rows are sorted, and the other way round. */
  head(column) {
    const cell = h("th", { scope: "col", class: [column.class, column.sort && "sorts"].filter(Boolean).join(" ") || null });
    if (!column.sort) return fill(cell, column.title);
    return fill(cell, h("button", { type: "button", class: "quiet", onclick: () => {
      const isDown = cell.getAttribute("aria-sort") === "ascending";
      for (const other of cell.parentElement.children) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", isDown ? "descending" : "ascending");
      this.order = (a, b) => compare(column.sort(a), column.sort(b)) * (isDown ? -1 : 1);
      this.update(this.given);
    } }, column.title));
  }

  update(given) {
    this.given = given;
    const rows = this.order ? [...given].sort(this.order) : given;
    const kept = new Set(rows.map(this.key));
    const focused = document.activeElement;
    // First what goes, so that no other row is moved, which would take its focus away.
    for (const [key, line] of this.rows) {
      if (kept.has(key)) continue;
      line.element.remove();
      this.rows.delete(key);
    }
    if (!focused.isConnected) document.querySelector("#main h1")?.focus();
    rows.forEach((row, index) => {
      const key = this.key(row);
      const line = this.rows.get(key) ?? this.make(key, row);
      line.row = row;
      this.columns.forEach((column, at) => {
        if (!column.once) put(line.cells[at], column.cell(row));
      });
      if (this.body.children[index] !== line.element) {
        this.body.insertBefore(line.element, this.body.children[index] ?? null);
      }
    });
    this.table.hidden = rows.length === 0;
    this.empty.hidden = rows.length > 0;
  }

  /** What is wider than the page can be scrolled by the keyboard, too. */
  letScroll(caption) {
    const isWide = this.element.scrollWidth > this.element.clientWidth;
    for (const [name, value] of Object.entries({ tabindex: "0", role: "region", "aria-label": caption })) {
      if (isWide) this.element.setAttribute(name, value);
      else this.element.removeAttribute(name);
    }
  }

  make(key, row) {
    const line = { row };
    line.cells = this.columns.map((column) =>
      h(column.header ? "th" : "td",
        { scope: column.header && "row", class: column.class, data: { label: column.title } },
        column.once && column.cell(() => line.row)));
    line.element = h("tr", {}, line.cells);
    this.rows.set(key, line);
    return line;
  }
}

function compare(a, b) {
  return typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}

function put(cell, content) {
  if (content instanceof Node || Array.isArray(content)) refill(cell, content);
  else setText(cell, content ?? "");
}
