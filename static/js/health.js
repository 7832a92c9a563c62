/** States as people see them; the same tables as dashboard/health.py, and a test holds the two equal. Pure. */

export const HEALTHS = ["serving", "degraded", "stale", "lost", "orphaned", "vacant"];

export const GLYPHS = {
  serving: "✓",
  degraded: "~",
  stale: "–",
  lost: "×",
  orphaned: "!",
  vacant: "○",
  online: "✓",
  joining: "+",
  draining: "↓",
  paused: "‖",
  offline: "×",
};

export const TINTS = {
  serving: "serving",
  degraded: "degraded",
  stale: "stale",
  lost: "lost",
  orphaned: "orphaned",
  vacant: "vacant",
  online: "serving",
  joining: "accent",
  draining: "accent",
  paused: "stale",
  offline: "faint",
  "": "none",
};

export const EVENT_GLYPHS = {
  joined: "+",
  left: "−",
  serving: "✓",
  degraded: "~",
  stale: "–",
  lost: "×",
  orphaned: "!",
  run: "▸",
  conflict: "≠",
  notice: "i",
};

export const EVENT_TINTS = {
  joined: "accent",
  left: "faint",
  serving: "serving",
  degraded: "degraded",
  stale: "stale",
  lost: "lost",
  orphaned: "orphaned",
  run: "accent",
  conflict: "degraded",
  notice: "faint",
};

/** Whether a cell is damage: hosted once and not serving now. @param {string} health */
export const isDamaged = (health) => health !== "serving" && health !== "vacant";

/** @param {string} word */
export const glyph = (word) => GLYPHS[word] ?? "·";
/** @param {string} word */
export const tint = (word) => TINTS[word] ?? "stale";
/** @param {string} kind */
export const eventGlyph = (kind) => EVENT_GLYPHS[kind] ?? "·";
/** @param {string} kind */
export const eventTint = (kind) => EVENT_TINTS[kind] ?? "faint";
