/* Line charts in SVG. `mountChart(id, element, server)` is called by gr.HTML (see ui/chart.py).
 *
 * The page's pulse says "there is something new" (`version`) and may bring the last few points (`tails`). A chart
 * that they do not reach asks `server.curves({runs, cursors})`, which answers with what was added since the cursor, so that a
 * tick of a run with ten thousand points moves a few bytes. What is drawn is thinned to two points a pixel column (least and greatest).
 */
"use strict";

const Q_SVG = "http://www.w3.org/2000/svg";
const Q_STORE = "qlora-ui.chart";
const Q_PAD = { top: 14, right: 14, bottom: 26, left: 52 };
const Q_DIGIT_PX = 6.6; // about the width of a letter of a tick label

function mountChart(id, element, server) {
  const root = element.querySelector(".q-charts");
  if (!root) return;
  const spec = JSON.parse(root.dataset.spec);
  const store = { smoothing: 0.6, log: false, latest: 0, ...qRemembered() };
  const runs = new Map();
  let told = {};
  let order = [];
  let names = [];
  let at = null;
  let busy = false;
  let again = false;
  let missed = false; // points came while the charts were out of sight
  let frame = 0;

  const figures = spec.panels.map((panel) => qFigure(panel, spec));
  const tools = qTools(store, schedule);
  root.replaceChildren(qGrid(figures));
  figures[0].node.appendChild(tools);
  const status = root.appendChild(qNode("p", { class: "q-sr", "aria-live": "polite" }));

  figures.forEach((figure) => {
    new ResizeObserver(() => { if (missed) load(); schedule(); }).observe(figure.plot);
    figure.cover.addEventListener("pointermove", (event) => point(figure, event));
    figure.cover.addEventListener("pointerleave", () => { at = null; schedule(); });
    figure.cover.addEventListener("keydown", (event) => step(figure, event));
    figure.cover.addEventListener("blur", () => { at = null; schedule(); });
  });

  async function load() {
    if (busy) { again = true; return; }
    if (follow()) { schedule(); return; }
    // On another tab: asked for when this one is opened, all that came meanwhile at once.
    missed = !root.offsetParent;
    if (missed) return;
    busy = true;
    try {
      const wanted = told.runs || [];
      names = told.names || [];
      const cursors = wanted.map((id) => (runs.get(id) || {}).cursor || null);
      const answer = wanted.length ? await server.curves({ runs: wanted, cursors }) : [];
      for (const piece of answer || []) qAppend(runs, piece);
      order = wanted.filter((id) => runs.has(id));
      for (const id of [...runs.keys()]) if (!wanted.includes(id)) runs.delete(id);
      schedule();
    } catch (error) {
      status.textContent = "";
    } finally {
      busy = false;
      if (again) { again = false; load(); }
    }
  }

  /* Whether the points that came with the value were all that was new. */
  function follow() {
    const { runs: wanted = [], names: words = [], tails = [] } = told;
    if (!wanted.length || wanted.length !== order.length || wanted.some((id, place) => order[place] !== id)) return false;
    const reached = wanted.every((id) => qFollow(runs, id, tails.find((tail) => tail.id === id)));
    if (reached) { names = words; missed = false; }
    return reached;
  }

  function schedule() {
    if (!frame) frame = requestAnimationFrame(() => { frame = 0; draw(); });
  }

  function draw() {
    const shown = order.map((id, place) => ({ ...runs.get(id), place, label: names[place] || "" }));
    figures.forEach((figure) => {
      if (figure.plot.clientWidth > 0) qDraw(figure, shown, store, spec, at && at.axis === figure.panel.x ? at.x : null);
    });
  }

  function point(figure, event) {
    const scale = figure.scale;
    if (!scale) return;
    const box = figure.plot.getBoundingClientRect();
    at = { axis: figure.panel.x, x: scale.fromX(event.clientX - box.left) };
    schedule();
  }

  function step(figure, event) {
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -25, PageDown: 25, Home: -1e9, End: 1e9 }[event.key];
    if (!move || !figure.scale) return;
    event.preventDefault();
    const xs = figure.xs || [];
    if (!xs.length) return;
    const now = at && at.axis === figure.panel.x ? qNearest(xs, at.x) : xs.length - (move > 0 ? 2 : 0);
    const place = Math.max(0, Math.min(xs.length - 1, now + move));
    at = { axis: figure.panel.x, x: xs[place] };
    draw();
    figure.cover.setAttribute("aria-valuetext", figure.reading || "");
    figure.cover.setAttribute("aria-valuenow", String(place));
  }

  qLive.mount(id, element, (value) => { told = value; load(); });
}

