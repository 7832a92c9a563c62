/**
 * The heat map of one layer: a canvas that can be pointed at and walked with the arrow keys, and the table that says the
 * same. The server drew the grid as SVG for who runs no scripts; this takes its place.
 */

import { onThemeChange, css, colours } from "./colours.js";
import { count, duration, rate } from "./format.js";
import { setAttribute, setText, setTint } from "./fields.js";
import { cellAt, cellBeside, cellCorner, indicesOf, layOut, uidOf } from "./grid_layout.js";
import { paint } from "./grid_paint.js";
import { glyph, HEALTHS, tint } from "./health.js";
import { cellOf } from "./view.js";

const FLASH_MS = 900;

export class HeatMap {
  /** @param {HTMLElement} figure the element with class `heat-map`: it holds .picture and .cells-table */
  constructor(figure) {
    this.figure = figure;
    this.picture = figure.querySelector(".picture");
    this.maxHeight = Number(figure.dataset.maxHeight);
    this.mode = "health";
    this.layer = null;
    this.names = new Map();
    this.current = -1; // the cell that the tooltip is about
    this.flashes = new Map(); // cell -> when its state changed
    this.frame = 0;
    this.canvas = document.createElement("canvas");
    this.tooltip = document.createElement("div");
    this.prepare();
  }

  prepare() {
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-roledescription", "heat map");
    this.tooltip.className = "tooltip";
    this.tooltip.hidden = true;
    this.tooltip.setAttribute("role", "status");
    for (const part of ["uid", "state", "facts", "host"]) {
      const line = document.createElement("div");
      line.className = `tooltip-${part}`;
      this.tooltip.append(line);
    }
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("pointerleave", () => document.activeElement !== this.canvas && this.leave());
    this.canvas.addEventListener("keydown", (event) => this.walk(event));
    this.canvas.addEventListener(
      "focus",
      () => this.canvas.matches(":focus-visible") && this.show(Math.max(0, this.current)),
    );
    this.canvas.addEventListener("blur", () => this.leave());
    onThemeChange(() => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.picture);
  }

  /** Show a layer of the view. @param {object} layer @param {Map<string, string>} names of nodes by id */
  update(layer, names, changed = null) {
    const other = this.layer?.prefix !== layer.prefix || this.layer.cells.length !== layer.cells.length;
    this.layer = layer;
    this.names = names;
    if (other) this.current = -1;
    if (!this.canvas.isConnected) this.picture.replaceChildren(this.canvas, this.tooltip);
    const now = performance.now();
    for (const index of Object.keys(changed ?? {}))
      if (this.shownHealth(index) !== layer.cells[index][0]) this.flashes.set(Number(index), now);
    this.writeTable(other || changed === null ? null : Object.keys(changed));
    this.describe();
    this.draw();
    if (this.current >= 0 && !this.tooltip.hidden) this.fillTooltip();
  }

  setMode(mode) {
    this.mode = mode;
    this.figure.dataset.mode = mode;
    this.draw();
  }

