/**
 * Where the cells of a grid lie on a canvas, for any number of dimensions. Pure; the same panels as dashboard/drawing.py.
 *
 * One dimension wraps, two are drawn as they are, three and more become panels: the last two dimensions inside, one panel
 * per combination of the others.
 */

const WRAP_ABOVE = 24;
const ROOMY_COLUMNS = 12;
const ROOMY_ROWS = 8;
const CAPTION_PX = 20;
const PANEL_GAP_PX = 16;
const ROOMY_CELL_PX = 72; // height of a cell that carries words
const COMPACT_CELL_PX = 44; // and where there are many lines of them, or little width
const LEAST_PANEL_PX = 150;

/** Rows and columns of one panel. @param {number[]} grid */
export function panelShape(grid) {
  if (grid.length >= 2) return [grid.at(-2), grid.at(-1)];
  const columns = grid[0] <= WRAP_ABOVE ? grid[0] : Math.ceil(Math.sqrt(grid[0] * 2.5));
  return [Math.ceil(grid[0] / columns), columns];
}

/** Whether cells are large enough to carry words. @param {number[]} grid */
export function isRoomy(grid) {
  const [rows, columns] = panelShape(grid);
  return rows <= ROOMY_ROWS && columns <= ROOMY_COLUMNS;
}

/** `[0, 3, 17]` of a flat index. @param {number[]} grid @param {number} index */
export function indicesOf(grid, index) {
  const indices = [];
  for (const size of [...grid].reverse()) {
    indices.unshift(index % size);
    index = Math.floor(index / size);
  }
  return indices;
}

/** @param {string} prefix @param {number[]} grid @param {number} index */
export const uidOf = (prefix, grid, index) => [prefix, ...indicesOf(grid, index)].join(".");

/**
 * @param {number[]} grid @param {number} width in CSS pixels @param {number} maxHeight of one panel
 * @returns layout with total height, the size of a cell and the corner of every panel
 */
export function layOut(grid, width, maxHeight) {
  const [rows, columns] = panelShape(grid);
  const panels = grid.slice(0, -2).reduce((product, size) => product * size, 1);
  const across =
    panels === 1
      ? 1
      : Math.max(1, Math.min(panels, Math.floor((width + PANEL_GAP_PX) / (LEAST_PANEL_PX + PANEL_GAP_PX)), 6));
  const panelWidth = (width - (across - 1) * PANEL_GAP_PX) / across;
  const cellWidth = panelWidth / columns;
  const cellHeight = heightOfCell(grid, rows, cellWidth, maxHeight, panels);
  const caption = panels > 1 ? CAPTION_PX : 0;
  const panelHeight = caption + rows * cellHeight;
  const origins = Array.from({ length: panels }, (_, panel) => [
    (panel % across) * (panelWidth + PANEL_GAP_PX),
    Math.floor(panel / across) * (panelHeight + PANEL_GAP_PX) + caption,
  ]);
  const lines = Math.ceil(panels / across);
  return {
    rows,
    columns,
    panels,
    across,
    cellWidth,
    cellHeight,
    caption,
    origins,
    width,
    height: lines * panelHeight + (lines - 1) * PANEL_GAP_PX,
  };
}

function heightOfCell(grid, rows, cellWidth, maxHeight, panels) {
  if (panels === 1 && isRoomy(grid)) return rows > 5 || cellWidth < 88 ? COMPACT_CELL_PX : ROOMY_CELL_PX;
  return Math.max(2, Math.min(cellWidth, maxHeight / rows));
}

/** Left and top of a cell. @param {object} layout @param {number} index */
export function cellCorner(layout, index) {
  const perPanel = layout.rows * layout.columns;
  const [left, top] = layout.origins[Math.floor(index / perPanel)];
  const inside = index % perPanel;
  return [
    left + (inside % layout.columns) * layout.cellWidth,
    top + Math.floor(inside / layout.columns) * layout.cellHeight,
  ];
}

/** The cell at a point, or -1. @param {object} layout @param {number} x @param {number} y @param {number} total */
export function cellAt(layout, x, y, total) {
  for (let panel = 0; panel < layout.panels; panel += 1) {
    const [left, top] = layout.origins[panel];
    const column = Math.floor((x - left) / layout.cellWidth);
    const row = Math.floor((y - top) / layout.cellHeight);
    if (column < 0 || row < 0 || column >= layout.columns || row >= layout.rows) continue;
    const index = panel * layout.rows * layout.columns + row * layout.columns + column;
    return index < total ? index : -1;
  }
  return -1;
}

/** Where an arrow key leads from a cell; it stays at the edges. @param {object} layout */
export function cellBeside(layout, index, key, total) {
  const perPanel = layout.rows * layout.columns;
  const panel = Math.floor(index / perPanel);
  const row = Math.floor((index % perPanel) / layout.columns);
  const column = index % layout.columns;
  const to = {
    ArrowLeft: [row, column - 1],
    ArrowRight: [row, column + 1],
    ArrowUp: [row - 1, column],
    ArrowDown: [row + 1, column],
    Home: [row, 0],
    End: [row, layout.columns - 1],
  }[key];
  if (key === "PageDown" || key === "PageUp") {
    const other = index + (key === "PageDown" ? perPanel : -perPanel);
    return other >= 0 && other < total ? other : index;
  }
  if (!to) return -1;
  const beside =
    panel * perPanel +
    Math.min(layout.rows - 1, Math.max(0, to[0])) * layout.columns +
    Math.min(layout.columns - 1, Math.max(0, to[1]));
  return beside < total ? beside : index;
}
