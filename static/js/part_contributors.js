/** The contributors' table: totals change slowly, so it is fetched every half a minute rather than pushed. */

import { LiveTable } from "./tables.js";

const REFRESH_MS = 30_000;

/** @returns {?() => void} */
export function contributorsPart() {
  const element = document.getElementById("contributors-table");
  if (!element) return null;
  const table = new LiveTable(element, (row) => row.node_id);
  const { root, project } = document.body.dataset;
  const refresh = async () => {
    if (document.visibilityState !== "visible") return;
    try {
      const answer = await fetch(`${root}/p/${encodeURIComponent(project)}/contributors.json`);
      if (answer.ok) table.update(await answer.json());
    } catch {
      // Offline: the banner says so already.
    }
  };
  setInterval(refresh, REFRESH_MS);
  let fetched = false;
  return (_, change) => {
    if (change !== null && fetched) return;
    fetched = true;
    refresh();
  };
}
