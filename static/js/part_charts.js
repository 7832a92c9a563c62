/** All charts of a page under one choice of span. Five minutes come live; longer spans are fetched and fetched again. */

import { choice } from "./address.js";
import { Chart } from "./charts.js";

const LIVE_SPAN_S = 300;
const REFRESHES_PER_SPAN = 300; // a longer span moves by one pixel or two between two fetches
const LEAST_REFRESH_MS = 5_000;

/** @returns {?(view: object, change: ?object) => void} */
export function chartsPart() {
  const figures = [...document.querySelectorAll("[data-chart]")];
  if (figures.length === 0) return null;
  const charts = figures.map((figure) => new Chart(figure));
  let view = null;
  let timer = 0;
  let spanS = LIVE_SPAN_S;
  const choose = (value) => {
    spanS = Number(value) || LIVE_SPAN_S;
    clearInterval(timer);
    if (spanS === LIVE_SPAN_S) return showLive(null);
    const refresh = () => fetchAll(charts, spanS);
    timer = setInterval(refresh, Math.max(LEAST_REFRESH_MS, (spanS * 1_000) / REFRESHES_PER_SPAN));
    return refresh();
  };
  const showLive = (change) => {
    if (view === null) return;
    for (const chart of charts) {
      if (spanS !== LIVE_SPAN_S && !chart.bySteps) continue;
      const series = view.charts[chart.name];
      if (series && (change === null || change.points?.[chart.name] || change.charts?.[chart.name]))
        chart.update(series, LIVE_SPAN_S);
    }
  };
  choose(choice(document.getElementById("spans"), "span", choose));
  return (latest, change) => {
    view = latest;
    showLive(change);
  };
}

async function fetchAll(charts, spanS) {
  const { root, project } = document.body.dataset;
  for (const chart of charts.filter((each) => !each.bySteps)) {
    try {
      const answer = await fetch(`${root}/p/${encodeURIComponent(project)}/series/${chart.name}.json?span_s=${spanS}`);
      if (answer.ok) chart.update(await answer.json(), spanS);
    } catch {
      // Offline: the banner says so already, and the next round tries again.
    }
  }
}
