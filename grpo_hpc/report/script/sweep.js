// Several runs: a table of what differs and what came out of it, and the same as parallel coordinates.

function lastFifth(run, name) {
  const values = (courseOf(run, name)?.values ?? []).filter((value) => value !== null);
  const last = values.slice(-Math.max(1, Math.floor(values.length / 5)));
  return last.length ? last.reduce((sum, value) => sum + value, 0) / last.length : null;
}

function outcomes() {
  const held = Object.keys(DATA.metrics).filter((name) => /^eval\/.+\/mean$/.test(name));
  const wanted = ["reward/mean", ...held, "completions/mean_length", "kl", "time/step"];
  return wanted.filter((name) => DATA.runs.some((run) => run.metrics.courses[name]));
}

function comparison() {
  const keys = DATA.keys.slice(0, 8), names = outcomes();
  const rows = DATA.runs.map((run) => [run.label, el("b", { class: stateClass(run.state) }, run.state), ...keys.map((key) => settingOf(run, key)), ...names.map((name) => { const value = lastFifth(run, name); return value === null ? "-" : shown(value); })]);
  const made = table(["run", "state", ...keys.map(short), ...names.map(titled)], rows, [...keys.keys(), ...names.map((_, at) => keys.length + at)].map((at) => at + 2));
  const lines = [...made.querySelectorAll("tbody tr")];
  const highlight = (number) => {
    lines.forEach((line, at) => line.classList.toggle("lit", at === number));
    for (const path of document.querySelectorAll(".parallel path")) path.classList.toggle("lit", Number(path.dataset.run) === number);
  };
  lines.forEach((line, number) => { line.tabIndex = 0; line.addEventListener("pointerenter", () => highlight(number)); line.addEventListener("focus", () => highlight(number)); });
  const note = DATA.keys.length > keys.length ? ` ${DATA.keys.length - keys.length} further keys differ: they are listed under Run files.` : "";
  return el("div", {}, el("p", { class: "dim" }, `Means of the last fifth of each run.${note}`), made, parallel(keys, names, highlight));
}

// The label where its group is not said: "step" alone would be a number of steps.
function titled(name) {
  const { label, unit } = DATA.metrics[name];
  return `${name.startsWith("eval/") ? "held out: " : ""}${label}${unit ? ` (${unit})` : ""}`;
}

const short = (key) => key.slice(key.lastIndexOf(".") + 1);
const settingOf = (run, key) => run.settings[key] ?? run.settings[Object.keys(run.settings).find((name) => name.endsWith(`.${key}`))] ?? "-";

function axisOf(title, values) {
  const numbers = values.map((value) => (typeof value === "number" ? value : value === null || value === "-" ? NaN : Number(value)));
  const known = numbers.filter((value) => !Number.isNaN(value));
  if (known.length && values.every((value, at) => value === null || value === "-" || !Number.isNaN(numbers[at]))) {
    const log = known.every((value) => value > 0) && Math.max(...known) > 20 * Math.min(...known);
    const place = (value) => (log ? Math.log(value) : value);
    const low = Math.min(...known.map(place)), span = Math.max(...known.map(place)) - low;
    return { title, ends: [shown(Math.min(...known)), shown(Math.max(...known))], at: numbers.map((value) => (Number.isNaN(value) ? null : (span ? (place(value) - low) / span : 0.5))) };
  }
  const kinds = [...new Set(values)];
  return { title, ends: [String(kinds[0]), String(kinds[kinds.length - 1])], at: values.map((value) => kinds.length > 1 ? kinds.indexOf(value) / (kinds.length - 1) : 0.5) };
}

function parallel(keys, names, highlight) {
  const axes = [...keys.map((key) => axisOf(short(key), DATA.runs.map((run) => settingOf(run, key)))), ...names.map((name) => axisOf(titled(name), DATA.runs.map((run) => lastFifth(run, name))))];
  if (axes.length < 2 || DATA.runs.length < 3) return null;
  const WIDE = 1000, HIGH = 260, SIDE = 70, gap = (WIDE - 2 * SIDE) / (axes.length - 1);
  const y = (share) => HIGH - 40 - share * (HIGH - 80);
  const cut = (text) => (text.length > 16 ? `${text.slice(0, 15)}…` : text);
  const poles = axes.flatMap((axis, at) => [
    svg("line", { class: "pole", x1: SIDE + at * gap, x2: SIDE + at * gap, y1: y(0), y2: y(1) }),
    svg("text", { class: "tick", x: SIDE + at * gap, y: 12, "text-anchor": "middle" }, cut(axis.title)),
    svg("text", { class: "tick", x: SIDE + at * gap, y: 28, "text-anchor": "middle" }, cut(axis.ends[1])),
    svg("text", { class: "tick", x: SIDE + at * gap, y: HIGH - 22, "text-anchor": "middle" }, cut(axis.ends[0])),
  ]);
  const lines = DATA.runs.map((run, number) => {
    let path = "", pen = "M";
    axes.forEach((axis, at) => { if (axis.at[number] === null) pen = "M"; else { path += `${pen}${SIDE + at * gap} ${y(axis.at[number])}`; pen = "L"; } });
    return svg("path", { d: path, "data-run": number, stroke: colourOf(number), "stroke-dasharray": dashOf(number) || null, onpointerenter: () => highlight(number) }, svg("title", {}, run.label));
  });
  const picture = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, class: "parallel", role: "img", "aria-label": "One line for each run through its settings and outcomes; the table above has the same numbers." }, poles, lines);
  return el("div", { class: "picture" }, picture);
}
