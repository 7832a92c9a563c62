/**
 * Values into elements. An element says what it shows by `data-field` (a path into the row) and how by `data-as`; the
 * server rendered it by the filter of the same name. Writes only what changed, and only by textContent or classes:
 * names of nodes come from strangers.
 */

import * as format from "./format.js";
import { glyph, tint } from "./health.js";

/** @type {Record<string, (element: Element, value: any, row: any) => void>} */
const WRITERS = {
  text: (element, value) => setText(element, value ?? format.NOTHING),
  count: (element, value) => setText(element, format.count(value)),
  rate: (element, value) => setText(element, format.rate(value)),
  milliseconds: (element, value) => setText(element, format.milliseconds(value)),
  percent: (element, value) => setText(element, format.percent(value)),
  whole: (element, value) => setText(element, format.whole(value)),
  flop: (element, value) => setText(element, format.flop(value)),
  flop_per_s: (element, value) => setText(element, format.scaled(value, "FLOP/s")[0]),
  flop_per_s_unit: (element, value) => setText(element, format.scaled(value, "FLOP/s")[1]),
  size: (element, value) => setText(element, format.size(value)),
  watts: (element, value) => setText(element, format.watts(value)),
  celsius: (element, value) => setText(element, format.celsius(value)),
  duration: (element, value) => setText(element, format.duration(value)),
  state: writeState,
  meter: writeMeter,
  beats: writeBeats,
  href: (element, value) => setAttribute(element, "href", element.dataset.to + encodeURIComponent(value ?? "")),
  at: (element, value) => setAttribute(element, "data-at", value),
  short_id: (element, value) => {
    setText(element, `${String(value ?? "").slice(0, 8)}…`);
    setAttribute(element, "data-copy", value ?? "");
  },
};

/** Set text only when it differs: an unchanged node is no work for the browser and no news for a screen reader. */
export function setText(element, text) {
  const string = String(text);
  if (element.textContent !== string) element.textContent = string;
}

/** @param {Element} element @param {string} name @param {any} value */
export function setAttribute(element, name, value) {
  const string = String(value);
  if (element.getAttribute(name) !== string) element.setAttribute(name, string);
}

/** Write every `data-field` below `root` from `row`. @param {ParentNode} root @param {object} row */
export function writeFields(root, row) {
  for (const element of root.querySelectorAll("[data-field]")) {
    const value = element.dataset.field.split(".").reduce((at, key) => at?.[key], row);
    (WRITERS[element.dataset.as] ?? WRITERS.text)(element, value, row);
  }
}

/** Give an element the class of a colour, and take the one it had. @param {Element} element @param {string} name */
export function setTint(element, name) {
  const wanted = `tint-${name}`;
  if (element.classList.contains(wanted)) return;
  for (const known of [...element.classList]) if (known.startsWith("tint-")) element.classList.remove(known);
  element.classList.add(wanted);
}

/** A badge: glyph, word and colour. */
function writeState(element, word) {
  setTint(element, tint(word));
  setAttribute(element, "data-state", word);
  setText(element.querySelector(".state-glyph"), glyph(word));
  setText(element.querySelector(".state-word"), word);
}

/** A bar of 0 to 100. */
function writeMeter(element, value) {
  const known = typeof value === "number";
  element
    .querySelector(".fill")
    .setAttribute("width", String(known ? (Math.min(100, Math.max(0, value)) / 100) * 56 : 0));
  element.classList.toggle("unknown", !known);
}

/** One stroke per hour, oldest first. */
function writeBeats(element, words) {
  const strokes = element.children;
  for (let index = 0; index < strokes.length; index += 1)
    setTint(strokes[index], tint(words[index - strokes.length + words.length] ?? ""));
  setAttribute(element, "aria-label", beatsInWords(words));
}

/** `22 h online, 2 h offline` @param {string[]} words */
export function beatsInWords(words) {
  const hours = new Map();
  for (const word of words) if (word) hours.set(word, (hours.get(word) ?? 0) + 1);
  return [...hours].map(([word, number]) => `${number} h ${word}`).join(", ") || "not seen";
}
