// What the model wrote: filters, groups side by side. All of it is text that nobody has vouched for.

const LONG = 12000, FIRST = 8;
const HIDDEN_SIGNS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
const IMAGE = /^data:image\/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/=\s]+$/;
const chosen = { run: 0, step: "", text: "", low: "", high: "", finish: "", sort: "order", groups: false, colour: "", shown: FIRST };
let list = null, count = null, steps = null, ends = null;

const picture = (sign) => (sign.charCodeAt(0) < 32 ? String.fromCharCode(0x2400 + sign.charCodeAt(0)) : `U+${sign.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}`);

// Text with control signs made visible, and what was searched for marked.
function marked(text, wanted) {
  const made = document.createDocumentFragment();
  const plain = (part) => {
    let from = 0;
    for (const found of part.matchAll(HIDDEN_SIGNS)) {
      made.append(part.slice(from, found.index), el("span", { class: "sign", title: "a control sign" }, picture(found[0])));
      from = found.index + 1;
    }
    made.append(part.slice(from));
  };
  const lower = wanted ? text.toLowerCase() : "";
  let from = 0;
  for (let at = wanted ? lower.indexOf(wanted) : -1; at >= 0 && lower.length === text.length; at = lower.indexOf(wanted, from)) {
    plain(text.slice(from, at));
    made.append(el("mark", {}, text.slice(at, at + wanted.length)));
    from = at + wanted.length;
  }
  plain(text.slice(from));
  return made;
}

function written(text, kind = "") {
  const wanted = chosen.text.toLowerCase();
  const block = el("pre", { dir: "auto", class: kind }, marked(text.slice(0, LONG), wanted));
  if (text.length <= LONG) return block;
  const more = el("button", { type: "button", onclick: () => { block.replaceChildren(marked(text, wanted)); more.remove(); } }, `show all ${text.length.toLocaleString("en")} characters`);
  return el("div", {}, block, more);
}

const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2) ?? "");

function message({ role, content, tool_calls: calls, ...rest }) { // of a chat: what the system and tools say is folded
  const parts = Array.isArray(content) ? content : [content ?? ""];
  const said = parts.map(shownPart);
  const more = [calls ? folded("tool calls", calls) : null, Object.keys(rest).length ? folded("more", rest) : null];
  const named = el("b", { class: "role" }, asText(role));
  return role === "system" || role === "tool" ? el("details", {}, el("summary", {}, named), said, more) : el("div", {}, named, said, more);
}

// Text as text, images that the record itself holds as images, anything else folded. Nothing is loaded from elsewhere.
function shownPart(part) {
  if (typeof part === "string") return written(part);
  if (part?.type === "text") return written(asText(part.text));
  const source = part?.image_url?.url ?? part?.image ?? part?.url;
  if (typeof source === "string" && IMAGE.test(source)) return el("img", { src: source, alt: "an image of the record" });
  return folded(part?.type ?? "part", part);
}

const folded = (title, value) => el("details", {}, el("summary", {}, asText(title)), written(asText(value)));

function card(row) {
  const sign = row.advantage === null || row.advantage === undefined ? "" : row.advantage > 0 ? "up" : row.advantage < 0 ? "down" : "";
  const facts = [
    ["reward", el("b", {}, (row.reward ?? null) === null ? "none" : shown(row.reward))],
    ["advantage", el("b", { class: sign }, (row.advantage ?? null) === null ? "none" : `${row.advantage > 0 ? "+" : ""}${shown(row.advantage)}`)],
    ...(Object.keys(row.rewards ?? {}).length > 1 ? Object.entries(row.rewards).map(([name, value]) => [name, value === null ? "none" : shown(value)]) : []),
    ["tokens", row.tokens],
    ["ended by", row.finish_reason ?? "-"],
    ["mean log-probability", (row.mean_rollout_logprob ?? null) === null ? "-" : shown(row.mean_rollout_logprob)],
    ["weights of step", row.weight_version ?? "-"],
  ];
  const failed = Object.entries(row.failures ?? {}).map(([name, why]) => el("div", { class: "bad" }, `${name} failed: ${asText(why)}`));
  if (row.environment_failure) failed.push(el("div", { class: "bad" }, `the environment failed: ${asText(row.environment_failure)}`));
  const tokens = chosen.colour ? tokensOf(row) : null, turns = Array.isArray(row.turns) ? row.turns : [];
  const said = tokens ? coloured(tokens) : turns.length ? turns.map(message) : written(asText(row.completion), "said");
  const dropped = row.dropped ? el("div", { class: "warn" }, "not trained on") : null;
  return el("article", { class: `card ${sign}` }, el("dl", {}, facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, String(value?.nodeType ? "" : value), value?.nodeType ? value : null)))), failed, dropped, said);
}

