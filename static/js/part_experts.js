/** The grids of the overview (one layer at a time) and of the experts' page (all of them), and the tables of experts. */

import { choice } from "./address.js";
import { setAttribute, setText } from "./fields.js";
import { count } from "./format.js";
import { HeatMap } from "./grid.js";
import { uidOf } from "./grid_layout.js";
import { HEALTHS, isDamaged } from "./health.js";
import { LiveTable } from "./tables.js";
import { cellOf } from "./view.js";

/** All heat maps of the page. */
export function gridPart() {
  const figures = [...document.querySelectorAll(".heat-map")];
  if (figures.length === 0) return null;
  const maps = figures.map((figure) => new HeatMap(figure));
  let latest = null;
  const redraw = (change) => latest && maps.forEach((map) => showLayer(map, latest, change));
  const layers = document.getElementById("layers");
  const chosen = choice(layers, "layer", (prefix) => {
    maps[0].figure.dataset.layer = prefix;
    redraw(null);
  });
  if (layers) maps[0].figure.dataset.layer = chosen;
  const setMode = (mode) => maps.forEach((map) => map.setMode(mode));
  setMode(choice(document.getElementById("modes"), "mode", setMode) || "health");
  return (view, change) => {
    latest = view;
    const shapeChanged =
      change?.layers && new Set(view.layers.map((layer) => layer.prefix)).size !== figures.length && !layers;
    if (shapeChanged) location.reload(); // the project's record changed: the server draws the new layers
    if (change === null || change.cells || change.layers || change.nodes) redraw(change?.layers ? null : change);
    if (layers && (change === null || change.cells)) writeBadges(layers, view.layers);
  };
}

function showLayer(map, view, change) {
  const layer = view.layers.find((each) => each.prefix === map.figure.dataset.layer) ?? view.layers[0];
  if (!layer) return;
  setAttribute(map.figure, "data-layer", layer.prefix);
  const names = new Map(view.nodes.map((node) => [node.id, node.name]));
  map.update(layer, names, change === null ? null : (change.cells?.[layer.prefix] ?? {}));
  const shape = map.figure.querySelector(".grid-shape");
  if (shape) setText(shape, layer.grid.map(count).join(" × "));
}

/** A layer that is not shown must not hide its damage. */
function writeBadges(group, layers) {
  for (const layer of layers) {
    const item = [...group.querySelectorAll("[data-value]")].find((each) => each.dataset.value === layer.prefix);
    const badge = item?.querySelector(".tab-badge");
    if (!badge) continue;
    const damaged = layer.cells.filter(([health]) => isDamaged(health)).length;
    setText(badge, damaged ? count(damaged) : "✓");
    setAttribute(badge, "data-damaged", damaged > 0);
    setAttribute(badge, "title", `${count(damaged)} not serving`);
  }
}

/** The two tables of the experts' page. */
export function expertsPart() {
  const all = document.getElementById("experts-table");
  const damaged = document.getElementById("damaged-table");
  if (!all || !damaged) return null;
  const tables = [new LiveTable(damaged, (row) => row.uid), new LiveTable(all, (row) => row.uid)];
  let rows = new Map();
  return (view, change) => {
    if (change !== null && !change.cells && !change.layers) return;
    const changed = change === null || change.layers ? null : new Set();
    if (changed === null)
      rows = new Map(
        view.layers
          .flatMap((layer) => layer.cells.map((cell, index) => rowOf(view, layer, index)))
          .map((row) => [row.uid, row]),
      );
    for (const [prefix, cells] of Object.entries(changed === null ? {} : change.cells)) {
      const layer = view.layers.find((each) => each.prefix === prefix);
      for (const index of layer ? Object.keys(cells) : []) {
        const row = rowOf(view, layer, Number(index));
        rows.set(row.uid, row);
        changed.add(row.uid);
      }
    }
    const list = [...rows.values()];
    const worst = list
      .filter((row) => isDamaged(row.health))
      .sort((a, b) => HEALTHS.indexOf(b.health) - HEALTHS.indexOf(a.health));
    tables[0].update(worst, changed);
    tables[1].update(list, changed);
  };
}

function rowOf(view, layer, index) {
  const cell = cellOf(layer.cells[index]);
  const node =
    cell.node === null ? null : (view.nodes.find((each) => each.id === cell.node)?.name ?? cell.node.slice(0, 8));
  return {
    uid: uidOf(layer.prefix, layer.grid, index),
    health: cell.health,
    node,
    rows_per_s: cell.rowsPerS,
    updates: cell.updates,
    update_age_s: cell.updateAgeS,
  };
}
