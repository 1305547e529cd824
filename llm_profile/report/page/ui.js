/* Elements, numbers as text, and plots that follow the theme and the width of the page. */

const byId = (name) => document.getElementById(name);

/** An element with text or elements in it; text is never taken for markup. */
function node(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

const whole = (number) => Math.round(number).toLocaleString("en-US");

/** Nanoseconds with four figures, in the unit that fits. */
function time(ns) {
  const [size, unit] = ns < 1e3 ? [1, "ns"] : ns < 1e6 ? [1e3, "\u00b5s"] : ns < 1e9 ? [1e6, "ms"] : [1e9, "s"];
  return `${(ns / size).toLocaleString("en-US", { maximumSignificantDigits: 4 })} ${unit}`;
}

const percent = (ratio, digits = 1) => `${(100 * ratio).toFixed(digits)} %`;

const tokensText = (series, index) =>
  series.name === "prefill" ? `${whole(series.lengths[index])} tokens` : `cache of ${whole(series.lengths[index])}`;

const AXES = { prefill: "prompt (tokens)", decode: "KV cache before the step (tokens)" };

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/* ---- plots */

const FONT = "12px system-ui, sans-serif";

/** All plots of the page, by the id of their place, for a theme that changes. */
const plots = new Map();

function axis(label, more) {
  return {
    stroke: colour("muted"), font: FONT, label, labelFont: FONT, labelSize: 20, labelGap: 0, gap: 4,
    grid: { stroke: colour("grid"), width: 1 }, ticks: { stroke: colour("grid"), width: 1, size: 4 }, ...more,
  };
}

/** Distances between the numbers at an axis of tokens. */
const TOKEN_STEPS = Array.from({ length: 24 }, (_none, i) => [1, 2, 5][i % 3] * 10 ** Math.floor(i / 3));

const lengthAxis = (series) =>
  axis(AXES[series.name], { values: (_u, splits) => splits.map(whole), space: 60, size: 26, incrs: TOKEN_STEPS });

/** A line or a dot of this many pixels, larger where there are few lengths. */
const sized = (series, pixels) => (series.lengths.length < 200 ? 2 * pixels : pixels);

/** Draw into the place `name`, now and whenever the theme changes. make: returns [options, data] of uPlot. */
function draw(name, make) {
  const place = byId(`plot-${name}`);
  if (!place) return null;
  const [options, data] = make();
  if (plots.has(name)) plots.get(name).drawn.destroy();
  const size = sizeOf(place);
  const drawn = new uPlot({ ...size, legend: { show: false }, ...options }, data, place);
  follow(drawn);
  plots.set(name, { drawn, make });
  return drawn;
}

function sizeOf(place) {
  const width = Math.max(place.clientWidth, 200);
  return { width, height: width < 480 ? 260 : width < 800 ? 320 : 400 };
}

/** Fingers move the cursor as mice do. */
function follow(drawn) {
  const move = (event) => {
    const { clientX, clientY } = event.touches[0], box = drawn.over.getBoundingClientRect();
    drawn.setCursor({ left: clientX - box.left, top: clientY - box.top });
  };
  for (const kind of ["touchstart", "touchmove"]) drawn.over.addEventListener(kind, move, { passive: true });
}

new ResizeObserver(() => {
  for (const [name, { drawn }] of plots) {
    const size = sizeOf(byId(`plot-${name}`));
    if (size.width !== drawn.width || size.height !== drawn.height) drawn.setSize(size);
  }
}).observe(document.body);

function redraw() {
  for (const [name, { make }] of plots) draw(name, make);
}

byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const isDark = getComputedStyle(root).getPropertyValue("--is-dark").trim() === "1";
  root.dataset.theme = isDark ? "light" : "dark";
  redraw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
