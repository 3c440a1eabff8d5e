// A page from a server goes on growing: every few seconds it asks for what is new, as long as somebody can see it.

const PERIOD = 5000;
const heads = document.querySelector(".heads");
const contact = el("p", { class: "note", role: "status", hidden: true });
heads.before(contact);

const lastStep = (run) => Object.keys(run.metrics.courses).reduce((last, name) => Math.max(last, courseOf(run, name).steps.at(-1) ?? -1), -1);
const charted = () => Object.keys(DATA.metrics).map((name) => `${name} ${unchanging(name) === undefined}`).join();

// Add courses behind the step `after` to those that are known.
function grow(run, courses, after) {
  const all = Object.fromEntries(Object.keys(run.metrics.courses).map((name) => [name, courseOf(run, name)]));
  for (const [name, { at, values }] of Object.entries(courses)) {
    const known = all[name] ?? { steps: [], values: [] };
    const kept = known.steps.filter((step) => step <= after).length;
    all[name] = { steps: [...known.steps.slice(0, kept), ...at], values: [...known.values.slice(0, kept), ...values] };
  }
  for (const [name, { steps, values }] of Object.entries(all)) run.metrics.courses[name] = { at: steps, values };
  run.metrics.steps = courseOf(run, "time/step")?.steps ?? [];
  run.hours = undefined;
}

// Fill a section again; what somebody has unfolded there stays so.
function refill(id, content) {
  const place = document.getElementById(id);
  const unfolded = [...place.querySelectorAll("details")].map((one) => one.open);
  place.replaceChildren(place.querySelector("h2"), ...[content].flat(Infinity).filter(Boolean));
  place.querySelectorAll("details").forEach((one, at) => { one.open = unfolded[at] ?? one.open; });
}

function show(before) {
  const now = charted();
  if (now === before) draw(); else fillGroups();
  heads.replaceChildren(...head().childNodes);
  if (several) refill("runs", comparison());
  refill("time", each((run) => [stack(run), whole(run)]));
  refill("plan", each(planned));
  refill("starts", each(attempts));
  fillSteps();
}

async function ask() {
  if (document.hidden) return;
  const after = DATA.runs.map((run) => lastStep(run) - 1); // values of the newest step may come in two parts
  try {
    const news = await askServer("changes", DATA.live.flatMap((name, at) => [["run", name], ["after", after[at]]]));
    contact.hidden = true;
    const before = charted();
    let moved = false;
    DATA.runs.forEach((run, at) => {
      const { courses, completions, ...facts } = news.runs[DATA.live[at]] ?? {};
      if (!courses) return;
      if (facts.attempts.length !== run.attempts.length || facts.step < run.step) { location.reload(); return; } // steps may have been taken back
      moved ||= facts.step !== run.step || facts.state !== run.state || facts.detail !== run.detail || Object.keys(courses).some((name) => !(name in DATA.metrics));
      Object.assign(run, facts);
      run.completions.steps = completions;
      grow(run, courses, after[at]);
    });
    DATA.metrics = { ...DATA.metrics, ...news.metrics };
    if (moved) show(before);
  } catch (error) {
    contact.textContent = `The server does not answer, and this page stays as it is: ${error.message}`;
    contact.hidden = false;
  }
  if (logText.getBoundingClientRect().top < 2 * innerHeight) readLog(); // unless it is far from what is seen
}

function showNewest() {
  const newest = DATA.runs[0].completions.steps.at(-1);
  if (newest === undefined) return;
  chosen.step = String(newest);
  fillSteps();
  fetchStep(0, newest);
}

showNewest();
readLog();
setInterval(ask, PERIOD);
document.addEventListener("visibilitychange", ask);
