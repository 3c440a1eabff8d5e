// The end of a run's log, from the server; of several logs the one that is chosen.

const wantedLog = { run: 0, attempt: "", rank: "", server: "" };
let logText = null, logFile = null;

async function readLog() {
  const query = Object.entries(wantedLog).filter(([name, value]) => name !== "run" && value !== "");
  const atEnd = logText.scrollHeight - logText.scrollTop - logText.clientHeight < 40;
  try {
    const { file, lines } = await askServer("log", [["run", DATA.live[wantedLog.run]], ...query]);
    const text = lines.join("\n");
    logFile.textContent = file;
    if (logText.dataset.text === text) return;
    logText.dataset.text = text;
    logText.replaceChildren(marked(text, ""));
    if (atEnd) logText.scrollTop = logText.scrollHeight;
  } catch (error) {
    logFile.textContent = error.message;
    logText.replaceChildren();
    delete logText.dataset.text;
  }
}

function logs() {
  const choose = (name) => (event) => { wantedLog[name] = event.target.value; if (name === "rank") wantedLog.server = ""; if (name === "server") wantedLog.rank = ""; readLog(); };
  const number = (name, said) => el("label", {}, `${said} `, el("input", { id: `log-${name}`, type: "number", min: 0, placeholder: "any", oninput: choose(name) }));
  logFile = el("div", { class: "dim path" });
  logText = el("pre", { class: "log", tabindex: 0, "aria-label": "the end of the log" });
  const whose = DATA.runs.length > 1 ? el("label", {}, "run ", el("select", { onchange: choose("run") }, DATA.runs.map((run, at) => option(at, run.label)))) : null;
  return [el("div", { class: "controls" }, whose, number("attempt", "start"), number("rank", "rank"), number("server", "server"), el("span", { class: "dim" }, "left empty: the newest start, and the log that tells most; the last 1,000 lines")), logFile, logText];
}