function qRemembered() {
  try { return JSON.parse(localStorage.getItem(Q_STORE)) || {}; } catch { return {}; }
}

/* Points that came: appended, or put in place of all where the server says that the curve was rewound. */
function qAppend(runs, piece) {
  let run = runs.get(piece.id);
  if (!run || piece.reset) run = { id: piece.id, series: {} };
  for (const [key, added] of Object.entries(piece.series)) {
    const kept = run.series[key] || (run.series[key] = { x: [], y: [] });
    for (let i = 0; i < added.x.length; i++) { kept.x.push(added.x[i]); kept.y.push(added.y[i]); }
    kept.smooth = null;
  }
  Object.assign(run, { cursor: piece.cursor, rules: piece.rules, end: piece.end, text: piece.text, marks: piece.marks });
  runs.set(piece.id, run);
}

/* The pieces of a tail that go on from where the run is; whether it is at the tail's end then. */
function qFollow(runs, id, tail) {
  const run = runs.get(id);
  if (!run || !run.cursor || !tail) return false;
  const at = () => JSON.stringify(run.cursor);
  for (const piece of tail.pieces) if (JSON.stringify(piece.since) === at()) qAppend(runs, { ...tail, ...piece });
  if (at() !== JSON.stringify(tail.cursor)) return false;
  Object.assign(run, { rules: tail.rules, end: tail.end, text: tail.text, marks: tail.marks });
  return true;
}

/* ---- Nodes --------------------------------------------------------------------------------------------------- */

