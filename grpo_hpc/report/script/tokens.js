// Tokens of a completion with what is recorded of each, coloured: how unlikely it was, or how much two sides differ.

const LEVELS = 5, MOST_TOKENS = 4000;
const SCALES = {
  likelihood: { said: "log-probability", of: (token) => token.engine, level: (value) => Math.min(LEVELS, Math.round((-value / 6) * LEVELS)), ends: ["certain", "6 nat: 1 in 400"] },
  ratio: { said: "ratio of trainer to engine", of: (token) => (token.trainer === undefined ? undefined : token.trainer - token.engine), level: (value) => Math.sign(value) * Math.min(LEVELS, Math.round((Math.abs(value) / Math.LN2) * LEVELS)) },
  entropy: { said: "entropy", of: (token) => token.entropy, level: (value) => Math.min(LEVELS, Math.round((value / 3) * LEVELS)), ends: ["no choice", "3 nat: 20 alike"] },
};
const scaleKey = el("div", { class: "keys" });

function numbersOf(text, kind) {
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  return new kind(bytes.buffer, 0, Math.floor(bytes.length / kind.BYTES_PER_ELEMENT)); // little-endian, as every browser's machine
}

// Text and log-probabilities (nat) of each token; null where nothing is recorded, or it does not belong to the text.
function tokensOf({ by_token: values, completion }) {
  if (!values) return null;
  try {
    const bytes = new TextEncoder().encode(values.text ?? completion), reader = new TextDecoder();
    const lengths = numbersOf(values.bytes, Uint16Array), engine = numbersOf(values.engine, Int16Array);
    const [trainer, entropy] = ["trainer", "entropy"].map((name) => (values[name] === undefined ? null : numbersOf(values[name], Int16Array)));
    let from = 0;
    const found = Array.from(lengths, (length, at) => ({ text: reader.decode(bytes.subarray(from, (from += length)), { stream: true }), engine: engine[at] / 1000, trainer: trainer ? trainer[at] / 1000 : undefined, entropy: entropy ? entropy[at] / 1000 : undefined }));
    return from === bytes.length && engine.length === lengths.length ? found : null;
  } catch {
    return null;
  }
}

const classOf = (level) => (level === 0 ? null : level > 0 ? `up${level}` : `down${-level}`);

function tokenSpan(token, scale) {
  const value = scale.of(token);
  const both = token.trainer === undefined ? "" : `, trainer ${shown(token.trainer)}, ratio ${shown(Math.exp(token.trainer - token.engine))}`;
  return el("span", { class: value === undefined ? null : classOf(scale.level(value)), title: `log-probability ${shown(token.engine)}${both}${token.entropy === undefined ? "" : `, entropy ${shown(token.entropy)}`}` }, marked(token.text, ""));
}

function coloured(tokens) {
  const scale = SCALES[chosen.colour];
  const block = el("pre", { dir: "auto", class: "said tokens" }, tokens.slice(0, MOST_TOKENS).map((token) => tokenSpan(token, scale)));
  if (tokens.length <= MOST_TOKENS) return block;
  const more = el("button", { type: "button", onclick: () => { block.append(...tokens.slice(MOST_TOKENS).map((token) => tokenSpan(token, scale))); more.remove(); } }, `show all ${tokens.length.toLocaleString("en")} tokens`);
  return el("div", {}, block, more);
}

function keyOf(scale, rows) {
  const known = rows.filter((row) => scale.of(tokensOf(row)?.[0] ?? {}) !== undefined).length;
  const none = known ? null : el("span", { class: "dim" }, "nothing of it is recorded in these completions");
  const box = (level) => el("span", { class: `tokens ${classOf(level) ?? ""}` }, " ");
  const up = Array.from({ length: LEVELS }, (_, at) => box(at + 1)), down = up.map((_, at) => box(at - LEVELS));
  const sides = scale === SCALES.ratio ? [el("span", {}, "half ", down, " equal ", up, " double")] : [el("span", {}, `${scale.ends[0]} `, up, ` ${scale.ends[1]}`)];
  return [...sides, none ?? el("span", { class: "dim" }, `recorded in ${known.toLocaleString("en")} of ${rows.length.toLocaleString("en")} completions here`)];
}
