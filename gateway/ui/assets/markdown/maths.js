// Maths in TeX between $ or \( (inline), $$ or \[ (display), shown as MathML.

const MAX_TEX = 4_000; // characters; longer formulas stay TeX
const MAX_START = 2_000; // characters of a paragraph in which a formula on separate lines may begin
const LIMITS = { throwOnError: true, trust: false, maxExpand: 200, maxSize: [20, 400] }; // sizes in em and points
const DISPLAY = /^ {0,3}(?:\$\$([^$]{1,4000}?)\$\$|\\\[([^]{1,4000}?)\\\])[ \t]*(?:\n|$)/;
const INLINE = /^(?:\$\$([^$]{1,4000}?)\$\$|\\\[([^]{1,4000}?)\\\]|\\\(([^]{1,4000}?)\\\)|\$(?![\s$])((?:\\[^\n]|[^$\\\n]){1,1000}?)(?<!\s)\$(?!\d))/;

let temml = null;
let loading = null;

export const displayMath = {
  name: "math",
  level: "block",
  start: (source) => index(source.slice(0, MAX_START).search(/\n {0,3}(?:\$\$|\\\[)/)), // called for every paragraph
  tokenizer(source) {
    const found = DISPLAY.exec(source);
    return found && { type: "math", raw: found[0], text: (found[1] ?? found[2]).trim(), display: true };
  },
};

export const inlineMath = {
  name: "math",
  level: "inline",
  start: (source) => index(source.search(/\$|\\[([]/)),
  tokenizer(source) {
    const found = INLINE.exec(source);
    if (!found) return undefined;
    const [raw, dollars, brackets, parentheses, dollar] = found;
    return { type: "math", raw, text: (dollars ?? brackets ?? parentheses ?? dollar).trim(), display: (dollars ?? brackets) !== undefined };
  },
};

const index = (found) => (found < 0 ? undefined : found);

/** The formula; its TeX until the library is loaded, and where the library refuses it. */
export function mathElement(tex, display) {
  const shown = document.createElement(display ? "div" : "span");
  shown.className = display ? "math display" : "math";
  const source = document.createElement("code");
  source.textContent = tex;
  shown.append(source);
  if (tex.length > MAX_TEX) return shown;
  if (temml) typeset(shown, tex, display);
  else load().then(() => typeset(shown, tex, display), () => {});
  return shown;
}

function load() {
  loading ??= import("../vendor/temml.js").then((module) => (temml = module.default));
  return loading;
}

function typeset(shown, tex, display) {
  const formula = document.createElement("span");
  try {
    temml.render(tex, formula, { ...LIMITS, displayMode: display });
  } catch {
    return; // no valid TeX, or nested too deep
  }
  for (const part of formula.querySelectorAll("*")) {
    for (const name of ["id", "href", "name"]) part.removeAttribute(name); // of \label and \ref; the page has its own ids and links
  }
  shown.replaceChildren(...formula.childNodes);
}