function qNode(tag, attributes = {}, text) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function qSvg(tag, attributes = {}, text) {
  const node = document.createElementNS(Q_SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function qGrid(figures) {
  const grid = qNode("div", { class: "q-charts-grid" });
  grid.append(...figures.map((figure) => figure.node));
  return grid;
}

function qFigure(panel, spec) {
  const id = `${spec.id}-${panel.id}`;
  const node = qNode("figure", { class: `q-chart q-chart-${panel.size || "small"}`, id });
  const head = node.appendChild(qNode("figcaption", { class: "q-chart-head" }));
  head.appendChild(qNode("span", { class: "q-chart-title" }, panel.title));
  if (panel.note) head.appendChild(qNode("span", { class: "q-chart-note q-small" }, panel.note));
  const legend = head.appendChild(qNode("span", { class: "q-legend" }));
  const plot = node.appendChild(qNode("div", { class: "q-plot" }));
  const svg = plot.appendChild(qSvg("svg", { role: "img", "aria-labelledby": `${id}-title ${id}-desc` }));
  svg.append(qSvg("title", { id: `${id}-title` }, panel.title), qSvg("desc", { id: `${id}-desc` }, ""));
  const layer = svg.appendChild(qSvg("g"));
  const cover = plot.appendChild(qNode("div", {
    class: "q-cover", tabindex: "0", role: "slider", "aria-valuemin": "0", "aria-valuenow": "0", "aria-valuetext": "",
    "aria-label": `${panel.title}: read values with the arrow keys`,
  }));
  const tip = plot.appendChild(qNode("div", { class: "q-tip", hidden: "" }));
  const empty = plot.appendChild(qNode("p", { class: "q-chart-empty" }, panel.empty || ""));
  return { panel, node, legend, plot, svg, layer, cover, tip, empty, desc: svg.querySelector("desc") };
}

function qTools(store, changed) {
  const bar = qNode("div", { class: "q-chart-tools", role: "group", "aria-label": "How the charts are drawn" });
  const keep = () => { try { localStorage.setItem(Q_STORE, JSON.stringify(store)); } catch { /* private window */ } changed(); };
  const smooth = bar.appendChild(qNode("label", { class: "q-switcher" }, "Smoothing"));
  const slider = smooth.appendChild(qNode("input", { type: "range", min: "0", max: "0.95", step: "0.05", value: String(store.smoothing) }));
  const shown = smooth.appendChild(qNode("output", { class: "q-num" }, String(store.smoothing)));
  slider.addEventListener("input", () => { store.smoothing = Number(slider.value); shown.textContent = slider.value; keep(); });
  const range = bar.appendChild(qNode("label", { class: "q-switcher" }, "Show"));
  const select = range.appendChild(qNode("select"));
  for (const [value, label] of [[0, "all steps"], [50, "latest 50"], [200, "latest 200"], [1000, "latest 1,000"], [5000, "latest 5,000"]]) {
    const option = select.appendChild(qNode("option", { value: String(value) }, label));
    option.selected = store.latest === value;
  }
  select.addEventListener("change", () => { store.latest = Number(select.value); keep(); });
  const log = bar.appendChild(qNode("label", { class: "q-switcher" }));
  const box = log.appendChild(qNode("input", { type: "checkbox" }));
  box.checked = store.log;
  log.append("Log scale");
  box.addEventListener("change", () => { store.log = box.checked; keep(); });
  return bar;
}

/* ---- Numbers ------------------------------------------------------------------------------------------------- */

const Q_FORMATS = {
  loss: (v) => (v === 0 ? "0" : Math.abs(v) >= 1000 || Math.abs(v) < 0.001 ? v.toExponential(1) : Number(v.toPrecision(3)).toString()),
  number: (v) => (Math.abs(v) >= 1000 ? `${Number((v / 1000).toPrecision(3))}k` : Number(v.toPrecision(3)).toString()),
  rate: (v) => (v === 0 ? "0" : v >= 1e-4 ? Number(v.toPrecision(2)).toFixed(7).replace(/\.?0+$/, "") : v.toExponential(1).replace(".0e", "e")),
  bytes: (v) => (v === 0 ? "0" : v >= 0.995 * 2 ** 30 ? `${(v / 2 ** 30).toFixed(1)} GiB` : `${Math.round(v / 2 ** 20)} MiB`),
  step: (v) => Math.round(v).toLocaleString("en-US"),
  time: (v) => (v < 90 ? `${Math.round(v)} s` : v < 5400 ? `${Number((v / 60).toPrecision(2))} min` : `${Number((v / 3600).toPrecision(2))} h`),
};

function qTicks(low, high, count, log, base) {
  if (log) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const factor of [1, 2, 5]) {
        const tick = factor * 10 ** power;
        if (tick >= low && tick <= high) ticks.push(tick);
      }
    const skip = Math.ceil(ticks.length / (count + 1));
    return ticks.filter((_, place) => place % skip === 0);
  }
  const unit = base || 1;
  const rough = (high - low) / unit / Math.max(count, 1) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const sizes = [0.5, 1, 2, 5, 10].map((factor) => factor * power * unit);
  let place = sizes.findIndex((size) => size >= rough * unit * (1 - 1e-9));
  if (place > 0 && (high - low) / sizes[place] < 2) place--; // one line alone is no scale
  const step = sizes[place];
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) ticks.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
  return ticks;
}

function qNearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle + 1; else high = middle;
  }
  return low > 0 && Math.abs(xs[low - 1] - x) <= Math.abs(xs[low] - x) ? low - 1 : low;
}

