/** Small lines under the tiles' numbers: the last five minutes, without axes. Writes the `d` of an SVG path. */

const WIDTH = 120;
const HEIGHT = 26;
const SPAN_S = 300;

/** @param {number[]} x @param {?number[]} y @returns {string} the same as line_path of dashboard/drawing.py */
export function linePath(x, y, width, height, top) {
  if (x.length === 0 || top <= 0) return "";
  const span = x.at(-1) - x[0] || 1;
  let path = "";
  let penDown = false;
  x.forEach((at, index) => {
    const value = y[index];
    if (value === null || value === undefined || !Number.isFinite(value)) {
      penDown = false;
      return;
    }
    const left = ((at - x[0]) / span) * width;
    const up = height - Math.min(1, Math.max(0, value / top)) * height;
    path += `${penDown ? "L" : "M"}${left.toFixed(1)},${up.toFixed(1)}`;
    penDown = true;
  });
  return path;
}

/** What one tile's number did since the page was opened, or before where the server knew it. */
export class Sparkline {
  /** @param {SVGPathElement} path */
  constructor(path) {
    this.path = path;
    this.x = [];
    this.y = [];
  }

  /** Begin with what a chart holds. @param {number[]} x @param {?number[]} y */
  seed(x, y) {
    this.x = [...x];
    this.y = [...y];
  }

  /** @param {number} atS @param {?number} value */
  add(atS, value) {
    if (this.x.length > 0 && atS - this.x.at(-1) < 1) this.y[this.y.length - 1] = value;
    else {
      this.x.push(atS);
      this.y.push(value);
    }
    while (this.x.length > 2 && this.x[0] < atS - SPAN_S) {
      this.x.shift();
      this.y.shift();
    }
    this.draw();
  }

  draw() {
    const most = Math.max(0, ...this.y.filter((value) => Number.isFinite(value)));
    const lift = this.y.map((value) => (Number.isFinite(value) ? value + (most || 1) * 0.04 : null));
    this.path.setAttribute("d", linePath(this.x, lift, WIDTH, HEIGHT, (most || 1) * 1.12));
  }
}
