/* Each section that the page has. */

for (const cell of document.querySelectorAll("[data-error]")) {
  cell.style.background = errorColour(Number(cell.dataset.error), 0.5);
}
if (byId("layers")) startLatency();
if (byId("layer-choice")) startLayer();
if (byId("plot-roofline")) startRoofline();
if (byId("plot-clock-prefill") || byId("plot-clock-decode")) startClock();
if (byId("requests-map")) startRequests();
