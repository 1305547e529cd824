/* Estimated against real: a map over input and output length, for every scaling. */

const QUANTITIES = ["ttft", "tpot", "total"];
const WAYS = { kernels: "none (kernels only)" };
const SETS = [(held) => held, (held) => !held, () => true];

/** A background for an error: red is too slow, blue too fast, full colour at `full`. */
function errorColour(error, full) {
  const strength = Math.min(1, Math.abs(error) / full) * 0.75;
  return `rgba(${error > 0 ? "225, 87, 89" : "56, 118, 190"}, ${strength.toFixed(3)})`;
}

function chosenRequests() {
  const told = REPORT.validations[Number(byId("requests-of").value)];
  const quantity = QUANTITIES[Number(byId("requests-quantity").value)];
  const way = byId("requests-way").value, isWanted = SETS[Number(byId("requests-set").value)];
  const [inputs, outputs, held] = [told.inputs, told.outputs, told.held_out].map(unpack);
  const measured = unpack(told.measured[quantity]), estimated = unpack(told.estimates[way][quantity]);
  const requests = inputs.map((input, i) => ({
    input, output: outputs[i], isHeldOut: held[i] === 1, measured: measured[i], estimated: estimated[i],
  }));
  return { told, requests: requests.filter((r) => isWanted(r.isHeldOut) && r.measured > 0) };
}

function requestCell(request, full) {
  if (!request) return node("td");
  const error = request.estimated / request.measured - 1;
  const cell = node("td", { tabindex: 0, style: `background:${errorColour(error, full)}` }, (100 * error).toFixed(Math.abs(error) < 0.0995 ? 2 : 0));
  const tell = () => {
    const fitted = request.isHeldOut ? "not used to fit" : "used to fit";
    const times = `real ${time(request.measured)}, estimated ${time(request.estimated)} (${error > 0 ? "+" : ""}${percent(error, 2)})`;
    byId("values-requests").textContent = `${whole(request.input)} tokens in, ${whole(request.output)} out: ${times}; ${fitted}`;
  };
  for (const kind of ["mouseenter", "focus", "click"]) cell.addEventListener(kind, tell);
  return cell;
}

function showRequests() {
  const { told, requests } = chosenRequests();
  const distinct = (name) => [...new Set(requests.map((r) => r[name]))].sort((one, other) => one - other);
  const inputs = distinct("input"), outputs = distinct("output");
  const at = new Map(requests.map((r) => [`${r.input} ${r.output}`, r]));
  const full = told.tolerance || 0.05;
  const head = [node("th", { scope: "col" }, "in \\ out"), ...outputs.map((n) => node("th", { scope: "col" }, whole(n)))];
  const lines = inputs.map((input) =>
    node("tr", {}, node("th", { scope: "row" }, whole(input)), ...outputs.map((output) => requestCell(at.get(`${input} ${output}`), full))),
  );
  const table = node("table", { class: "map" }, node("thead", {}, node("tr", {}, ...head)), node("tbody", {}, ...lines));
  byId("requests-map").replaceChildren(requests.length ? table : node("p", {}, "There are no such requests."));
  const errors = requests.map((r) => Math.abs(r.estimated / r.measured - 1));
  const mean = errors.reduce((sum, error) => sum + error, 0) / errors.length;
  byId("values-requests").textContent = requests.length
    ? `${requests.length} requests: off by ${percent(mean, 2)} on average, ${percent(Math.max(...errors), 2)} at worst; numbers are % of the real latency, rows input and columns output tokens`
    : "";
}

function listWays() {
  const told = REPORT.validations[Number(byId("requests-of").value)], choice = byId("requests-way");
  choice.replaceChildren(...Object.keys(told.estimates).map((way) => {
    const applied = way === told.mode ? " (applied)" : "";
    return node("option", { value: way }, `${WAYS[way] || way}${applied}`);
  }));
  choice.value = told.mode;
}

function startRequests() {
  byId("requests-of").addEventListener("change", () => {
    listWays();
    showRequests();
  });
  for (const name of ["requests-quantity", "requests-way", "requests-set"]) byId(name).addEventListener("change", showRequests);
  listWays();
  showRequests();
}
