// Where the time went: phases of every step above each other, phases of the whole run, and the starts of the run.

const PHASE_COLOURS = { rollout: 0, train: 1, logprob: 2, sync: 3, reward: 4, offload: 5, other: 7 };
const phaseColour = (phase) => (phase in PHASE_COLOURS ? colourOf(PHASE_COLOURS[phase]) : colourOf(6));
const STEP_PHASES = ["sync", "rollout", "reward", "offload", "logprob", "train"];
const COLUMNS = 200;

// Seconds of each phase for each step, "other" being what no phase has.
function phasesOfSteps(run) {
  const whole = courseOf(run, "time/step");
  if (!whole) return [];
  const courses = STEP_PHASES.filter((phase) => run.metrics.courses[`time/${phase}`]).map((phase) => {
    const course = courseOf(run, `time/${phase}`);
    return [phase, new Map(course.steps.map((step, at) => [step, course.values[at] ?? 0]))];
  });
  return whole.steps.map((step, at) => {
    const parts = courses.map(([phase, by]) => [phase, by.get(step) ?? 0]);
    const rest = (whole.values[at] ?? 0) - parts.reduce((sum, [, seconds]) => sum + seconds, 0);
    return { from: step, to: step, parts: [...parts, ["other", Math.max(0, rest)]] };
  });
}

// Neighbouring steps averaged, so that there are no more columns than can be seen.
function averaged(steps) {
  const size = Math.ceil(steps.length / COLUMNS);
  if (size <= 1) return steps;
  const found = [];
  for (let at = 0; at < steps.length; at += size) {
    const part = steps.slice(at, at + size);
    const mean = (index) => part.reduce((sum, step) => sum + step.parts[index][1], 0) / part.length;
    found.push({ from: part[0].from, to: part[part.length - 1].to, parts: part[0].parts.map(([phase], index) => [phase, mean(index)]) });
  }
  return found;
}

function stack(run) {
  const steps = averaged(phasesOfSteps(run));
  if (!steps.length) return el("p", { class: "dim" }, "No step has been made.");
  const WIDE = 1000, HIGH = 180, BASE = 158, SIDE = 46;
  const most = Math.max(...steps.map(({ parts }) => parts.reduce((sum, [, seconds]) => sum + seconds, 0))) || 1;
  const width = (WIDE - SIDE - 4) / steps.length;
  const says = el("output", { class: "readout" });
  const paths = Object.fromEntries(steps[0].parts.map(([phase]) => [phase, ""]));
  steps.forEach(({ parts }, column) => {
    let y = BASE;
    for (const [phase, seconds] of parts) {
      const size = (seconds / most) * (BASE - 8);
      paths[phase] += `M${(SIDE + column * width).toFixed(2)} ${y.toFixed(2)}h${(width * 0.94).toFixed(2)}v${(-size).toFixed(2)}h${(-width * 0.94).toFixed(2)}z`;
      y -= size;
    }
  });
  const marker = svg("rect", { class: "band", y: 4, height: BASE - 4, width, visibility: "hidden" });
  const tell = (column) => {
    const { from, to, parts } = steps[column];
    marker.setAttribute("x", SIDE + column * width);
    marker.setAttribute("visibility", "visible");
    const total = parts.reduce((sum, [, seconds]) => sum + seconds, 0);
    says.textContent = `step ${from === to ? from : `${from} to ${to}, on average`}: ${duration(total)} = ` + parts.filter(([, seconds]) => seconds > 0).map(([phase, seconds]) => `${phase} ${duration(seconds)}`).join(" + ");
  };
  const columnAt = (event) => {
    const box = picture.getBoundingClientRect();
    return Math.min(steps.length - 1, Math.max(0, Math.floor((((event.clientX - box.left) / box.width) * WIDE - SIDE) / width)));
  };
  let at = steps.length - 1;
  const axis = ticks(0, most, 3).map((value) => { const y = BASE - (value / most) * (BASE - 8); return [svg("line", { class: "grid", x1: SIDE, x2: WIDE, y1: y, y2: y }), svg("text", { class: "tick", x: SIDE - 5, y: y + 3.5, "text-anchor": "end" }, duration(value))]; });
  const named = ticks(steps[0].from, steps[steps.length - 1].to, 8).filter(Number.isInteger).map((step) => svg("text", { class: "tick", "text-anchor": "middle", x: SIDE + ((step - steps[0].from + 0.5) / (steps[steps.length - 1].to - steps[0].from + 1)) * (WIDE - SIDE - 4), y: HIGH - 6 }, shown(step)));
  const picture = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, class: "stack", role: "img", tabindex: 0, "aria-label": "Seconds of every step by phase. Arrow keys move along the steps.",
    onpointermove: (event) => tell((at = columnAt(event))),
    onkeydown: (event) => { const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key]; if (move) { event.preventDefault(); tell((at = Math.min(steps.length - 1, Math.max(0, at + move)))); } },
  }, axis.flat(), Object.entries(paths).map(([phase, d]) => svg("path", { d, fill: phaseColour(phase), "data-phase": phase })), named, marker);
  const keys = Object.keys(paths).map((phase) => el("span", {}, el("i", { style: `background:${phaseColour(phase)}` }), phase));
  return el("div", {}, el("div", { class: "keys" }, keys), el("div", { class: "picture" }, picture), says);
}

