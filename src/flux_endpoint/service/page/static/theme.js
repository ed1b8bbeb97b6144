// Runs before anything is drawn, so that a chosen theme does not flash.
"use strict";
(() => {
  let chosen = null;
  try { chosen = localStorage.getItem("flux-endpoint-theme"); } catch { /* no storage: as the system has it */ }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
