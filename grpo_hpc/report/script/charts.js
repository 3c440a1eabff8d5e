// Curves: one chart for each metric, all with the same steps, zoom, smoothing and cursor.

const view = { hours: false, smoothing: 0, log: false, hidden: new Set(), zoom: null, filter: "" };
const WIDTH = 400, HEIGHT = 170, LEFT = 46, RIGHT = 18, TOP = 8, BOTTOM = 20;
const charts = [];

// Steps and values of a metric in one run; null where the run has no such metric.
function courseOf(run, name) {
  const found = run.metrics.courses[name];
  return found ? { steps: found.at ?? run.metrics.steps, values: found.values } : null;
}

// Hours of optimizer steps up to each step, those of evaluations and checkpoints not counted.
function hoursOf(run) {
  if (!run.hours) {
    run.hours = new Map([[0, 0]]);
    let sum = 0;
    const times = courseOf(run, "time/step");
    times?.steps.forEach((step, at) => run.hours.set(step, (sum += times.values[at] ?? 0) / 3600));
  }
  return run.hours;
}

// A moving average that forgets exponentially, without the pull of its beginning (Kingma and Ba, arXiv 1412.6980, section 3).
function smoothed(values, weight) {
  let sum = 0, mass = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return sum / mass;
  });
}

// What is drawn of a metric: for each run that is shown its points (x, step, raw value, drawn value).
function linesOf(name) {
  return DATA.runs.flatMap((run, number) => {
    const course = view.hidden.has(number) ? null : courseOf(run, name);
    if (!course) return [];
    const hours = view.hours ? hoursOf(run) : null;
    const drawn = view.smoothing ? smoothed(course.values, view.smoothing) : course.values;
    const points = course.steps.map((step, at) => ({ x: hours ? hours.get(step) : step, step, raw: course.values[at], value: drawn[at] }));
    return [{ number, points: points.filter((point) => point.x !== undefined) }];
  });
}

const within = ({ x }) => !view.zoom || (x >= view.zoom[0] && x <= view.zoom[1]);
const height = (value) => (view.log ? (value > 0 ? Math.log10(value) : null) : value);

