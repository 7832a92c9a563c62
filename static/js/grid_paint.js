/**
 * How a cell looks: colour and brightness by mode, a glyph where it does not serve, words where there is room.
 * Knows the canvas and the tokens; nothing of the mouse or the socket.
 */

import { blend, colours, css, readableOn } from "./colours.js";
import { count, duration, rate } from "./format.js";
import { glyph, isDamaged } from "./health.js";
import { cellCorner } from "./grid_layout.js";
import { cellOf } from "./view.js";

export const MODES = ["health", "load", "updates", "age"];
const OLD_UPDATE_S = 3_600; // an expert that was not trained for an hour is as dim as it gets
const LEAST_BRIGHTNESS = 0.55; // an idle serving cell still reads as green, with 3:1 against the card
const LEAST_SCALE = 0.14;
// A cell with words is a tinted card with an edge in its full colour: the words keep one ink, and 4.5:1, at every level.
const WORDS_LEAST = 0.16;
const WORDS_MOST = 0.5;
const FONT = "ui-sans-serif, system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif";

/** The number from 0 to 1 that a mode shows by brightness. */
export function level(mode, cell, most) {
  if (mode === "updates") return most.updates > 0 ? cell.updates / most.updates : 0;
  if (mode === "age")
    return cell.updateAgeS === null ? 0 : 1 - Math.min(1, Math.log1p(cell.updateAgeS) / Math.log1p(OLD_UPDATE_S));
  return Math.min(1, Math.max(0, cell.load));
}

/** The largest values of a layer, to which the others are compared. @param {Array[]} cells */
export function maxima(cells) {
  const most = { updates: 0, rowsPerS: 0 };
  for (const [, , updates, , rowsPerS] of cells) {
    if (updates > most.updates) most.updates = updates;
    if (rowsPerS > most.rowsPerS) most.rowsPerS = rowsPerS;
  }
  return most;
}

/** The fill of a living cell as [red, green, blue]. */
export function fillOf(mode, cell, most) {
  const palette = colours();
  if (cell.health !== "serving") return palette[cell.health] ?? palette.stale;
  if (mode === "health")
    return blend(palette.serving, palette.surface, LEAST_BRIGHTNESS + (1 - LEAST_BRIGHTNESS) * level(mode, cell, most));
  return blend(
    mode === "load" ? palette.serving : palette.accent,
    palette.surface,
    LEAST_SCALE + (1 - LEAST_SCALE) * level(mode, cell, most),
  );
}

/** The words of a cell that has room: its most telling number in this mode. */
export function wordsOf(mode, cell) {
  if (isDamaged(cell.health) && cell.health !== "degraded") return cell.health;
  if (cell.health === "vacant") return "vacant";
  if (mode === "updates") return `${count(cell.updates)} updates`;
  if (mode === "age") return cell.updateAgeS === null ? "not trained" : `${duration(cell.updateAgeS)} ago`;
  return `${rate(cell.rowsPerS)} rows/s`;
}

/**
 * Paint all cells. @param {CanvasRenderingContext2D} pen already scaled to CSS pixels
 * @param {object} layout @param {Array[]} cells @param {string} mode @param {(index: number) => string} labelOf
 */
export function paint(pen, layout, cells, mode, labelOf, captions) {
  const most = maxima(cells);
  const gap = layout.cellWidth < 6 ? 0.5 : layout.cellWidth < 14 ? 1 : layout.cellWidth < 56 ? 2 : 4;
  const radius = Math.min(7, layout.cellWidth / 5, layout.cellHeight / 4);
  pen.clearRect(0, 0, layout.width, layout.height);
  paintCaptions(pen, layout, captions);
  for (let index = 0; index < cells.length; index += 1) {
    const [left, top] = cellCorner(layout, index);
    const box = [left + gap / 2, top + gap / 2, layout.cellWidth - gap, layout.cellHeight - gap];
    paintCell(pen, box, radius, cellOf(cells[index]), mode, most, labelOf(index));
  }
}

/** The fill of a serving cell that carries words. */
function cardFill(mode, cell, most) {
  const palette = colours();
  const colour = mode === "health" || mode === "load" ? palette.serving : palette.accent;
  return blend(colour, palette.surface, WORDS_LEAST + (WORDS_MOST - WORDS_LEAST) * level(mode, cell, most));
}

function paintCell(pen, [x, y, width, height], radius, cell, mode, most, label) {
  const palette = colours();
  const isCard = width >= 56 && height >= 36;
  const fill = isCard && cell.health === "serving" ? cardFill(mode, cell, most) : fillOf(mode, cell, most);
  let ink;
  pen.beginPath();
  if (cell.health === "vacant") {
    const line = width > 8 ? 1 : 0.5;
    pen.roundRect(x + line / 2, y + line / 2, width - line, height - line, radius);
    pen.strokeStyle = css(palette.vacant);
    pen.lineWidth = line;
    pen.stroke();
    ink = palette.faint;
  } else {
    pen.roundRect(x, y, width, height, radius);
    pen.fillStyle = css(fill);
    pen.fill();
    ink =
      isCard && cell.health === "serving"
        ? palette.ink
        : readableOn(fill, palette["cell-dark-ink"], palette["cell-light-ink"]);
    if (isCard && cell.health === "serving") paintEdge(pen, x, y, width, height, radius, mode);
  }
  pen.fillStyle = css(ink);
  if (isCard) paintWords(pen, x, y, width, height, cell, mode, label);
  else if (isDamaged(cell.health) && Math.min(width, height) >= 7) {
    pen.font = `700 ${Math.min(16, Math.min(width, height) * 0.8)}px ${FONT}`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(glyph(cell.health), x + width / 2, y + height / 2 + 0.5);
  }
}

/** The edge that keeps an idle cell at 3:1 against the card it lies on. */
function paintEdge(pen, x, y, width, height, radius, mode) {
  const palette = colours();
  pen.beginPath();
  pen.roundRect(x + 0.75, y + 0.75, width - 1.5, height - 1.5, radius);
  pen.strokeStyle = css(mode === "health" || mode === "load" ? palette.serving : palette.accent);
  pen.lineWidth = 1.5;
  pen.stroke();
}

function paintWords(pen, x, y, width, height, cell, mode, label) {
  const pad = width < 76 ? 7 : 10;
  const small = width < 110;
  const showBoth = height >= 40;
  pen.textBaseline = "alphabetic";
  pen.textAlign = "left";
  pen.font = `500 ${small ? 11 : 12}px ${FONT}`;
  pen.fillText(label, x + pad, y + (height >= 60 ? 20 : 17), width - 2 * pad);
  if (isDamaged(cell.health)) {
    pen.textAlign = "right";
    pen.font = `700 14px ${FONT}`;
    pen.fillText(glyph(cell.health), x + width - pad, y + (height >= 60 ? 21 : 18));
  }
  if (!showBoth) return;
  pen.textAlign = "left";
  const words = small ? wordsOf(mode, cell).replace(/ (rows\/s|updates)$/, "") : wordsOf(mode, cell);
  pen.font = `600 ${small ? 12 : 14}px ${FONT}`;
  pen.fillText(words, x + pad, y + height - (height >= 60 ? 13 : 8), width - 2 * pad);
}

function paintCaptions(pen, layout, captions) {
  if (layout.caption === 0) return;
  pen.fillStyle = css(colours().soft);
  pen.font = `500 12px ${FONT}`;
  pen.textAlign = "left";
  pen.textBaseline = "alphabetic";
  captions.forEach((caption, panel) => pen.fillText(caption, layout.origins[panel][0], layout.origins[panel][1] - 7));
}
