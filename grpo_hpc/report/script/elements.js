"use strict";
// Elements and numbers. Text from a run reaches the page through textContent alone, never as HTML.

const DATA = JSON.parse(document.getElementById("data").textContent);
const NAMESPACE = "http://www.w3.org/2000/svg";

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

const el = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => filled(document.createElementNS(NAMESPACE, tag), attributes, children);

// A number with four digits that count: 0.1234, 12.35, 1,235, 1.2e-7.
function shown(value) {
  if (value === null || value === undefined) return "not finite";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e9)) return value.toExponential(2).replace("e+", "e");
  if (Number.isInteger(value) || size >= 1000) return value.toLocaleString("en", { maximumFractionDigits: 0 });
  return String(Number(value.toPrecision(4)));
}

function duration(seconds) {
  if (seconds < 9.95) return `${Math.max(0, seconds).toFixed(1)} s`;
  const whole = Math.round(seconds);
  for (const [size, large, part, small] of [[86400, "d", 3600, "h"], [3600, "h", 60, "m"], [60, "m", 1, "s"]])
    if (whole >= size) return `${Math.floor(whole / size)} ${large} ${String(Math.floor((whole % size) / part)).padStart(2, "0")} ${small}`;
  return `${whole} s`;
}

const clock = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ");

function table(head, rows, numbers = []) {
  const kind = (at) => (numbers.includes(at) ? "n" : null);
  const cells = (tag, row) => row.map((cell, at) => el(tag, { class: kind(at), scope: tag === "th" ? "col" : null }, cell ?? "-"));
  const body = rows.map((row) => el("tr", {}, cells("td", row)));
  return el("div", { class: "wide" }, el("table", {}, el("thead", {}, el("tr", {}, cells("th", head))), el("tbody", {}, body)));
}

// Round numbers between two values, about `count` of them.
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(low); power <= Math.ceil(high); power++)
    for (const factor of high - low < 1.5 ? [1, 2, 5] : [1]) found.push(Math.log10(factor) + power);
  const kept = found.filter((at) => at >= low - 1e-9 && at <= high + 1e-9);
  return kept.filter((_, at) => at % Math.ceil(kept.length / 5) === 0);
}

const colourOf = (number) => DATA.colours[number % DATA.colours.length];
const dashOf = (number) => ["", "6 3", "2 3", "8 3 2 3"][Math.floor(number / DATA.colours.length) % 4];

// What the server of a live page answers; an error is the text of its refusal.
async function askServer(path, query = []) {
  const answer = await fetch(`${path}?${new URLSearchParams(query)}`);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}