function limits(lines, kind) {
  let low = Infinity, high = -Infinity;
  for (const { points } of lines)
    for (const point of points) {
      if (!within(point)) continue;
      for (const value of kind === "x" ? [point.x] : [height(point.value ?? NaN), height(point.raw ?? NaN)]) {
        if (value === null || Number.isNaN(value)) continue;
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
  if (low > high) return null;
  const room = kind === "x" ? 0 : (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return low === high && kind === "x" ? [low - 0.5, high + 0.5] : [low - room, high + room];
}

// A path through points; of those that share a column of pixels only the least and the greatest are drawn.
function pathOf(points, pick, xOf, yOf) {
  let path = "", pen = "M", column = null, low = null, high = null;
  const write = (x, y) => { path += `${pen}${x.toFixed(1)} ${y.toFixed(1)}`; pen = "L"; };
  const flush = () => {
    if (column === null) return;
    for (const [x, y] of low[0] <= high[0] ? [low, high] : [high, low]) write(x, y);
    column = null;
  };
  const dense = points.length > 2 * WIDTH;
  for (const point of points) {
    const value = pick(point);
    const y = value === null ? null : height(value);
    if (y === null) { flush(); pen = "M"; continue; }
    const at = [xOf(point.x), yOf(y)];
    if (!dense) { write(...at); continue; }
    if (column !== Math.round(at[0])) { flush(); column = Math.round(at[0]); low = high = at; }
    if (at[1] < low[1]) low = at;
    if (at[1] > high[1]) high = at;
  }
  flush();
  return path;
}

class Chart {
  constructor(name) {
    this.name = name;
    this.about = DATA.metrics[name];
    this.title = el("button", { type: "button", title: `${this.about.meaning} Click for a large chart.`.trim(), onclick: () => this.enlarge() }, this.about.label);
    this.readout = el("output", { class: "readout" });
    this.tip = el("div", { class: "tip", hidden: true });
    this.picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: 0, "aria-label": `${name}. ${this.about.meaning} Arrow keys move along the steps.` });
    const unit = this.about.unit ? el("span", { class: "dim" }, ` ${this.about.unit}`) : null;
    this.figure = el("figure", { class: "chart", "data-metric": name }, el("figcaption", {}, this.title, unit, this.readout), this.picture, this.tip);
    this.listen();
  }

  listen() {
    const at = (event) => this.toX(event);
    this.picture.addEventListener("pointermove", (event) => { cursorTo(at(event), this); if (this.from !== undefined) this.band(at(event)); });
    this.picture.addEventListener("pointerleave", () => { if (this.from === undefined) cursorTo(null, this); });
    this.picture.addEventListener("pointerdown", (event) => { this.from = at(event); this.picture.setPointerCapture(event.pointerId); });
    this.picture.addEventListener("pointerup", (event) => this.zoomTo(at(event)));
    this.picture.addEventListener("pointercancel", () => { this.from = undefined; draw(); });
    this.picture.addEventListener("dblclick", () => { view.zoom = null; draw(); });
    this.picture.addEventListener("keydown", (event) => this.key(event));
    this.picture.addEventListener("blur", () => cursorTo(null, this));
  }

  toX(event) {
    if (!this.span) return null;
    const box = this.picture.getBoundingClientRect();
    const share = (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT);
    return this.span[0] + Math.min(1, Math.max(0, share)) * (this.span[1] - this.span[0]);
  }

  band(x) {
    const [from, to] = [this.xOf(Math.min(x, this.from)), this.xOf(Math.max(x, this.from))];
    this.marked.setAttribute("x", from);
    this.marked.setAttribute("width", to - from);
  }

  zoomTo(x) {
    const [from, to] = [Math.min(x, this.from), Math.max(x, this.from)];
    this.from = undefined;
    if (this.span && to - from > (this.span[1] - this.span[0]) * 0.02) view.zoom = [from, to];
    draw();
  }

  enlarge() {
    this.figure.classList.toggle("large");
    this.figure.scrollIntoView({ block: "nearest" });
  }

  key(event) {
    const points = this.lines?.[0]?.points.filter(within) ?? [];
    if (event.key === "Escape" && view.zoom) { view.zoom = null; draw(); return; }
    if (event.key === "Enter") { this.enlarge(); return; }
    if (!points.length) return;
    let at = this.cursor === undefined || this.cursor === null ? points.length - 1 : nearest(points, this.cursor);
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - 10, PageDown: at + 10, Home: 0, End: points.length - 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    at = Math.min(points.length - 1, Math.max(0, moves[event.key]));
    cursorTo(points[at].x, this);
  }

  draw() {
    this.lines = linesOf(this.name);
    this.span = limits(this.lines, "x");
    const range = limits(this.lines, "y");
    this.cursor = null;
    if (!this.span || !range) { this.span = null; this.picture.replaceChildren(svg("text", { x: LEFT, y: 60, class: "dim" }, this.nothing())); this.readout.textContent = ""; return; }
    if (view.zoom) this.span = view.zoom;
    this.xOf = (x) => LEFT + ((x - this.span[0]) / (this.span[1] - this.span[0])) * (WIDTH - LEFT - RIGHT);
    this.yOf = (y) => HEIGHT - BOTTOM - ((y - range[0]) / (range[1] - range[0])) * (HEIGHT - TOP - BOTTOM);
    this.line = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    this.marked = svg("rect", { class: "band", y: TOP, height: HEIGHT - TOP - BOTTOM, width: 0 });
    this.dots = svg("g");
    this.picture.replaceChildren(...this.axes(range), ...this.lines.flatMap((line) => this.curve(line)), this.marked, this.line, this.dots);
    this.say(null);
  }

  nothing() {
    return view.log ? "no value above 0 to draw on a log scale" : "no finite values here";
  }

  axes(range) {
    const found = [];
    for (const at of view.log ? logTicks(...range) : ticks(...range, 4)) {
      const y = this.yOf(at);
      found.push(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }));
      found.push(svg("text", { class: "tick", x: LEFT - 5, y: y + 3.5, "text-anchor": "end" }, shown(view.log ? Number((10 ** at).toPrecision(3)) : at)));
    }
    for (const at of ticks(...this.span, 5)) {
      if (!view.hours && !Number.isInteger(at)) continue;
      found.push(svg("text", { class: "tick", x: this.xOf(at), y: HEIGHT - 5, "text-anchor": "middle" }, view.hours ? `${shown(at)} h` : shown(at)));
    }
    return found;
  }

  curve({ number, points }) {
    const kept = points.filter(within);
    const look = { fill: "none", stroke: colourOf(number), "stroke-dasharray": dashOf(number) || null };
    const found = [];
    if (view.smoothing) found.push(svg("path", { ...look, class: "raw", d: pathOf(kept, (point) => point.raw, this.xOf, this.yOf) }));
    if (kept.length === 1 && height(kept[0].value ?? NaN) !== null) found.push(svg("circle", { cx: this.xOf(kept[0].x), cy: this.yOf(height(kept[0].value)), r: 3, fill: colourOf(number) }));
    found.push(svg("path", { ...look, class: "curve", "data-run": number, d: pathOf(kept, (point) => point.value, this.xOf, this.yOf) }));
    for (const point of kept) if (point.raw === null) found.push(svg("path", { class: "lost", d: `M${this.xOf(point.x).toFixed(1)} ${HEIGHT - BOTTOM}v-7` }));
    return found;
  }

  // Show the values nearest to x; at the end of each run where x is null.
  say(x, here = false) {
    if (!this.span) return;
    this.cursor = x;
    const found = this.lines.filter(({ points }) => points.length).map((line) => ({ ...line, point: line.points[x === null ? line.points.length - 1 : nearest(line.points, x)] }));
    const known = x !== null && found.length && x >= this.span[0] && x <= this.span[1];
    this.line.setAttribute("visibility", known ? "visible" : "hidden");
    if (known) { const at = this.xOf(found[0].point.x); this.line.setAttribute("x1", at); this.line.setAttribute("x2", at); }
    const dots = known ? found.filter(({ point }) => height(point.value ?? NaN) !== null) : [];
    this.dots.replaceChildren(...dots.map(({ number, point }) => svg("circle", { r: 3, fill: colourOf(number), cx: this.xOf(point.x), cy: this.yOf(height(point.value)) })));
    this.readout.textContent = found.length === 1 ? `${shown(found[0].point.raw)}${x === null ? "" : ` at step ${found[0].point.step}`}` : "";
    this.tip.hidden = !(here && known);
    if (!this.tip.hidden) this.point(found);
  }

  point(found) {
    const value = (point) => shown(point.raw) + (view.smoothing && point.value !== null ? ` (smoothed ${shown(point.value)})` : "");
    const named = ({ number, point }) => el("div", {}, el("i", { style: `background:${colourOf(number)}` }), el("b", {}, value(point)), DATA.runs.length > 1 ? ` ${DATA.runs[number].label}` : "");
    this.tip.replaceChildren(el("div", { class: "dim" }, `step ${found[0].point.step}`), ...found.slice(0, 12).map(named));
    if (found.length > 12) this.tip.append(el("div", { class: "dim" }, `and ${found.length - 12} more`));
    const share = this.xOf(found[0].point.x) / WIDTH;
    Object.assign(this.tip.style, share < 0.5 ? { left: `${share * 100 + 3}%`, right: "auto" } : { right: `${(1 - share) * 100 + 3}%`, left: "auto" });
  }
}

