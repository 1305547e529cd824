/* One layer along each series: its time with quartiles, and which kernels run where. */

const MOST_LISTED = 6; // lists of kernels that are shown at once
const MOST_RANGES = 4; // ranges of lengths of such a list

const layer = { row: 0 };

function quartilesAt(series, curve, index) {
  const part = Math.floor(index / series.every);
  return [curve.ns[index] - curve.below[part], curve.ns[index] + curve.above[part]];
}

function layerPlot(series) {
  const curve = series.rows[layer.row];
  const all = curve.ns.map((_ns, i) => quartilesAt(series, curve, i));
  const us = (values) => values.map((ns) => ns / 1e3);
  const data = [series.lengths, us(all.map((q) => q[1])), us(all.map((q) => q[0])), us(curve.ns)];
  const line = colour("accent"), edge = { width: 0, points: { show: false } };
  const options = {
    series: [{}, edge, edge, { stroke: line, width: sized(series, 1), points: { show: false } }],
    bands: [{ series: [1, 2], fill: colour("band") }],
    scales: { x: { time: false }, y: { range: (_u, low, high) => [low - (high - low || 1) / 12, high + (high - low || 1) / 12] } },
    axes: [lengthAxis(series), axis("one call (\u00b5s)", { size: 56 })],
    cursor: { y: false, points: { size: 6 } },
    hooks: {
      drawAxes: [(u) => drawMarks(u, curve.starts.slice(1))],
      setCursor: [(u) => pointLayer(series, u.cursor.idx)],
    },
  };
  return [options, data];
}

/** A line down the plot at each of these indices. */
function drawMarks(u, indices) {
  const { ctx, bbox } = u, dot = devicePixelRatio;
  ctx.save();
  ctx.fillStyle = colour("mark");
  for (const i of indices) {
    const x = u.valToPos(u.data[0][i], "x", true);
    if (x >= bbox.left && x <= bbox.left + bbox.width) ctx.fillRect(x - dot / 2, bbox.top, dot, bbox.height);
  }
  ctx.restore();
}

function pointLayer(series, index) {
  const place = byId(`values-layer-${series.name}`), curve = series.rows[layer.row];
  const at = index ?? series.lengths.length - 1;
  const stretch = stretchAt(curve, at), names = kernelNames(curve.sets[stretch]);
  const [low, high] = quartilesAt(series, curve, at);
  const launches = curve.launches[stretch];
  const what = `${tokensText(series, at)}: ${time(curve.ns[at])} (${time(low)} to ${time(high)})`;
  place.textContent = `${what}, ${launches} ${launches === 1 ? "launch" : "launches"}${names.length ? ": " : ""}${names.join(", ")}`;
}

/** For each list of kernels of a row: how many lengths run it, and which. */
function kernelUse(series, curve) {
  const use = new Map();
  curve.starts.forEach((start, i) => {
    const end = curve.starts[i + 1] ?? series.lengths.length, key = `${curve.sets[i]} ${curve.launches[i]}`;
    if (!use.has(key)) use.set(key, { set: curve.sets[i], launches: curve.launches[i], count: 0, ranges: [] });
    const found = use.get(key), [first, last] = [series.lengths[start], series.lengths[end - 1]];
    found.count += end - start;
    found.ranges.push(first === last ? whole(first) : `${whole(first)} to ${whole(last)}`);
  });
  return [...use.values()].sort((one, other) => other.count - one.count);
}

function kernelLine({ set, launches, count, ranges }) {
  const more = ranges.length - MOST_RANGES;
  const where = ranges.slice(0, MOST_RANGES).join(", ") + (more > 0 ? ` and ${more} ranges more` : "");
  const names = kernelNames(set).map((name) => node("code", {}, name));
  return node(
    "tr", {},
    node("td", {}, where), node("td", {}, whole(count)), node("td", {}, whole(launches)), node("td", {}, ...names),
  );
}

function kernelTable(series) {
  const curve = series.rows[layer.row], title = `Kernels of ${series.name === "prefill" ? "prompts" : "decode steps"}`;
  if (!curve) return node("p", {}, `${title}: this layer does not run`);
  const use = kernelUse(series, curve);
  const table = (found) =>
    node(
      "div", { class: "wide" },
      node(
        "table", { class: "kernels" },
        node("thead", {}, node("tr", {}, ...["at", "lengths", "launches", "kernels"].map((head) => node("th", {}, head)))),
        node("tbody", {}, ...found.map(kernelLine)),
      ),
    );
  const parts = [node("h3", {}, title), table(use.slice(0, MOST_LISTED))];
  if (use.length > MOST_LISTED) {
    const rest = node("details", {}, node("summary", {}, `${use.length - MOST_LISTED} more lists of kernels`));
    rest.append(table(use.slice(MOST_LISTED)));
    parts.push(rest);
  }
  return node("div", {}, ...parts);
}

function showLayer() {
  for (const series of REPORT.series) {
    const panel = byId(`plot-layer-${series.name}`).closest(".panel");
    panel.hidden = !series.rows[layer.row];
    if (panel.hidden) continue;
    draw(`layer-${series.name}`, () => layerPlot(series));
    pointLayer(series, null);
  }
  byId("layer-kernels").replaceChildren(...REPORT.series.map(kernelTable));
}

function startLayer() {
  const choice = byId("layer-choice");
  choice.addEventListener("change", () => {
    layer.row = Number(choice.value);
    showLayer();
  });
  showLayer();
}
