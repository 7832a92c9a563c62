/** The page's state in its address, so that a link shows what its sender saw: layer, mode, span, sort, query. */

/** @param {string} name @param {string} fallback @param {?string[]} allowed */
export function readParameter(name, fallback, allowed = null) {
  const value = new URLSearchParams(location.search).get(name);
  return value !== null && (allowed === null || allowed.includes(value)) ? value : fallback;
}

/** Set or, when it is the default, remove; the back button is not filled with every click. */
export function writeParameter(name, value, fallback) {
  const address = new URL(location.href);
  if (value === fallback) address.searchParams.delete(name);
  else address.searchParams.set(name, value);
  history.replaceState(null, "", address);
}

/**
 * A group of buttons or links of which one is chosen, and the parameter that remembers it. Links work without a script.
 * @param {?Element} group its items have data-value; the first is the default unless data-default names one
 * @param {string} name @param {(value: string) => void} onChoose called on a click, not at the start
 * @returns {string} the value at the start
 */
export function choice(group, name, onChoose) {
  if (!group) return "";
  const items = [...group.querySelectorAll("[data-value]")];
  const values = items.map((item) => item.dataset.value);
  const fallback = group.dataset.default ?? values[0] ?? "";
  const mark = (value) =>
    items.forEach((item) =>
      item.setAttribute(item.localName === "a" ? "aria-current" : "aria-pressed", String(item.dataset.value === value)),
    );
  const start = readParameter(name, fallback, values);
  mark(start);
  group.addEventListener("click", (event) => {
    const item = event.target.closest("[data-value]");
    if (!item || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    mark(item.dataset.value);
    writeParameter(name, item.dataset.value, fallback);
    onChoose(item.dataset.value);
  });
  return start;
}
