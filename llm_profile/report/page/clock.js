/* The SM clock at each length. */

function clockPlot(series) {
  const low = new Set(series.slow);
  const ordinary = series.clock.map((mhz, i) => (low.has(i) ? null : mhz));
  const slow = series.clock.map((mhz, i) => (low.has(i) ? mhz : null));
  const dots = (stroke, size) => ({
    stroke, paths: () => null, points: { show: true, size, stroke, fill: stroke, width: 0 },
  });
  const options = {
    series: [{}, dots(colour("accent"), 3), dots(colour("bad"), 5)],
    scales: { x: { time: false }, y: { range: (_u, least, most) => [least - 25, most + 25] } },
    axes: [lengthAxis(series), axis("SM clock (MHz)", { size: 60, values: (_u, splits) => splits.map(whole) })],
    cursor: { y: false },
    hooks: { setCursor: [(u) => pointClock(series, u.cursor.idx)] },
  };
  return [options, [series.lengths, ordinary, slow]];
}

function pointClock(series, index) {
  const at = index ?? series.lengths.length - 1, mhz = series.clock[at];
  const isLow = series.slow.includes(at) ? ", low for its length" : "";
  const what = series.filled.has(at) ? "interpolated" : mhz === null ? "unknown" : `${whole(mhz)} MHz${isLow}`;
  byId(`values-clock-${series.name}`).textContent = `${tokensText(series, at)}: ${what}`;
}

function startClock() {
  for (const series of REPORT.series) {
    const place = byId(`plot-clock-${series.name}`);
    if (!series.clock) {
      place.closest(".panel").hidden = true;
      continue;
    }
    draw(`clock-${series.name}`, () => clockPlot(series));
    pointClock(series, null);
  }
}
