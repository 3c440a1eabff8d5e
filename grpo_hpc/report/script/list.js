// The runs of a folder: how each stands, with a link to its page, or to one page of those that are marked.

const PERIOD = 5000;
const marks = new Set();
const pageOf = (names) => `runs?${new URLSearchParams(names.map((name) => ["run", name]))}`;
const together = el("a", { role: "button", hidden: true }, "");
const wanted = el("input", { id: "filter", type: "search", placeholder: "part of a name", oninput: () => fill() });
const rowsOf = el("div");
const contact = el("p", { class: "note", role: "status", hidden: true });

function spark(values) {
  const known = values.filter((value) => value !== null);
  if (known.length < 2) return "";
  const low = Math.min(...known), span = Math.max(...known) - low || 1;
  let path = "", pen = "M";
  values.forEach((value, at) => { if (value === null) pen = "M"; else { path += `${pen}${((at / (values.length - 1)) * 98 + 1).toFixed(1)} ${(19 - ((value - low) / span) * 18).toFixed(1)}`; pen = "L"; } });
  return svg("svg", { width: 100, height: 20, viewBox: "0 0 100 20", "aria-hidden": true }, svg("path", { d: path, fill: "none", stroke: colourOf(0), "stroke-width": 1.5 }));
}

function mark(name) {
  return el("input", { type: "checkbox", "data-key": `mark ${name}`, checked: marks.has(name), "aria-label": `mark ${name}`, onchange: (event) => { if (event.target.checked) marks.add(name); else marks.delete(name); join(); } });
}

function join() {
  together.hidden = marks.size < 2;
  together.textContent = `look at these ${marks.size} together`;
  together.href = pageOf([...marks]);
}

function line(run) {
  const left = run.seconds_left === null ? "" : `, ${duration(run.seconds_left)} left`;
  return [mark(run.name), el("a", { href: pageOf([run.name]), "data-key": run.name }, run.name), el("b", { class: stateClass(run.state), title: run.detail }, run.state), `${run.step} of ${run.total_steps}${left}`, run.reward === null ? "-" : shown(run.reward), spark(run.rewards), `${clock(run.changed)} UTC`];
}

// Draw the list again; what somebody uses or has unfolded stays so.
function fill() {
  const used = rowsOf.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const unfolded = rowsOf.querySelector("details")?.open ?? false;
  const found = DATA.runs.filter((run) => run.name.toLowerCase().includes(wanted.value.toLowerCase()));
  const over = DATA.passed_over.length ? el("details", { open: unfolded }, el("summary", { class: "dim", "data-key": "others" }, `${DATA.passed_over.length} further entries are no runs, or damaged`), table(["path", "why"], DATA.passed_over)) : null;
  rowsOf.replaceChildren(...[found.length ? table(["", "run", "state", "step", "reward", "its course", "last heard of"], found.map(line), [4]) : el("p", { class: "dim" }, "There is no run here."), over].filter(Boolean));
  if (used !== undefined) rowsOf.querySelector(`[data-key="${CSS.escape(used)}"]`)?.focus({ preventScroll: true });
}

async function ask() {
  if (document.hidden) return;
  try {
    Object.assign(DATA, await askServer("list"));
    contact.hidden = true;
    fill();
  } catch (error) {
    contact.textContent = `The server does not answer, and this page stays as it is: ${error.message}`;
    contact.hidden = false;
  }
}

fill();
document.querySelector("main").append(el("div", { class: "dim path" }, DATA.folder), contact, el("div", { class: "controls" }, el("label", {}, "runs ", wanted), together), rowsOf);
setInterval(ask, PERIOD);
document.addEventListener("visibilitychange", ask);