/* Exponential moving average that starts at the first value instead of at zero (Adam's bias correction). */
function qSmooth(series, factor) {
  if (series.smooth && series.factor === factor && series.smooth.length === series.y.length) return series.smooth;
  const out = new Array(series.y.length);
  let mean = 0, weight = 0;
  for (let i = 0; i < series.y.length; i++) {
    mean = factor * mean + (1 - factor) * series.y[i];
    weight = factor * weight + (1 - factor);
    out[i] = mean / weight;
  }
  series.smooth = out;
  series.factor = factor;
  return out;
}

/* A path through the least and the greatest value of every pixel column, in their order. */
function qPath(xs, ys, from, scale) {
  const toX = scale.toX, toY = scale.toY;
  if (xs.length - from <= 2 * scale.width) {
    let path = "";
    for (let i = from; i < xs.length; i++) path += `${path ? "L" : "M"}${toX(xs[i]).toFixed(1)} ${toY(ys[i]).toFixed(1)}`;
    return path;
  }
  let path = "", column = null, least = 0, greatest = 0;
  const flush = () => {
    const [a, b] = least < greatest ? [least, greatest] : [greatest, least];
    path += `${path ? "L" : "M"}${toX(xs[a]).toFixed(1)} ${toY(ys[a]).toFixed(1)}`;
    if (a !== b) path += `L${toX(xs[b]).toFixed(1)} ${toY(ys[b]).toFixed(1)}`;
  };
  for (let i = from; i < xs.length; i++) {
    const now = Math.round(toX(xs[i]));
    if (now !== column) {
      if (column !== null) flush();
      column = now; least = greatest = i;
    } else {
      if (ys[i] < ys[least]) least = i;
      if (ys[i] > ys[greatest]) greatest = i;
    }
  }
  if (column !== null) flush();
  return path;
}

/* ---- Drawing ------------------------------------------------------------------------------------------------- */

