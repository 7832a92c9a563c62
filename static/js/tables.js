/**
 * Tables that stay true: rows are patched in place by their id, new ones are cloned from the page's own <template>, so
 * that server and script share one markup. Sorting by the headers and filtering stay in the address.
 */

import { readParameter, writeParameter } from "./address.js";
import { setText, writeFields } from "./fields.js";
import { count } from "./format.js";

export class LiveTable {
  /**
   * @param {HTMLTableElement} table with data-template, perhaps data-limit and data-parameter (for its sort)
   * @param {(row: object) => string} idOf
   */
  constructor(table, idOf) {
    this.table = table;
    this.body = table.tBodies[0];
    this.template = document.getElementById(table.dataset.template).content.firstElementChild;
    this.limit = Number(table.dataset.limit ?? Infinity);
    this.parameter = table.dataset.parameter ?? "";
    this.idOf = idOf;
    this.rows = [];
    this.elements = new Map([...this.body.rows].map((row) => [row.dataset.id, row]));
    this.heads = [...table.querySelectorAll("th [data-sort]")];
    this.query = "";
    this.prepareSort();
    this.prepareFilter();
  }

  /** @param {object[]} rows all, in the order of the source @param {?Set<string>} changed ids; null: any may have */
  update(rows, changed = null) {
    this.rows = rows;
    const shown = this.ordered().slice(0, this.limit);
    const ids = new Set(shown.map(this.idOf));
    for (const [id, element] of this.elements) {
      if (ids.has(id)) continue;
      element.remove();
      this.elements.delete(id);
    }
    shown.forEach((row, position) => this.place(row, position, changed));
    this.filter();
    this.table.dataset.rows = String(rows.length);
    this.table.closest("[data-empty]")?.setAttribute("data-empty", String(rows.length === 0));
    for (const total of document.querySelectorAll(`[data-total="${this.table.id}"]`))
      setText(total, count(rows.length));
  }

  place(row, position, changed) {
    const id = this.idOf(row);
    let element = this.elements.get(id);
    const isNew = element === undefined;
    if (isNew) {
      element = this.template.cloneNode(true);
      element.dataset.id = id;
      this.elements.set(id, element);
    }
    if (isNew || changed === null || changed.has(id)) writeFields(element, row);
    // Only what stands in the wrong place moves: scroll and focus stay where they are.
    const there = this.body.rows[position];
    if (there !== element) this.body.insertBefore(element, there ?? null);
  }

  ordered() {
    const [column, falling] = this.sort;
    if (!column) return this.rows;
    const known = this.rows.filter((row) => row[column] !== null && row[column] !== undefined);
    const unknown = this.rows.filter((row) => row[column] === null || row[column] === undefined);
    const sign = falling ? -1 : 1;
    known.sort((a, b) => sign * (a[column] < b[column] ? -1 : a[column] > b[column] ? 1 : 0));
    return [...known, ...unknown];
  }

  prepareSort() {
    const text = this.parameter ? readParameter(this.parameter, this.table.dataset.sort ?? "") : "";
    this.sort = [text.replace(/^-/, ""), text.startsWith("-")];
    if (!this.heads.some((head) => head.dataset.sort === this.sort[0])) this.sort = ["", false];
    for (const head of this.heads) {
      head.addEventListener("click", (event) => {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        this.sortBy(head.dataset.sort, head.dataset.falling === "true");
      });
    }
    this.markSort();
  }

  /** The natural direction, then the other one, then the source's own order. */
  sortBy(column, fallingFirst) {
    const [before, falling] = this.sort;
    this.sort =
      column !== before ? [column, fallingFirst] : falling === fallingFirst ? [column, !fallingFirst] : ["", false];
    const text = this.sort[0] && `${this.sort[1] ? "-" : ""}${this.sort[0]}`;
    if (this.parameter) writeParameter(this.parameter, text, this.table.dataset.sort ?? "");
    this.markSort();
    this.update(this.rows);
  }

  markSort() {
    const [column, falling] = this.sort;
    for (const head of this.heads) {
      const value = head.dataset.sort !== column ? "none" : falling ? "descending" : "ascending";
      head.closest("th").setAttribute("aria-sort", value);
    }
  }

  prepareFilter() {
    const input = document.querySelector(`input[data-filters="${this.table.id}"]`);
    if (!input) return;
    this.query = readParameter("q", "").toLowerCase();
    input.value = this.query;
    input.addEventListener("input", () => {
      this.query = input.value.trim().toLowerCase();
      writeParameter("q", this.query, "");
      this.filter();
    });
  }

  filter() {
    for (const element of this.elements.values())
      element.hidden = this.query !== "" && !element.textContent.toLowerCase().includes(this.query);
  }
}
