// Before the first paint: the remembered theme and the mark that scripts run. Classic and blocking on purpose, and tiny:
// a module would run after the paint and the page would flash in the other theme.
(() => {
  const root = document.documentElement;
  root.dataset.js = "on";
  try {
    const theme = localStorage.getItem("lah-theme");
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  } catch {
    // Storage may be forbidden: the system's theme then stays.
  }
})();