// One bar of everything the run did, by its events.
function whole(run) {
  const spent = Object.entries(run.spent).filter(([, seconds]) => seconds > 0);
  const sum = spent.reduce((total, [, seconds]) => total + seconds, 0);
  if (!sum) return null;
  const rows = spent.sort((one, other) => other[1] - one[1]).map(([phase, seconds]) => [DATA.phases[phase] ?? phase, duration(seconds), `${((100 * seconds) / sum).toFixed(1)} %`, el("span", { class: "share", style: `width:${((12 * seconds) / sum).toFixed(2)}em;background:${phaseColour(phase)}` })]);
  return el("details", {}, el("summary", {}, `The whole run: ${duration(sum)}, starts, evaluations and checkpoints included`), table(["what it did", "time", "share", ""], rows, [1, 2]));
}

const BAD = ["crash", "error", "out_of_memory", "node_failure", "preflight", "lost"];
const stateClass = (state) => (state === "success" ? "good" : BAD.includes(state) ? "bad" : ["running", "queued", "starting", "prepared"].includes(state) ? "" : "warn");

function attempts(run) {
  if (!run.attempts.length) return el("p", { class: "dim" }, "Not started yet.");
  const rows = run.attempts.map((one) => [one.number, el("b", { class: stateClass(one.state) }, one.state), one.reason, `${clock(one.started)} UTC`, one.ended ? duration(one.ended - one.started) : "-", `${one.first_step} to ${one.last_step}`, one.nodes.join(", "), one.job_id ?? "-"]);
  return table(["start", "ended as", "because", "begun", "lasted", "saved steps", "nodes", "job"], rows, [0, 4]);
}

function planned(run) {
  const ratio = (value) => (value === null ? "-" : el("span", { class: value > 1.25 || value < 0.8 ? "warn" : "good" }, value.toFixed(2)));
  const figure = (value) => (value === null ? "-" : value.toFixed(value < 10 ? 2 : 1));
  const lines = (found) => found.map((one) => [one.what, figure(one.planned), figure(one.measured), ratio(one.ratio)]);
  const some = (found, key) => found.some((one) => one[key] !== null);
  const time = some(run.time, "planned") || some(run.time, "measured") ? table(["seconds of a step", "planned", "measured", "ratio"], lines(run.time), [1, 2, 3]) : null;
  const memory = some(run.memory, "planned") || some(run.memory, "measured") ? table(["GiB of the fullest device", "planned", "measured", "ratio"], lines(run.memory), [1, 2, 3]) : null;
  const none = some(run.time, "planned") ? null : el("p", { class: "dim" }, "The plan has no times: they are estimated for GPUs alone, and where the model's config.json was there.");
  return el("div", {}, none, el("div", { class: "pair" }, time, memory), run.advice.length ? el("ul", {}, run.advice.map((text) => el("li", {}, text))) : null);
}
