/**
 * Everything that grows older by itself: `<time data-at="1790000000.1" data-words="ago">`. By the server's clock; it stands
 * still while the page is disconnected, because then nobody knows.
 */

import { clock, duration } from "./format.js";
import { setText } from "./fields.js";

const WORDS = {
  ago: (seconds) => `${duration(seconds)} ago`,
  for: (seconds) => duration(seconds),
};

/** @param {ParentNode} root @param {number} nowS by the server's clock */
export function writeAges(root, nowS) {
  for (const element of root.querySelectorAll("time[data-at]")) {
    const atS = Number(element.dataset.at);
    if (!Number.isFinite(atS) || atS <= 0) continue;
    const words = WORDS[element.dataset.words] ?? WORDS.ago;
    setText(element, words(nowS - atS));
    if (!element.title) element.title = `${new Date(atS * 1_000).toLocaleDateString()} ${clock(atS)}`;
  }
}
