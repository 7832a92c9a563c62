/** The stylesheet's tokens for code that paints: canvas and charts. Read once per theme. */

const NAMES = [
  "ground",
  "surface",
  "raised",
  "line",
  "ink",
  "soft",
  "faint",
  "accent",
  "cell-dark-ink",
  "cell-light-ink",
  "serving",
  "degraded",
  "stale",
  "lost",
  "orphaned",
  "vacant",
  "series-1",
  "series-2",
  "series-3",
  "series-4",
  "series-5",
];

let cached = null;
const listeners = new Set();

/** Token name -> [red, green, blue]. */
export function colours() {
  if (cached === null) {
    const style = getComputedStyle(document.documentElement);
    cached = Object.fromEntries(NAMES.map((name) => [name, parseHex(style.getPropertyValue(`--${name}`).trim())]));
  }
  return cached;
}

/** Call back whenever the theme changes, by the button or by the system. @param {() => void} listener */
export const onThemeChange = (listener) => listeners.add(listener);

/** Forget what was read; everything that paints paints again. */
export function themeChanged() {
  cached = null;
  for (const listener of listeners) listener();
}

/** @param {number[]} rgb @param {number} alpha */
export const css = ([red, green, blue], alpha = 1) => `rgb(${red} ${green} ${blue} / ${alpha})`;

/** What is seen when `top` lies over `under` with this opacity. */
export const blend = (top, under, alpha) => top.map((part, i) => Math.round(part * alpha + under[i] * (1 - alpha)));

/** Of two inks the one that reads better on a ground. */
export const readableOn = (ground, one, other) => (contrast(ground, one) >= contrast(ground, other) ? one : other);

function contrast(a, b) {
  const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
  return (high + 0.05) / (low + 0.05);
}

function luminance(rgb) {
  const [red, green, blue] = rgb.map((part) =>
    part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4,
  );
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function parseHex(text) {
  const digits = text.replace("#", "");
  return [0, 2, 4].map((at) => Number.parseInt(digits.slice(at, at + 2), 16) || 0);
}
