/* Each layer under the roof of the GPU: FLOP/s over FLOP per byte, both logarithmic. */

const roofs = { near: null };
const HINT = "Point at a dot to see which layer it is.";

/** Places as columns, one for each layer and phase. */
function rooflineColumns() {
  return REPORT.roofline.places.map(({ at }) => [at.map((p) => p[1]), at.map((p) => p[2] / 1e12)]);
}

function rooflinePlot() {
  const { places, roof } = REPORT.roofline, columns = rooflineColumns();
  const xs = columns.flatMap((c) => c[0]), ys = columns.flatMap((c) => c[1]);
  const range = (values, more) => [Math.min(...values, ...more) / 1.6, Math.max(...values, ...more) * 1.6];
  const xRange = range(xs, roof ? [(2 * roof.flops) / roof.bandwidth] : []);
  const yRange = range(ys, roof ? [roof.flops / 1e12] : []);
  const log = (limits) => ({ time: false, distr: 3, log: 10, range: () => limits });
  const figures = (_u, splits) => splits.map((value) => (value === null ? "" : value.toLocaleString("en-US", { maximumSignificantDigits: 3 })));
  const only10s = (_u, splits) => splits.map((value) => (Number.isInteger(Math.round(1e6 * Math.log10(value)) / 1e6) ? value : null));
  const decades = { filter: only10s, grid: { stroke: colour("grid"), width: 1, filter: only10s }, ticks: { show: false } };
  const series = places.map(({ row, phase }) => ({
    stroke: REPORT.rows[row].colour, fill: REPORT.rows[row].colour, paths: (u, index) => drawPlaces(u, index, phase),
  }));
  const options = {
    mode: 2, series: [null, ...series], scales: { x: log(xRange), y: log(yRange) },
    axes: [
      axis("FLOP per byte moved", { values: figures, size: 26, ...decades }),
      axis("TFLOP/s", { values: figures, size: 60, ...decades }),
    ],
    cursor: { points: { show: false }, drag: { x: false, y: false } },
    hooks: { drawAxes: [(u) => drawRoof(u)], draw: [drawNear], setCursor: [nearest] },
  };
  return [options, [null, ...columns]];
}

function drawRoof(u) {
  const { roof } = REPORT.roofline, { ctx, bbox } = u;
  if (!roof) return;
  const { min, max } = u.scales.x, bend = roof.flops / roof.bandwidth;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  ctx.beginPath();
  [min, bend, max].forEach((x, i) => {
    const y = Math.min(roof.flops, x * roof.bandwidth) / 1e12;
    ctx[i ? "lineTo" : "moveTo"](u.valToPos(x, "x", true), u.valToPos(y, "y", true));
  });
  ctx.strokeStyle = colour("muted");
  ctx.lineWidth = 3 * devicePixelRatio;
  ctx.stroke();
  ctx.restore();
}

/** A line through the places of a layer, and a dot at each. */
function drawPlaces(u, index, phase) {
  const [xs, ys] = u.data[index], { ctx } = u, dot = devicePixelRatio;
  const at = xs.map((x, i) => [u.valToPos(x, "x", true), u.valToPos(ys[i], "y", true)]);
  ctx.save();
  ctx.strokeStyle = ctx.fillStyle = REPORT.rows[REPORT.roofline.places[index - 1].row].colour;
  ctx.lineWidth = dot;
  ctx.globalAlpha = 0.5;
  ctx.beginPath();
  at.forEach(([x, y], i) => ctx[i ? "lineTo" : "moveTo"](x, y));
  ctx.stroke();
  ctx.globalAlpha = 1;
  for (const [x, y] of at) drawDot(ctx, x, y, phase === "prefill" ? 2.5 * dot : 4 * dot, phase);
  ctx.restore();
  return null;
}

function drawDot(ctx, x, y, size, phase) {
  ctx.beginPath();
  if (phase === "prefill") ctx.arc(x, y, size, 0, 2 * Math.PI);
  else for (const [i, [dx, dy]] of [[0, -1], [1, 0], [0, 1], [-1, 0]].entries()) ctx[i ? "lineTo" : "moveTo"](x + dx * size, y + dy * size);
  ctx.fill();
}

/** The place next to the pointer, at most 30 pixels away, and what is to be told of it. */
function nearest(u) {
  const { left, top } = u.cursor;
  let best = null, distance = 30;
  REPORT.roofline.places.forEach(({ at }, number) => {
    at.forEach(([, intensity, flops], i) => {
      const away = Math.hypot(u.valToPos(intensity, "x") - left, u.valToPos(flops / 1e12, "y") - top);
      if (away < distance) [best, distance] = [[number, i], away];
    });
  });
  const changed = String(best) !== String(roofs.near);
  roofs.near = best;
  if (changed) {
    byId("values-roofline").textContent = best ? placeText(...best) : HINT;
    u.redraw(false);
  }
}

function placeText(number, index) {
  const { row, phase, at } = REPORT.roofline.places[number], [length, intensity, flops] = at[index];
  const { roof } = REPORT.roofline;
  const where = phase === "prefill" ? `a prompt of ${whole(length)} tokens` : `a cache of ${whole(length)}`;
  const text = `${REPORT.rows[row].name} at ${where}: ${(flops / 1e12).toPrecision(3)} TFLOP/s at ${intensity.toPrecision(3)} FLOP per byte`;
  if (!roof) return text;
  const most = Math.min(roof.flops, intensity * roof.bandwidth);
  const limit = intensity * roof.bandwidth < roof.flops ? "memory" : "arithmetic";
  return `${text}, ${percent(flops / most, 0)} of what the roof allows; the limit is ${limit}`;
}

function drawNear(u) {
  if (!roofs.near) return;
  const [number, index] = roofs.near, [, intensity, flops] = REPORT.roofline.places[number].at[index];
  const { ctx } = u;
  ctx.save();
  ctx.strokeStyle = colour("text");
  ctx.lineWidth = 2 * devicePixelRatio;
  ctx.beginPath();
  ctx.arc(u.valToPos(intensity, "x", true), u.valToPos(flops / 1e12, "y", true), 6 * devicePixelRatio, 0, 2 * Math.PI);
  ctx.stroke();
  ctx.restore();
}

function startRoofline() {
  byId("values-roofline").textContent = HINT;
  draw("roofline", rooflinePlot);
}