  /** Paint in the next frame; many changes in one frame are one picture. */
  draw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.drawNow());
  }

  drawNow() {
    if (!this.layer || !this.canvas.isConnected) return;
    const width = Math.floor(this.picture.clientWidth);
    if (width === 0) return;
    this.layout = layOut(this.layer.grid, width, this.maxHeight);
    const sharpness = devicePixelRatio || 1;
    const [pixelsWide, pixelsHigh] = [Math.round(width * sharpness), Math.round(this.layout.height * sharpness)];
    if (this.canvas.width !== pixelsWide || this.canvas.height !== pixelsHigh) {
      this.canvas.width = pixelsWide;
      this.canvas.height = pixelsHigh;
      this.canvas.style.height = `${this.layout.height}px`;
    }
    const pen = this.canvas.getContext("2d");
    pen.setTransform(sharpness, 0, 0, sharpness, 0, 0);
    const label = (index) => indicesOf(this.layer.grid, index).join(".");
    paint(pen, this.layout, this.layer.cells, this.mode, label, this.captions());
    this.paintRings(pen);
  }

  captions() {
    const leading = this.layer.grid.slice(0, -2);
    return leading.length === 0 ? [] : this.layout.origins.map((_, panel) => uidOf(this.layer.prefix, leading, panel));
  }

  /** Around the cell pointed at, and around those that have just changed. */
  paintRings(pen) {
    const now = performance.now();
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    for (const [index, since] of this.flashes) {
      const left = 1 - (now - since) / FLASH_MS;
      if (left <= 0 || still) this.flashes.delete(index);
      else this.ring(pen, index, css(colours().ink, left), 2);
    }
    if (this.current >= 0 && !this.tooltip.hidden) this.ring(pen, this.current, css(colours().ink), 2);
    if (this.flashes.size > 0) this.draw();
  }

  ring(pen, index, colour, width) {
    const [left, top] = cellCorner(this.layout, index);
    pen.beginPath();
    pen.roundRect(
      left + 1,
      top + 1,
      this.layout.cellWidth - 2,
      this.layout.cellHeight - 2,
      Math.min(6, this.layout.cellWidth / 5),
    );
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.stroke();
  }

  point(event) {
    if (!this.layout) return;
    const box = this.canvas.getBoundingClientRect();
    const index = cellAt(this.layout, event.clientX - box.left, event.clientY - box.top, this.layer.cells.length);
    if (index === -1) this.leave();
    else this.show(index);
  }

  walk(event) {
    if (!this.layout) return;
    if (event.key === "Escape") this.leave();
    const next = this.current === -1 ? 0 : cellBeside(this.layout, this.current, event.key, this.layer.cells.length);
    if (next === -1 || event.ctrlKey || event.metaKey || event.altKey || !/^(Arrow|Home|End|Page)/.test(event.key))
      return;
    event.preventDefault();
    this.show(next);
  }

  show(index) {
    if (!this.layer || index >= this.layer.cells.length) return;
    this.current = index;
    this.canvas.dataset.current = uidOf(this.layer.prefix, this.layer.grid, index);
    this.tooltip.hidden = false;
    this.fillTooltip();
    this.draw();
  }

  leave() {
    this.tooltip.hidden = true;
    this.draw();
  }

  fillTooltip() {
    const cell = cellOf(this.layer.cells[this.current]);
    const [uid, state, facts, host] = this.tooltip.children;
    setText(uid, uidOf(this.layer.prefix, this.layer.grid, this.current));
    setText(state, `${glyph(cell.health)} ${cell.health}`);
    state.className = "tooltip-state";
    setTint(state, tint(cell.health));
    const trained = cell.updateAgeS === null ? "not trained yet" : `trained ${duration(cell.updateAgeS)} ago`;
    setText(
      facts,
      cell.health === "vacant"
        ? "nobody hosts it yet"
        : `${rate(cell.rowsPerS)} rows/s · ${count(cell.updates)} updates · ${trained}`,
    );
    const name = cell.node === null ? "" : (this.names.get(cell.node) ?? cell.node.slice(0, 8));
    setText(host, name && `${cell.health === "lost" || cell.health === "orphaned" ? "last on" : "on"} ${name}`);
    this.placeTooltip();
  }

  /** Beside the cell, inside the picture: it never covers the cell and never widens the page. */
  placeTooltip() {
    const layout = this.layout;
    if (!layout) return;
    const [left, top] = cellCorner(layout, this.current);
    const { offsetWidth: width, offsetHeight: height } = this.tooltip;
    const x = Math.max(0, Math.min(layout.width - width, left + layout.cellWidth / 2 - width / 2));
    const below = top + layout.cellHeight + 8;
    this.tooltip.style.transform = `translate(${Math.round(x)}px, ${Math.round(top - height - 8 >= -60 ? top - height - 8 : below)}px)`;
  }

  describe() {
    const counts = new Map();
    for (const [health] of this.layer.cells) counts.set(health, (counts.get(health) ?? 0) + 1);
    const summary = HEALTHS.filter((health) => counts.get(health)).map(
      (health) => `${count(counts.get(health))} ${health}`,
    );
    setAttribute(
      this.canvas,
      "aria-label",
      `Experts of layer ${this.layer.prefix}: ${summary.join(", ") || "no cells"}. Arrow keys move between cells.`,
    );
    for (const entry of this.figure.querySelectorAll("[data-count]")) {
      const number = counts.get(entry.dataset.count) ?? 0;
      setText(entry, count(number));
      setAttribute(entry.parentElement, "data-zero", number === 0);
    }
  }

  shownHealth(index) {
    return this.cellElements?.get(Number(index))?.dataset.health;
  }

  /** The table behind "show as table": what the server rendered for this layer, kept true. @param {?string[]} indices */
  writeTable(indices) {
    const table = this.figure.querySelector(".cells-table");
    if (!table) return;
    if (table.dataset.layer !== this.layer.prefix) this.rebuildTable(table);
    this.cellElements ??= new Map(
      [...table.querySelectorAll("td[data-cell]")].map((td) => [Number(td.dataset.cell), td]),
    );
    for (const index of indices ?? this.cellElements.keys()) {
      const element = this.cellElements.get(Number(index));
      const health = this.layer.cells[index]?.[0];
      if (!element || !health) continue;
      setAttribute(element, "data-health", health);
      setText(element, `${glyph(health)} ${health}`);
      setTint(element, tint(health));
    }
  }

  /** Another layer than the server drew: as many lines as all dimensions but the last have, as in the template. */
  rebuildTable(table) {
    const { grid, prefix, cells } = this.layer;
    const columns = grid.at(-1);
    const body = document.createElement("tbody");
    for (let first = 0; first < cells.length; first += columns) {
      const line = body.insertRow();
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = [prefix, ...indicesOf(grid, first).slice(0, -1)].join(".");
      line.append(head);
      for (let index = first; index < first + columns; index += 1) line.insertCell().dataset.cell = String(index);
    }
    table.tBodies[0]?.remove();
    table.append(body);
    const heads = Array.from({ length: columns }, (_, column) =>
      Object.assign(document.createElement("th"), { scope: "col", textContent: String(column) }),
    );
    table.tHead.rows[0].replaceChildren(table.tHead.rows[0].cells[0], ...heads);
    table.dataset.layer = prefix;
    this.cellElements = null;
  }
}
