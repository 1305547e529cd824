/* Latency of a pass by layer, stacked, for each series, and the list of layers, which says what is under the pointer. */

const stack = { hidden: new Set(), asShares: false, pointer: {} };

/** Rows that are drawn, from the bottom of the stack. */
const visibleRows = () => REPORT.rows.map((_row, index) => index).filter((index) => !stack.hidden.has(index));

function sumOf(curves, length) {
  const sum = new Array(length).fill(0);
  for (const curve of curves) curve.forEach((ns, i) => (sum[i] += ns));
  return sum;
}

for (const series of REPORT.series) {
  series.inPass = REPORT.rows.map((_row, index) => inPass(series, index));
  series.total = sumOf(series.inPass, series.lengths.length);
}

/** Quartiles of the measured pass at each length, as ratios to it: [q1, q3]. Neighbours share a value. */
function passQuartiles(series) {
  const { ns, below, above } = series.pass;
  const means = below.map((_value, part) => {
    const values = ns.slice(part * series.every, (part + 1) * series.every);
    return values.reduce((sum, value) => sum + value, 0) / values.length || 1;
  });
  return ns.map((_value, i) => {
    const part = Math.floor(i / series.every);
    return [1 - below[part] / means[part], 1 + above[part] / means[part]];
  });
}

/** Share of the pass whose kernels are others than at the length before, at each length. */
function changes(series) {
  const changed = new Array(series.lengths.length).fill(0);
  for (const row of visibleRows()) {
    const curve = series.rows[row];
    for (const start of curve ? curve.starts.slice(1) : []) {
      changed[start] += series.inPass[row][start] / (series.total[start] || 1);
    }
  }
  return changed;
}

function latencyPlot(series) {
  const rows = visibleRows();
  const unit = stack.asShares ? series.total.map((ns) => 100 / (ns || 1)) : series.total.map(() => 1e-6);
  let below = new Array(series.lengths.length).fill(0);
  const areas = rows.map((row) => (below = below.map((value, i) => value + series.inPass[row][i] * unit[i])));
  const lines = rows.map((row) => {
    const fill = REPORT.rows[row].colour;
    return { stroke: fill, fill, width: 0, points: { show: false } };
  });
  const data = [series.lengths, ...areas.reverse()], shown = [{}, ...lines.reverse()], bands = [];
  if (!stack.asShares && !stack.hidden.size) {
    const quartiles = passQuartiles(series);
    for (const side of [1, 0]) data.push(quartiles.map((ratios, i) => (ratios[side] * series.total[i]) / 1e6));
    const edge = { stroke: colour("text"), width: 0.5, points: { show: false } };
    shown.push(edge, edge);
    bands.push({ series: [shown.length - 2, shown.length - 1], fill: colour("band") });
  }
  const options = {
    series: shown, bands, padding: [18, 12, 0, 0],
    drawOrder: ["series", "axes"],
    scales: { x: { time: false }, y: { range: (_u, _low, high) => [0, stack.asShares ? 100 : high * 1.04 || 1] } },
    axes: [lengthAxis(series), axis(stack.asShares ? "share (%)" : "pass (ms)", { size: 52 })],
    cursor: { points: { show: false }, y: false },
    hooks: { draw: [(u) => drawChanges(u, changes(series))], setCursor: [(u) => point(series, u.cursor.idx)] },
  };
  return [options, data];
}

/** Ticks over the plot. */
function drawChanges(u, changed) {
  const { ctx, bbox } = u, dot = devicePixelRatio;
  ctx.save();
  ctx.fillStyle = colour("text");
  changed.forEach((share, i) => {
    const x = u.valToPos(u.data[0][i], "x", true);
    if (!share || x < bbox.left || x > bbox.left + bbox.width) return;
    ctx.globalAlpha = Math.min(1, 0.25 + 2 * share);
    ctx.fillRect(x - dot / 2, bbox.top - 11 * dot, dot, 8 * dot);
  });
  ctx.restore();
}

/** Tell the values at a length; null: at the last one. */
function point(series, index) {
  const at = index ?? series.lengths.length - 1;
  stack.pointer[series.name] = at;
  for (const [row, cells] of stack.cells[series.name].entries()) {
    const ns = series.inPass[row][at];
    cells[0].textContent = time(ns);
    cells[1].textContent = percent(ns / (series.total[at] || 1));
  }
  stack.heads[series.name].textContent = tokensText(series, at);
  const changed = REPORT.rows.filter((_row, row) => series.rows[row]?.starts.slice(1).includes(at));
  const parts = [`${tokensText(series, at)}: ${time(series.total[at])}`];
  const [low, high] = series.quartiles[at];
  if (low !== high) parts.push(`middle half ${time(low * series.total[at])} to ${time(high * series.total[at])}`);
  if (series.filled.has(at)) parts.push("interpolated");
  if (changed.length) parts.push(`other kernels from here on: ${changed.map((row) => row.name).join(", ")}`);
  byId(`values-latency-${series.name}`).textContent = parts.join("; ");
}

function toggle(row) {
  if (!stack.hidden.delete(row)) stack.hidden.add(row);
  showLatency();
}

/** The list of layers, top of the stack first. */
function layerList() {
  stack.cells = {};
  stack.heads = {};
  const first = node("tr", {}, node("th", { scope: "col" }, "layer"));
  for (const series of REPORT.series) {
    series.quartiles = passQuartiles(series);
    stack.cells[series.name] = new Map();
    stack.heads[series.name] = node("th", { scope: "colgroup", colspan: 2 });
    first.append(stack.heads[series.name]);
  }
  stack.toggles = REPORT.rows.map((row, index) => {
    const swatch = node("i", { class: "swatch", style: `background:${row.colour}` });
    const made = node("button", { type: "button", "aria-pressed": "true" }, swatch, row.name);
    made.addEventListener("click", () => toggle(index));
    return made;
  });
  const lines = REPORT.rows.map((_row, index) => {
    const line = node("tr", {}, node("th", { scope: "row" }, stack.toggles[index]));
    for (const series of REPORT.series) {
      const cells = [node("td"), node("td")];
      stack.cells[series.name].set(index, cells);
      line.append(...cells);
    }
    return line;
  });
  byId("layers").replaceChildren(
    node("table", { class: "layers" }, node("thead", {}, first), node("tbody", {}, ...lines.reverse())),
  );
}

function showLatency() {
  stack.toggles.forEach((made, row) => made.setAttribute("aria-pressed", String(!stack.hidden.has(row))));
  byId("latency-ms").setAttribute("aria-pressed", String(!stack.asShares));
  byId("latency-share").setAttribute("aria-pressed", String(stack.asShares));
  for (const series of REPORT.series) {
    draw(`latency-${series.name}`, () => latencyPlot(series));
    point(series, stack.pointer[series.name]);
  }
}

function startLatency() {
  layerList();
  const press = (name, act) =>
    byId(name).addEventListener("click", () => {
      act();
      showLatency();
    });
  press("latency-ms", () => (stack.asShares = false));
  press("latency-share", () => (stack.asShares = true));
  press("latency-all", () => stack.hidden.clear());
  press("latency-none", () => REPORT.rows.forEach((_row, index) => stack.hidden.add(index)));
  showLatency();
}
