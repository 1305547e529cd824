/* The SM clock at each length. */

function clockPlot(series) {
  const only = (isWanted) => series.clock.map((mhz, i) => (isWanted(i) ? mhz : null));
  const slow = only((i) => series.slow.has(i)), again = only((i) => series.again.has(i) && !series.slow.has(i));
  const ordinary = only((i) => !series.slow.has(i) && !series.again.has(i));
  const dots = (stroke, size) => ({
    stroke, paths: () => null, points: { show: true, size, stroke, fill: stroke, width: 0 },
  });
  const options = {
    series: [{}, dots(colour("accent"), sized(series, 3)), dots(colour("warn-line"), 5), dots(colour("bad"), 5)],
    scales: { x: { time: false }, y: { range: (_u, least, most) => [least - 25, most + 25] } },
    axes: [lengthAxis(series), axis("SM clock (MHz)", { size: 60, values: (_u, splits) => splits.map(whole) })],
    cursor: { y: false },
    hooks: { setCursor: [(u) => pointClock(series, u.cursor.idx)] },
  };
  return [options, [series.lengths, ordinary, again, slow]];
}

function pointClock(series, index) {
  const at = index ?? series.lengths.length - 1, mhz = series.clock[at];
  const isLow = (series.again.has(at) ? ", measured again" : "") + (series.slow.has(at) ? ", low for its length" : "");
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
