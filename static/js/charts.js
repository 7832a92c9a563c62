/**
 * Charts on uPlot: the same span side by side, one cursor for all that share the time axis, values in the head, a table
 * for who cannot see them. The colours are the stylesheet's.
 */

import uPlot from "../vendor/uplot/uPlot.esm.js";
import { colours, css, onThemeChange } from "./colours.js";
import { setText } from "./fields.js";
import { clock, count, loss, milliseconds, rate, scaled } from "./format.js";
import { HEALTHS } from "./health.js";

const LEAST_HEIGHT = 120;
const MAX_TABLE_ROWS = 60; // more would be read by nobody: the table then takes every n-th point
const FORMATS = { throughput: rate, latency: milliseconds, experts: count, loss };
const STACKED = new Set(["throughput"]); // forward and backward are often equal: side by side one would hide the other
const FONT = "12px ui-sans-serif, system-ui, sans-serif";

/** 15k, 1.5k, 0.25 on an axis. @param {number} value */
const tick = (value) =>
  Math.abs(value) >= 1_000
    ? scaled(value, "")
        .join("")
        .replace(/\.0+(?=[a-zA-Z])|(?<=\.\d)0(?=[a-zA-Z])/, "")
    : String(Number(value.toPrecision(6)));

export class Chart {
  /** @param {HTMLElement} figure with data-chart, .plot, .chart-legend and .chart-table */
  constructor(figure) {
    this.figure = figure;
    this.name = figure.dataset.chart;
    this.bySteps = this.name === "loss";
    this.format = FORMATS[this.name] ?? rate;
    this.plotElement = figure.querySelector(".plot");
    this.legend = figure.querySelector(".chart-legend");
    this.details = figure.querySelector("details");
    this.series = null;
    this.plot = null;
    this.lines = [];
    this.spanS = 300;
    onThemeChange(() => this.rebuild());
    // In the next frame: a size set inside the observer would call it again in the same one, which browsers complain of.
    new ResizeObserver(() => requestAnimationFrame(() => this.resize())).observe(this.plotElement);
    this.details?.addEventListener("toggle", () => this.writeTable());
  }

  /** @param {{x: number[], lines: Record<string, ?number[]>}} series @param {number} spanS of the time axis */
  update(series, spanS) {
    this.series = series;
    const lines = Object.keys(series.lines).filter((line) => this.isShown(line));
    const empty = series.x.length === 0;
    this.figure.dataset.empty = String(empty);
    this.figure.dataset.points = String(series.x.length);
    this.figure.dataset.last = String(series.x.at(-1) ?? "");
    if (empty) return;
    const same = this.plot && spanS === this.spanS && lines.join() === this.lines.join();
    this.spanS = spanS;
    this.lines = lines;
    if (same) this.plot.setData(this.data());
    else this.rebuild();
    this.writeLegend(this.plot?.cursor.idx ?? null);
    if (this.details?.open) this.writeTable();
  }

  /** A state that no expert was in draws no line: five flat ones at zero would hide the sixth. */
  isShown(line) {
    return this.name !== "experts" || line === "serving" || this.series.lines[line].some((value) => value > 0);
  }

  /** What uPlot draws: the lines, or their running sums, the last line lowest. */
  data() {
    const values = this.lines.map((line) => this.series.lines[line]);
    if (!STACKED.has(this.name)) return [this.series.x, ...values];
    const below = (line, index) =>
      values.slice(line).reduce((sum, each) => (each[index] === null ? sum : (sum ?? 0) + each[index]), null);
    return [this.series.x, ...values.map((_, line) => this.series.x.map((_, index) => below(line, index)))];
  }

  rebuild() {
    if (!this.series || this.series.x.length === 0) return;
    this.plot?.destroy();
    this.plotElement.replaceChildren();
    this.plot = new uPlot(this.options(), this.data(), this.plotElement);
    this.buildLegend();
  }

  resize() {
    const width = this.plotElement.clientWidth;
    if (this.plot && width > 0) this.plot.setSize(this.room());
  }

  /** What the stylesheet leaves inside the padding. */
  room() {
    const style = getComputedStyle(this.plotElement);
    const inside = (size, ...sides) =>
      size - sides.reduce((total, side) => total + (Number.parseFloat(style[side]) || 0), 0);
    return {
      width: Math.max(100, inside(this.plotElement.clientWidth, "paddingLeft", "paddingRight")),
      height: Math.max(LEAST_HEIGHT, inside(this.plotElement.clientHeight, "paddingTop", "paddingBottom")),
    };
  }