function nearest(points, x) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle].x <= x) low = middle; else high = middle;
  }
  return x - points[low].x <= points[high].x - x ? low : high;
}

let waiting = null;
function cursorTo(x, chart) {
  if (waiting === null) requestAnimationFrame(() => { const [at, here] = waiting; waiting = null; for (const one of charts) if (one.drawn) one.say(at, one === here); });
  chart.cursor = x; // at once: the next key may come before the next picture
  waiting = [x, chart];
}

// Charts that are not on the screen are drawn when they come near it.
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const chart = charts.find((one) => one.figure === entry.target);
    chart.near = entry.isIntersecting;
    if (chart.near && !chart.drawn) { chart.draw(); chart.drawn = true; }
  }
}, { rootMargin: "600px" });

function draw() {
  for (const chart of charts) {
    chart.drawn = chart.near;
    if (chart.near) chart.draw();
  }
}

// The value of a metric that never changes in any run; undefined for all others.
function unchanging(name) {
  const courses = DATA.runs.map((run) => courseOf(run, name)?.values ?? []);
  const only = courses.find((values) => values.length)?.[0];
  const still = courses.every((values) => values.every((value) => value === only));
  return still && only !== null && DATA.runs[0].metrics.steps.length > 1 ? only : undefined;
}

const groupsOfCharts = el("div");

