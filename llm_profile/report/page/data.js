/* The numbers of the page: see page_data.py and packing.py, which say what is where. */

/** Whole numbers from the text that packing.py makes. Sums, not shifts: they have more than 32 bits. */
function unpack(text) {
  const bytes = atob(text), numbers = [];
  let before = 0;
  for (let i = 0; i < bytes.length; ) {
    let rest = 0, factor = 1, byte;
    do {
      byte = bytes.charCodeAt(i++);
      rest += (byte & 127) * factor;
      factor *= 128;
    } while (byte > 127);
    before += rest % 2 ? -(rest + 1) / 2 : rest / 2;
    numbers.push(before);
  }
  return numbers;
}

const REPORT = JSON.parse(document.getElementById("data").textContent);

function unpackCurve(curve) {
  if (curve === null) return null;
  return {
    ns: unpack(curve.ns), below: unpack(curve.below), above: unpack(curve.above),
    starts: unpack(curve.starts), launches: unpack(curve.launches), sets: unpack(curve.sets),
  };
}

for (const series of REPORT.series) {
  series.lengths = unpack(series.lengths);
  series.rows = series.rows.map(unpackCurve);
  series.pass = unpackCurve(series.pass);
  series.clock = series.clock && unpack(series.clock).map((quarters) => quarters / 4 || null);
  for (const name of ["slow", "again", "filled"]) series[name] = new Set(unpack(series[name]));
}

/** What a row adds to a pass at each length, in ns: as often as it counts, lm_head of a prompt for one token. */
function inPass(series, row) {
  const curve = series.rows[row], { weight } = REPORT.rows[row];
  if (curve === null) return series.lengths.map(() => 0);
  return curve.ns.map((ns, i) => weight * (row === series.head ? curve.ns[0] : ns));
}

/** Index of the stretch of equal kernels that the length of this index is in. */
function stretchAt(curve, index) {
  let found = 0;
  while (found + 1 < curve.starts.length && curve.starts[found + 1] <= index) found++;
  return found;
}

function kernelNames(set) {
  return REPORT.kernels.sets[set].map((name) => REPORT.kernels.names[name]);
}
