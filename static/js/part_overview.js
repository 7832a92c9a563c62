/** Tiles, events, runs and the nodes' tables: the parts that follow the view by fields. */

import { EventList } from "./events.js";
import { setText, writeFields } from "./fields.js";
import { count, plural } from "./format.js";
import { Sparkline } from "./sparkline.js";
import { LiveTable } from "./tables.js";

/** Tiles and events of the overview. */
export function overviewPart() {
  const tiles = document.getElementById("tiles");
  if (!tiles) return null;
  const sparklines = new Map(
    [...tiles.querySelectorAll("[data-spark]")].map((path) => [path.dataset.spark, new Sparkline(path)]),
  );
  const list = document.getElementById("events");
  const events = list && new EventList(list);
  return (view, change) => {
    if (change === null) seed(sparklines, view.charts);
    if (change === null || change.tiles) writeFields(tiles, view.tiles);
    for (const [field, sparkline] of sparklines) sparkline.add(view.at_s, view.tiles[field]);
    if (change === null || change.events) events?.update(view.events);
    if (change === null || change.runs) writeRun(view);
  };
}

/** Three of the tiles have a chart whose past they can show at once. */
function seed(sparklines, charts) {
  const sources = {
    rows_per_s: sum(charts.throughput),
    p50_ms: charts.latency?.lines.p50 ?? charts.latency?.lines.p50_ms,
    experts_serving: charts.experts?.lines.serving ?? charts.experts?.lines.experts_serving,
  };
  const xs = { rows_per_s: charts.throughput?.x, p50_ms: charts.latency?.x, experts_serving: charts.experts?.x };
  for (const [field, values] of Object.entries(sources)) if (values) sparklines.get(field)?.seed(xs[field], values);
}

function sum(series) {
  if (!series) return null;
  const lines = Object.values(series.lines);
  return series.x.map((_, index) =>
    lines.reduce((total, line) => (line[index] === null ? total : (total ?? 0) + line[index]), null),
  );
}

/** `run digits-7 by brisk-heron` and the latest step, beside the chart of what it reports. */
function writeRun(view) {
  const head = document.getElementById("run");
  if (!head) return;
  const run = view.runs[0];
  setText(head, run ? `run ${run.name} by ${run.trainer}${run.live ? "" : ", ended"}` : "");
  const step = document.getElementById("run-step");
  if (step) setText(step, run ? `step ${count(run.step)}` : "");
}

/** The nodes' table, on the overview and on its own page. */
export function nodesPart() {
  const element = document.getElementById("nodes-table");
  if (!element) return null;
  const table = new LiveTable(element, (node) => node.id);
  const total = document.getElementById("nodes-online");
  return (view, change) => {
    if (change !== null && !change.nodes && !change.order) return;
    if (view.nodes.length > 0) document.getElementById("welcome")?.remove();
    table.update(view.nodes, change === null || change.order ? null : new Set(Object.keys(change.nodes)));
    if (total)
      setText(total, `${plural(view.nodes.filter((node) => node.state !== "offline").length, "node")} here now`);
  };
}