function qDraw(figure, runs, store, spec, at) {
  const { panel, svg, layer } = figure;
  const width = figure.plot.clientWidth, height = figure.plot.clientHeight;
  svg.setAttribute("width", width);
  svg.setAttribute("height", height);
  const format = Q_FORMATS[panel.format], formatX = Q_FORMATS[panel.x];
  const lines = qLines(panel, runs, store);
  const rules = runs.flatMap((run) => panel.rules.filter((rule) => run.rules[rule.key] > 0).map((rule) => ({ ...rule, y: run.rules[rule.key], place: run.place })));
  figure.empty.hidden = lines.length > 0;
  figure.empty.textContent = runs.length && runs.every((run) => run.end && run.end.over) ? "Nothing was measured." : panel.empty || "";
  figure.cover.hidden = lines.length === 0;
  figure.desc.textContent = runs.map((run) => `${run.label ? `${run.label}: ` : ""}${(run.text || {})[panel.id] || "nothing measured yet"}`).join(" ");
  qLegend(figure.legend, panel, lines, rules, runs);
  const log = store.log && panel.log && lines.every((line) => line.ys.every((y) => y > 0));
  const scale = qScale(panel, lines, rules, runs, width, height, store, log);
  figure.scale = scale;
  const parts = [];
  const ticks = !lines.length ? [] : qTicks(scale.yLow, scale.yHigh, Math.max(2, Math.floor(height / 52)), log, panel.format === "bytes" ? 2 ** 20 * (scale.yHigh > 2 ** 30 ? 1024 : 1) : 1);
  const isTold = new Set(ticks.map(format)).size === ticks.length;
  for (const tick of ticks) {
    const y = scale.toY(tick);
    parts.push(qSvg("line", { class: "q-gridline", x1: Q_PAD.left, x2: width - Q_PAD.right, y1: y, y2: y }));
    parts.push(qSvg("text", { class: "q-tick", x: Q_PAD.left - 8, y: y + 4, "text-anchor": "end" }, isTold ? format(tick) : Number(tick.toPrecision(5)).toString()));
  }
  if (lines.length && panel.x === "step") parts.push(qSvg("text", { class: "q-tick", x: Q_PAD.left, y: height - 8, "text-anchor": "start" }, "step"));
  let labelled = panel.x === "step" ? Q_PAD.left + 4 * Q_DIGIT_PX : 0; // right end of the label before
  for (const tick of !lines.length ? [] : qTicks(scale.xLow, scale.xHigh, Math.max(3, Math.floor(width / 110)), false, panel.x === "time" ? qTimeUnit(scale.xHigh) : 1)) {
    if (panel.x === "step" && tick !== Math.round(tick)) continue;
    const x = scale.toX(tick);
    if (panel.x === "step" && x < Q_PAD.left + 40) continue; // the word "step" stands there
    const anchor = x > width - Q_PAD.right - 14 ? "end" : "middle";
    const label = panel.x === "time" ? qTimeTick(tick, scale.xHigh) : formatX(tick);
    const left = x - label.length * Q_DIGIT_PX * (anchor === "end" ? 1 : 0.5);
    if (left < labelled + 4) continue;
    labelled = left + label.length * Q_DIGIT_PX;
    parts.push(qSvg("text", { class: "q-tick", x, y: height - 8, "text-anchor": anchor }, label));
  }
  parts.push(qSvg("line", { class: "q-axis", x1: Q_PAD.left, x2: width - Q_PAD.right, y1: scale.bottom, y2: scale.bottom }));
  for (const mark of panel.marks ? runs.flatMap((run) => run.marks || []) : []) {
    if (mark.step < scale.xLow || mark.step > scale.xHigh) continue;
    parts.push(qSvg("path", { class: `q-mark q-mark-${mark.kind}`, d: `M${scale.toX(mark.step).toFixed(1)} ${scale.bottom - 1}l-4 7h8z` }));
  }
  for (const rule of rules) {
    const y = scale.toY(rule.y);
    parts.push(qSvg("line", { class: `q-rule q-c${runs.length > 1 ? rule.place : rule.colour}`, x1: Q_PAD.left, x2: width - Q_PAD.right, y1: y, y2: y }));
  }
  for (const line of lines) parts.push(...qLine(line, scale));
  if (at !== null && lines.length) parts.push(...qReading(figure, lines, rules, scale, at, format, formatX, runs));
  else { figure.tip.hidden = true; figure.reading = ""; }
  layer.replaceChildren(...parts);
}

function qTimeUnit(high) {
  return high > 5400 ? 3600 : high > 90 ? 60 : 1;
}

/* All ticks of an axis in one unit. */
function qTimeTick(tick, high) {
  const unit = qTimeUnit(high);
  return `${Number((tick / unit).toPrecision(3))} ${{ 1: "s", 60: "min", 3600: "h" }[unit]}`;
}

function qLines(panel, runs, store) {
  const lines = [];
  for (const run of runs) {
    for (const series of panel.series) {
      const data = run.series[series.key];
      if (!data || !data.x.length) continue;
      const colour = runs.length > 1 ? run.place : series.colour;
      const label = runs.length > 1 ? `${run.label}, ${series.label.toLowerCase()}` : series.label;
      const first = store.latest && panel.x === "step" ? Math.max(0, data.x.length - Math.ceil(store.latest)) : 0;
      const from = store.latest && panel.x === "step" ? data.x.findIndex((x) => x >= (run.end.last || 0) - store.latest) : first;
      const base = { xs: data.x, from: Math.max(from, 0), colour, place: run.place, many: runs.length > 1, label, raw: data.y };
      if (series.smooth && store.smoothing > 0 && data.x.length > 4) {
        if (runs.length === 1 || data.x.length < 400) lines.push({ ...base, ys: data.y, style: "raw" });
        lines.push({ ...base, ys: qSmooth(data, store.smoothing), style: "line", reads: true, smoothed: true });
      } else lines.push({ ...base, ys: data.y, style: series.style, reads: true });
    }
  }
  return lines;
}

