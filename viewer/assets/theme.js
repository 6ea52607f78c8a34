// Runs before the first paint, so that a chosen theme does not flash. Without a choice the system's is followed.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem('sae-theme');
  } catch {
    // Storage may be forbidden; then the choice lasts as long as the page.
  }
  if (chosen === 'light' || chosen === 'dark') document.documentElement.dataset.theme = chosen;
})();
