/** What a screen reader is told: seldom, and only the latest. A live page that reads every number aloud is unusable. */

import { setText } from "./fields.js";

const LEAST_PAUSE_MS = 8_000;

let waiting = null;
let last = "";
let timer = 0;
let spokenAt = -Infinity;

/** Say it now, or when the pause since the last sentence is over; a newer sentence replaces one that waits. */
export function announce(sentence) {
  waiting = sentence;
  if (timer === 0) timer = setTimeout(speak, Math.max(0, spokenAt + LEAST_PAUSE_MS - performance.now()));
}

function speak() {
  timer = 0;
  if (waiting === null || waiting === last) return;
  spokenAt = performance.now();
  last = waiting;
  const region = document.getElementById("announcer");
  if (region) setText(region, waiting);
}