function kept(row) {
  const wanted = chosen.text.toLowerCase();
  if (chosen.step !== "" && row.step !== Number(chosen.step)) return false;
  if (chosen.finish && row.finish_reason !== chosen.finish) return false;
  const reward = row.reward ?? NaN; // one without a reward is outside of every bound
  if (chosen.low !== "" && !(reward >= Number(chosen.low))) return false;
  if (chosen.high !== "" && !(reward <= Number(chosen.high))) return false;
  return !wanted || asText(row.prompt_id).toLowerCase() === wanted || saidIn(row).some((text) => text.toLowerCase().includes(wanted));
}

// Texts of a row, by whomever, with thoughts, and with the calls of tools as they are shown.
function saidIn(row) {
  const messages = [...(row.messages ?? []), ...(Array.isArray(row.turns) ? row.turns : [])];
  const parts = messages.flatMap(({ content }) => (Array.isArray(content) ? content.map((part) => (typeof part === "string" ? part : part?.text)) : [content]));
  return [row.completion, ...parts, ...messages.flatMap((one) => [one.reasoning_content, one.tool_calls])].filter(Boolean).map(asText);
}

function groupsOf(rows) {
  const groups = new Map();
  for (const row of rows) {
    const key = `${row.step}/${row.position}`;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(row);
  }
  const found = [...groups.values()].map((all) => ({ all, rows: all.filter(kept) })).filter(({ rows }) => rows.length);
  const best = (pick, group) => Math.max(...group.rows.map((row) => pick(row) ?? -Infinity));
  const orders = { high: (row) => row.reward, low: (row) => (row.reward === null ? null : -row.reward), long: (row) => row.tokens };
  return orders[chosen.sort] ? found.sort((one, other) => best(orders[chosen.sort], other) - best(orders[chosen.sort], one)) : found;
}

function group({ all, rows }) {
  const cards = (chosen.groups ? all : rows).sort((one, other) => one.sample - other.sample).map(card);
  const part = rows.length === all.length || chosen.groups ? `${all.length} completions` : `${rows.length} of ${all.length} completions`;
  const head = el("div", { class: "dim" }, `step ${all[0].step}, prompt ${asText(all[0].prompt_id)}, ${part}`);
  return el("section", { class: "prompt" }, head, (all[0].messages ?? []).map(message), el("div", { class: "cards" }, cards));
}

function list_again() {
  const rows = DATA.runs[chosen.run].completions.rows;
  const found = groupsOf(rows);
  const total = found.reduce((sum, { rows: some }) => sum + some.length, 0);
  count.textContent = `${total.toLocaleString("en")} of ${rows.length.toLocaleString("en")} completions on this page, ${found.length === 1 ? "1 prompt" : `${found.length.toLocaleString("en")} prompts`}`;
  const more = found.length > chosen.shown ? el("button", { type: "button", onclick: () => { chosen.shown += FIRST; list_again(); } }, `show more of ${found.length - chosen.shown} further prompts`) : null;
  scaleKey.replaceChildren(...(chosen.colour ? keyOf(SCALES[chosen.colour], rows) : []));
  list.replaceChildren(...found.slice(0, chosen.shown).map(group), ...(more ? [more] : []));
}

