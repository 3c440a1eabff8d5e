// The page from top to bottom.

const several = DATA.runs.length > 1;

function section(id, title, ...content) {
  return el("section", { id }, el("h2", {}, title), content);
}

const each = (made) => DATA.runs.map((run, number) => {
  const content = made(run);
  return several && content ? el("div", {}, el("h3", {}, el("i", { class: "dot", style: `background:${colourOf(number)}` }), run.label), content) : content;
});

function head() {
  const facts = (run) => [`step ${run.step} of ${run.steps}`, run.attempts.length > 1 ? `${run.attempts.length} starts` : null, run.detail || null].filter(Boolean).join(", ");
  return el("div", { class: "heads" }, DATA.runs.slice(0, 12).map((run, number) => el("div", { class: "head", style: `border-color:${colourOf(number)}` }, several ? el("b", {}, run.label, " ") : null, el("b", { class: stateClass(run.state) }, run.state), el("div", {}, facts(run)), el("div", { class: "dim path" }, run.path))), DATA.runs.length > 12 ? el("div", { class: "dim" }, `and ${DATA.runs.length - 12} more`) : null);
}

const labels = () => DATA.runs.map((run) => run.label);

function differing(found, none) {
  return found.length ? table(["key", ...labels()], found.map((one) => [one.key, ...one.values.map((value) => value ?? "-")])) : el("p", { class: "dim" }, none);
}

const listed = (values) => table(["key", "value"], Object.entries(values));

function settings() {
  const files = DATA.runs.slice(0, 8).map((run) => el("details", {}, el("summary", {}, several ? `The run file of ${run.label}` : "The resolved run file"), listed(run.settings)));
  return [several ? differing(DATA.differences.settings, "The run files say the same.") : null, ...files];
}

function environment() {
  const core = (values) => Object.fromEntries(Object.entries(values).filter(([key]) => !key.startsWith("packages.")));
  const first = DATA.runs[0].environment;
  const packages = el("details", {}, el("summary", {}, several ? `All packages of ${DATA.runs[0].label}` : "All packages"), listed(Object.fromEntries(Object.entries(first).filter(([key]) => key.startsWith("packages.")))));
  return [several ? differing(DATA.differences.environment, "The environments are the same.") : listed(core(first)), packages];
}

const sections = [
  several ? section("runs", "Runs", comparison()) : null,
  section("curves", "Curves", several ? legend() : null, curves()),
  section("time", "Where the time went", each((run) => [stack(run), whole(run)])),
  section("plan", "Planned and measured", each(planned)),
  section("starts", "Starts", each(attempts)),
  section("completions", "Completions", browser()),
  DATA.live ? section("log", "Log", logs()) : null,
  section("file", several ? "Run files" : "Run file", settings()),
  section("environment", "Environment", environment()),
].filter(Boolean);

const links = [DATA.live ? el("a", { href: "./" }, "All runs") : null, ...sections.map((one) => el("a", { href: `#${one.id}` }, one.querySelector("h2").textContent))].filter(Boolean);
document.querySelector("main").append(head(), ...DATA.notes.map((note) => el("p", { class: "note" }, note)), el("nav", {}, links), ...sections);
