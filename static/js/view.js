/**
 * The project's state in the browser: a snapshot, then changes applied to it. The shapes are those of dashboard/view.py.
 * Pure but for the object it is given: no DOM, no socket.
 */

const CHART_SPAN_S = 300; // charts of the snapshot hold the last five minutes
const MAX_LOSS_POINTS = 1_200; // twice the backend's; beyond it every second point goes
const MAX_EVENTS = 50;

/** A cell as an object. @param {Array} cell health, load, updates, update age in seconds, rows per second, node */
export const cellOf = ([health, load, updates, updateAgeS, rowsPerS, node]) => ({
  health,
  load,
  updates,
  updateAgeS,
  rowsPerS,
  node,
});

/** Apply a delta's change to a view, in place. @param {object} view @param {object} change @param {number} atS */
export function applyChange(view, change, atS) {
  view.at_s = atS;
  if (change.verdict) view.verdict = change.verdict;
  if (change.tiles) view.tiles = change.tiles;
  if (change.layers) view.layers = change.layers;
  if (change.runs) view.runs = change.runs;
  applyCells(view, change.cells ?? {});
  applyNodes(view, change.nodes ?? {}, change.order);
  if (change.events?.length) view.events = mergeEvents(change.events, view.events);
  for (const [name, series] of Object.entries(change.charts ?? {})) view.charts[name] = series;
  for (const [chart, [x, values]] of Object.entries(change.points ?? {})) appendPoint(view, chart, x, values);
}

function applyCells(view, cells) {
  for (const [prefix, changed] of Object.entries(cells)) {
    const layer = view.layers.find((each) => each.prefix === prefix);
    if (!layer) continue;
    for (const [index, cell] of Object.entries(changed)) layer.cells[Number(index)] = cell;
  }
}

function applyNodes(view, changed, order) {
  if (!order && Object.keys(changed).length === 0) return;
  const byId = new Map(view.nodes.map((node) => [node.id, node]));
  for (const [id, row] of Object.entries(changed)) {
    if (row === null) byId.delete(id);
    else byId.set(id, row);
  }
  const ids = [...new Set([...(order ?? []), ...byId.keys()])];
  view.nodes = ids.filter((id) => byId.has(id)).map((id) => byId.get(id));
}

function mergeEvents(fresh, old) {
  const known = new Set(fresh.map((event) => event.id));
  return [...fresh, ...old.filter((event) => !known.has(event.id))].slice(0, MAX_EVENTS);
}

function appendPoint(view, chart, x, values) {
  const series = (view.charts[chart] ??= { name: chart, unit: "", x: [], lines: {} });
  const last = series.x.at(-1);
  if (last !== undefined && x < last) {
    // Steps that begin again are a new run; a clock that went back is dropped by the same rule.
    series.x = [];
    for (const line of Object.keys(series.lines)) series.lines[line] = [];
  }
  const replaces = series.x.at(-1) === x;
  for (const line of new Set([...Object.keys(series.lines), ...Object.keys(values)])) {
    const ys = (series.lines[line] ??= series.x.map(() => null));
    if (replaces) ys[ys.length - 1] = values[line] ?? ys.at(-1);
    else ys.push(values[line] ?? null);
  }
  if (!replaces) series.x.push(x);
  thin(series, chart === "loss");
}

function thin(series, bySteps) {
  const keep = bySteps
    ? series.x.length > MAX_LOSS_POINTS && ((index) => index % 2 === 0 || index === series.x.length - 1)
    : series.x[0] < series.x.at(-1) - CHART_SPAN_S && ((index) => series.x[index] >= series.x.at(-1) - CHART_SPAN_S);
  if (!keep) return;
  const kept = series.x.map((_, index) => index).filter(keep);
  for (const line of Object.keys(series.lines)) series.lines[line] = kept.map((index) => series.lines[line][index]);
  series.x = kept.map((index) => series.x[index]);
}