// Called by the files beside the page.
function loadCompletions(run, step, rows) {
  const found = DATA.runs[run].completions;
  found.rows = [...found.rows.filter((row) => row.step !== step), ...rows].sort((one, other) => one.step - other.step);
  found.loaded = (found.loaded ?? new Set()).add(step);
  fillEnds();
  list_again();
}

function fetchStep(run, step) {
  if (!DATA.beside || step === "" || DATA.runs[run].completions.loaded?.has(step)) return;
  if (DATA.live) { askServer("completions", [["run", DATA.live[run]], ["step", step]]).then(({ rows }) => loadCompletions(run, step, rows), () => { count.textContent = `the completions of step ${step} did not arrive`; }); return; }
  const source = `${encodeURIComponent(DATA.beside)}/run_${run}_step_${step}.js`;
  const file = el("script", { src: source });
  file.addEventListener("error", () => { count.textContent = `${source} is not beside this page`; });
  document.head.append(file);
}

function stepsToChoose() {
  const { rows, steps } = DATA.runs[chosen.run].completions;
  return DATA.beside ? steps : [...new Set(rows.map((row) => row.step))];
}

const option = (value, text) => el("option", { value }, text);

function fillSteps() {
  steps.replaceChildren(option("", DATA.beside ? "choose a step" : "all on this page"), ...stepsToChoose().map((step) => option(step, step)));
  steps.value = chosen.step;
}

// Why completions ended; those that arrive later may have other reasons.
function fillEnds() {
  const known = [...new Set(DATA.runs.flatMap((run) => run.completions.rows.map((row) => row.finish_reason)))].filter(Boolean);
  ends.replaceChildren(option("", "anything"), ...known.map((end) => option(end, end)));
  ends.value = chosen.finish;
}

function browser() {
  if (!DATA.live && !DATA.runs.some((run) => run.completions.rows.length || (DATA.beside && run.completions.steps.length))) return [el("p", { class: "dim" }, "No completions are recorded, or the page was made without them.")];
  const change = (key) => (event) => { chosen[key] = event.target.type === "checkbox" ? event.target.checked : event.target.value; chosen.shown = FIRST; list_again(); };
  steps = el("select", { id: "step", onchange: (event) => { change("step")(event); fetchStep(chosen.run, event.target.value && Number(event.target.value)); } });
  const pick = (event) => { chosen.run = Number(event.target.value); chosen.step = ""; fillSteps(); chosen.shown = FIRST; list_again(); };
  ends = el("select", { id: "finish", onchange: change("finish") });
  fillSteps();
  fillEnds();
  count = el("output", { class: "dim" });
  list = el("div", { id: "completions-list" });
  const controls = el("div", { class: "controls" },
    DATA.runs.length > 1 ? el("label", {}, "run ", el("select", { id: "run", onchange: pick }, DATA.runs.map((run, number) => option(number, run.label)))) : null,
    el("label", {}, "step ", steps),
    el("label", {}, "text ", el("input", { id: "text", type: "search", oninput: change("text"), placeholder: "in prompt or completion" })),
    el("label", {}, "reward from ", el("input", { id: "low", type: "number", step: "any", oninput: change("low") })),
    el("label", {}, "to ", el("input", { id: "high", type: "number", step: "any", oninput: change("high") })),
    el("label", {}, "ended by ", ends),
    el("label", {}, "first ", el("select", { id: "sort", onchange: change("sort") }, option("order", "early steps"), option("high", "high rewards"), option("low", "low rewards"), option("long", "long ones"))),
    el("label", {}, "tokens coloured by ", el("select", { id: "colour", onchange: change("colour") }, option("", "nothing"), Object.entries(SCALES).map(([name, scale]) => option(name, scale.said)))),
    el("label", {}, el("input", { id: "groups", type: "checkbox", onchange: change("groups") }), " whole groups"));
  list_again();
  return [controls, count, scaleKey, list];
}
