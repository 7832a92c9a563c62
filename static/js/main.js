/**
 * The page's conductor: opens the live connection and hands the view to the parts that the page has. Every part works on
 * what the server rendered, so a part that is missing, or a connection that never comes, leaves a readable page.
 */

import { writeAges } from "./ages.js";
import { announce } from "./announcer.js";
import { themeChanged } from "./colours.js";
import { prepareCopying } from "./copying.js";
import { setText, setTint, writeFields } from "./fields.js";
import { clock, shortAge } from "./format.js";
import { LiveConnection } from "./live.js";
import { chartsPart } from "./part_charts.js";
import { contributorsPart } from "./part_contributors.js";
import { expertsPart, gridPart } from "./part_experts.js";
import { nodesPart, overviewPart } from "./part_overview.js";

const AGE_EVERY_MS = 200;
const LATE_S = 5; // the page's age turns amber: two deltas should have come
const LEVEL_TINTS = { healthy: "serving", degraded: "degraded", critical: "lost", empty: "faint" };

const root = document.documentElement;
const parts = [overviewPart(), gridPart(), expertsPart(), nodesPart(), chartsPart(), contributorsPart()].filter(
  Boolean,
);

prepareCopying();
prepareTheme();
prepareKeys();
showWhereWeAre();
const connection = document.body.dataset.live ? connectPage(document.body.dataset.live) : null;
// For people with a console open, and for tests: what the page knows, not how it looks.
globalThis.learningAtHome = { connection };
setInterval(tick, AGE_EVERY_MS);
tick();

function connectPage(path) {
  const address = new URL(path, location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  const made = new LiveConnection(address.href, { onView: showView, onState: showState });
  made.start();
  return made;
}

function showView(view, change) {
  if (change === null || change.verdict) showVerdict(view.verdict);
  for (const part of parts) part(view, change);
  root.dataset.sequence = String(connection?.sequence ?? 0);
  tick();
}

function showVerdict(verdict) {
  const element = document.getElementById("verdict");
  if (!element) return;
  element.dataset.level = verdict.level;
  setTint(element.querySelector(".verdict-word"), LEVEL_TINTS[verdict.level] ?? "stale");
  writeFields(element, verdict);
  announce(`${verdict.word} ${verdict.headline}`);
}

function showState(state) {
  root.dataset.connection = state;
  const banner = document.getElementById("banner");
  banner.hidden = state !== "disconnected";
  if (state === "disconnected") {
    const at = connection?.view ? connection.view.at_s + connection.clockOffsetS : Number(document.body.dataset.at);
    setText(banner.querySelector(".banner-at"), clock(at));
    announce("Disconnected. The page shows old data and is connecting again.");
  } else if (state === "live") announce("Connected.");
  tick();
}

/** Ages and the header's dot, five times a second; the ages of the data itself once a second is enough for the eye. */
function tick() {
  const age = connection?.ageS() ?? null;
  const status = document.getElementById("live-status");
  if (status && connection) {
    const state = connection.state;
    root.dataset.late = String(state === "live" && age > LATE_S);
    setText(status.querySelector(".live-word"), state === "live" ? "live" : state);
    setText(status.querySelector(".live-age"), age === null ? "" : shortAge(age));
  }
  if (connection?.view) writeAges(document, connection.view.at_s + (connection.state === "live" ? age : 0));
}

function prepareTheme() {
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", themeChanged);
  button?.addEventListener("click", () => {
    const dark = (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
    root.dataset.theme = dark ? "light" : "dark";
    try {
      localStorage.setItem("lah-theme", root.dataset.theme);
    } catch {
      // Forbidden storage: the theme holds until the page is left.
    }
    themeChanged();
  });
}

/** On a narrow screen the menu scrolls: the page's own entry must be in sight. */
function showWhereWeAre() {
  const current = document.querySelector("nav [aria-current]");
  if (current) current.parentElement.scrollLeft = current.offsetLeft - current.parentElement.offsetLeft - 24;
}

/** `/` goes to the page's filter, as in other tools of this kind. */
function prepareKeys() {
  addEventListener("keydown", (event) => {
    const filter = document.querySelector("input[type=search]");
    if (event.key !== "/" || !filter || /^(input|textarea|select)$/i.test(event.target.tagName ?? "")) return;
    event.preventDefault();
    filter.focus();
  });
}