function qScale(panel, lines, rules, runs, width, height, store, log) {
  let xLow = Infinity, xHigh = -Infinity, yLow = Infinity, yHigh = -Infinity;
  for (const line of lines) {
    xLow = Math.min(xLow, line.xs[line.from]);
    xHigh = Math.max(xHigh, line.xs[line.xs.length - 1]);
    for (let i = line.from; i < line.ys.length; i++) {
      const y = line.ys[i];
      if (y < yLow) yLow = y;
      if (y > yHigh) yHigh = y;
    }
  }
  for (const rule of rules) { yLow = Math.min(yLow, rule.y); yHigh = Math.max(yHigh, rule.y); }
  if (!Number.isFinite(xLow)) { xLow = 0; xHigh = 1; }
  if (!Number.isFinite(yLow)) { yLow = 0; yHigh = 1; }
  if (panel.x === "step" && !store.latest) {
    xLow = Math.min(xLow, 1);
    for (const run of runs) if (run.end.live && run.end.planned) xHigh = Math.max(xHigh, run.end.planned);
  }
  if (panel.zero && !log) yLow = 0;
  if (panel.format === "bytes") yHigh = Math.max(yHigh, 16 * 2 ** 20); // a run begins with some KiB, which labels in MiB cannot tell apart
  if (yLow === yHigh) { yHigh += Math.abs(yHigh) * 0.1 || 1; if (!panel.zero) yLow -= Math.abs(yLow) * 0.1; }
  const room = log ? 0 : (yHigh - yLow) * 0.06;
  if (!panel.zero && !log) yLow = yLow >= 0 ? Math.max(0, yLow - room) : yLow - room;
  yHigh += room;
  if (xHigh === xLow) xHigh = xLow + 1;
  const left = Q_PAD.left, inner = width - Q_PAD.left - Q_PAD.right, bottom = height - Q_PAD.bottom, tall = bottom - Q_PAD.top;
  const spread = log ? Math.log(yHigh / yLow) || 1 : yHigh - yLow;
  return {
    xLow, xHigh, yLow, yHigh, bottom, width: inner,
    toX: (x) => left + ((x - xLow) / (xHigh - xLow)) * inner,
    fromX: (px) => xLow + (Math.max(0, Math.min(inner, px - left)) / inner) * (xHigh - xLow),
    toY: (y) => bottom - ((log ? Math.log(Math.max(y, yLow) / yLow) : y - yLow) / spread) * tall,
  };
}

function qLine(line, scale) {
  if (line.style !== "points") {
    // A line needs two points: the first step alone is a dot, a line without length under a round cap.
    if (line.xs.length - line.from === 1) return [qSvg("path", { class: `q-line q-line-lone q-c${line.colour}`, d: `${qPath(line.xs, line.ys, line.from, scale)}h0` })];
    return [qSvg("path", { class: `q-line q-line-${line.style} q-c${line.colour}${line.many ? ` q-run${line.place}` : ""}`, d: qPath(line.xs, line.ys, line.from, scale) })];
  }
  const parts = [qSvg("path", { class: `q-line q-line-link q-c${line.colour}`, d: qPath(line.xs, line.ys, line.from, scale) })];
  const skip = Math.max(1, Math.ceil((line.xs.length - line.from) / 60));
  for (let i = line.xs.length - 1; i >= line.from; i -= skip) parts.push(qSvg("path", { class: `q-dot q-c${line.colour}`, d: qDiamond(scale.toX(line.xs[i]), scale.toY(line.ys[i])) }));
  return parts;
}

function qDiamond(x, y, r = 5) {
  return `M${(x - r).toFixed(1)} ${y.toFixed(1)}L${x.toFixed(1)} ${(y - r).toFixed(1)}L${(x + r).toFixed(1)} ${y.toFixed(1)}L${x.toFixed(1)} ${(y + r).toFixed(1)}z`;
}