function fillGroups() {
  watcher.disconnect();
  charts.length = 0;
  const grids = DATA.groups.map((group) => {
    const names = Object.keys(DATA.metrics).filter((name) => DATA.metrics[name].group === group);
    const values = new Map(names.map((name) => [name, unchanging(name)]));
    const made = names.filter((name) => values.get(name) === undefined).map((name) => new Chart(name));
    const still = names.filter((name) => values.get(name) !== undefined).map((name) => el("span", { title: DATA.metrics[name].meaning, "data-metric": name }, `${DATA.metrics[name].label} ${shown(values.get(name))} `, el("span", { class: "dim" }, DATA.metrics[name].unit)));
    charts.push(...made);
    made.forEach((chart) => watcher.observe(chart.figure));
    return names.length ? el("details", { class: "group", open: true }, el("summary", {}, `${group} `, el("span", { class: "dim" }, names.length)), el("div", { class: "grid" }, made.map((chart) => chart.figure)), still.length ? el("p", { class: "still" }, el("span", { class: "dim" }, "the same at every step: "), still) : null) : null;
  });
  groupsOfCharts.replaceChildren(...grids.filter(Boolean));
  filterCharts();
}

function filterCharts() {
  const wanted = view.filter.toLowerCase();
  for (const chart of charts) chart.figure.hidden = !`${chart.name} ${chart.about.label}`.toLowerCase().includes(wanted);
  for (const still of groupsOfCharts.querySelectorAll(".still>[data-metric]")) still.hidden = !`${still.dataset.metric} ${still.textContent}`.toLowerCase().includes(wanted);
  for (const group of groupsOfCharts.querySelectorAll(".group")) group.hidden = !group.querySelector("[data-metric]:not([hidden])");
}

function curves() {
  fillGroups();
  return [controls(), groupsOfCharts];
}

function controls() {
  const weight = el("output", {}, "0");
  const redraw = (change) => (event) => { change(event.target); draw(); };
  return el("div", { class: "controls" },
    el("label", {}, "smoothing ", el("input", { id: "smoothing", type: "range", min: 0, max: 0.98, step: 0.02, value: 0, oninput: redraw((input) => { view.smoothing = Number(input.value); weight.textContent = input.value; }) }), weight),
    el("label", {}, el("input", { id: "log", type: "checkbox", onchange: redraw((input) => { view.log = input.checked; }) }), " log scale"),
    el("label", {}, el("input", { id: "hours", type: "checkbox", onchange: redraw((input) => { view.hours = input.checked; view.zoom = null; }) }), " by hours of steps"),
    el("label", {}, "metrics ", el("input", { id: "filter", type: "search", placeholder: "part of a name", oninput: (event) => { view.filter = event.target.value; filterCharts(); } })),
    el("button", { type: "button", onclick: () => { view.zoom = null; draw(); } }, "all steps"),
    el("span", { class: "dim" }, "drag over a chart to zoom; arrow keys move the cursor"));
}

function legend() {
  const toggle = (number) => (event) => { if (event.target.checked) view.hidden.delete(number); else view.hidden.add(number); draw(); };
  const stroke = (number) => svg("svg", { width: 26, height: 10, "aria-hidden": true }, svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, stroke: colourOf(number), "stroke-width": 3, "stroke-dasharray": dashOf(number) || null }));
  return el("div", { class: "legend" }, DATA.runs.map((run, number) => el("label", {}, el("input", { type: "checkbox", checked: true, onchange: toggle(number) }), " ", stroke(number), " ", run.label)));
}