  colourOf(position) {
    const palette = colours();
    const line = this.lines[position];
    if (HEALTHS.includes(line)) return palette[line];
    return palette[`series-${((this.bySteps ? position + 1 : position) % 5) + 1}`];
  }

  options() {
    const palette = colours();
    const axis = {
      stroke: css(palette.faint),
      font: FONT,
      grid: { stroke: css(palette.line), width: 1 },
      ticks: { show: false },
    };
    return {
      ...this.room(),
      padding: [8, 30, 0, 0],
      legend: { show: false },
      cursor: {
        y: false,
        points: { size: 7 },
        drag: { x: false, y: false },
        sync: this.bySteps ? undefined : { key: "time" },
      },
      scales: {
        x: { time: !this.bySteps, range: (_, low, high) => this.rangeX(low, high) },
        y: { range: (_, low, high) => rangeY(low, high) },
      },
      axes: [
        {
          ...axis,
          grid: { show: false },
          size: 34,
          gap: 12,
          space: 62,
          values: (_, ticks) => ticks.map((at) => this.labelX(at)),
        },
        { ...axis, size: 46, gap: 8, space: 44, values: (_, ticks) => ticks.map(tick) },
      ],
      series: [{}, ...this.lines.map((line, position) => this.line(line, position))],
      hooks: { setCursor: [(plot) => this.writeLegend(plot.cursor.idx)] },
    };
  }

  line(label, position) {
    const colour = this.colourOf(position);
    const fill = STACKED.has(this.name) ? css(colour, 0.14) : undefined;
    const points = { show: (plot) => plot.data[0].length < 2, size: 5, fill: css(colour) };
    return { label, stroke: css(colour), width: 1.75, fill, points, spanGaps: false };
  }

  /** Time: always the whole span, so that charts side by side compare; steps: what there is. */
  rangeX(low, high) {
    if (this.bySteps) return [low, high > low ? high : low + 1];
    return [high - this.spanS, high];
  }

  labelX(at) {
    if (this.bySteps) return count(at);
    if (this.spanS <= 600) return clock(at);
    if (this.spanS <= 2 * 86_400) return clock(at).slice(0, 5);
    return new Date(at * 1_000).toLocaleDateString(undefined, { day: "numeric", month: "short" });
  }

  buildLegend() {
    const entries = this.lines.map((line, position) => {
      const entry = document.createElement("span");
      const key = document.createElement("i");
      const name = document.createElement("span");
      const value = document.createElement("b");
      key.style.background = css(this.colourOf(position));
      name.textContent = line.replaceAll("_", " ");
      value.dataset.line = line;
      entry.append(key, name, value);
      return entry;
    });
    this.legend.replaceChildren(...entries);
  }

  /** The values under the cursor, else the latest. @param {?number} index */
  writeLegend(index) {
    const at = index ?? this.series.x.length - 1;
    for (const value of this.legend.querySelectorAll("b"))
      setText(value, this.format(this.series.lines[value.dataset.line]?.[at]));
    const when = this.figure.querySelector(".chart-at");
    if (when)
      setText(when, index === null ? "" : this.bySteps ? `step ${count(this.series.x[at])}` : clock(this.series.x[at]));
  }

  writeTable() {
    const table = this.figure.querySelector(".chart-table");
    if (!this.details?.open || !table || !this.series) return;
    const every = Math.ceil(this.series.x.length / MAX_TABLE_ROWS);
    const head = document.createElement("tr");
    for (const name of [this.bySteps ? "step" : "time", ...this.lines])
      head.append(
        Object.assign(document.createElement("th"), { scope: "col", textContent: name.replaceAll("_", " ") }),
      );
    table.tHead.replaceChildren(head);
    const body = document.createElement("tbody");
    for (let index = this.series.x.length - 1; index >= 0; index -= every) {
      const row = body.insertRow();
      row.insertCell().textContent = this.bySteps ? count(this.series.x[index]) : clock(this.series.x[index]);
      for (const line of this.lines) row.insertCell().textContent = this.format(this.series.lines[line][index]);
    }
    table.tBodies[0]?.remove();
    table.append(body);
  }
}

/** From zero to a little above the highest. */
function rangeY(low, high) {
  if (!Number.isFinite(high) || (high === 0 && !(low < 0))) return [0, 1];
  return [Math.min(0, low), high > 0 ? high * 1.08 : 0];
}