/* The line under the pointer, a dot on every curve, and the values in a small box. */
function qReading(figure, lines, rules, scale, at, format, formatX, runs) {
  const reads = lines.filter((line) => line.reads);
  const main = reads.reduce((best, line) => (line.xs.length > best.xs.length ? line : best), reads[0]);
  figure.xs = main.xs;
  const x = main.xs[qNearest(main.xs, at)];
  const px = scale.toX(x);
  const parts = [qSvg("line", { class: "q-cross", x1: px, x2: px, y1: Q_PAD.top, y2: scale.bottom })];
  const axis = figure.panel.x === "step" ? `Step ${formatX(x)}` : `After ${formatX(x)}`;
  const rows = [];
  for (const line of reads) {
    const place = qNearest(line.xs, x);
    if (line.style === "points" && Math.abs(line.xs[place] - x) > (scale.xHigh - scale.xLow) / 30) continue;
    parts.push(qSvg("circle", { class: `q-cross-dot q-c${line.colour}`, cx: scale.toX(line.xs[place]), cy: scale.toY(line.ys[place]), r: 4 }));
    const raw = line.smoothed ? ` (this step ${format(line.raw[place])})` : "";
    rows.push([line.label, `${format(line.ys[place])}${raw}`, line.colour, line.style]);
  }
  for (const rule of rules) rows.push([runs.length > 1 ? `${runs[rule.place].label}, ${rule.label.toLowerCase()}` : rule.label, format(rule.y), runs.length > 1 ? rule.place : rule.colour, "rule"]);
  figure.reading = `${axis}: ${rows.map(([label, value]) => `${label} ${value}`).join(", ")}`;
  const tip = figure.tip;
  tip.replaceChildren(qNode("div", { class: "q-tip-head q-num" }, axis));
  for (const [label, value, colour, style] of rows) {
    const row = tip.appendChild(qNode("div", { class: "q-tip-row" }));
    row.append(qKey(style, colour), qNode("span", {}, label), qNode("b", { class: "q-num" }, value));
  }
  tip.hidden = false;
  const half = tip.offsetWidth / 2;
  const room = figure.plot.clientWidth;
  const side = px + 16 + 2 * half < room ? px + 16 : px - 16 - 2 * half;
  tip.style.left = `${Math.max(0, Math.min(room - 2 * half, side))}px`;
  return parts;
}

function qKey(style, colour, place) {
  const svg = qSvg("svg", { class: "q-key", width: 18, height: 10, "aria-hidden": "true" });
  if (style === "points") svg.append(qSvg("path", { class: `q-line q-line-link q-c${colour}`, d: "M0 5H18" }), qSvg("path", { class: `q-dot q-c${colour}`, d: qDiamond(9, 5, 4) }));
  else if (style === "rule") svg.append(qSvg("line", { class: `q-rule q-c${colour}`, x1: 0, x2: 18, y1: 5, y2: 5 }));
  else svg.append(qSvg("path", { class: `q-line q-line-line q-c${colour}${place === undefined ? "" : ` q-run${place}`}`, d: "M0 5H18" }));
  return svg;
}

function qLegend(node, panel, lines, rules, runs) {
  const many = runs.length > 1;
  const items = lines.filter((line) => line.reads).map((line) => [line.label, line.style, line.colour, many ? line.place : undefined]);
  for (const rule of rules) items.push([many ? `${runs[rule.place].label}, ${rule.label.toLowerCase()}` : rule.label, "rule", many ? rule.place : rule.colour]);
  const wanted = items.length < 2 && !many ? [] : items;
  const mark = JSON.stringify(wanted);
  if (node.dataset.mark === mark) return;
  node.dataset.mark = mark;
  node.replaceChildren(...wanted.map(([label, style, colour, place]) => {
    const item = qNode("span", { class: "q-legend-item" });
    item.append(qKey(style, colour, place), label);
    return item;
  }));
}
