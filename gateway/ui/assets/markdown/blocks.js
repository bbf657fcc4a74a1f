// Markdown to elements. Text becomes elements by name and text nodes, never markup: no HTML of an answer is parsed, and
// nothing is loaded from an address in it.

import { Lexer, Marked } from "../vendor/marked.js";
import { highlighted } from "./code.js";
import { displayMath, inlineMath, mathElement } from "./maths.js";

const MAX_BLOCK = 64_000; // characters; a larger block is plain text, with all after it
const MAX_OPEN_BLOCK = 16_000; // of a block that still grows, as it is rendered again with every change
const OPEN_BLOCKS = 2; // the last blocks, which more text may still change
const MAX_INLINE = 8_000; // of a paragraph or cell; a larger one is plain text, as some patterns take quadratic time
const MAX_SEARCH = 3_000_000; // of a block: characters times delimiters, summed over its paragraphs and cells; those beyond are plain
const MAX_COLUMNS = 40; // of a table, as every row has as many cells; a wider one is a paragraph
const MAX_CELLS = 5_000;
const MAX_DEPTH = 16;
const SCHEMES = ["https:", "http:", "mailto:"];

/** A line with many quote or list markers, which would nest as deep. */
const deeplyNested = {
  name: "deep",
  level: "block",
  tokenizer(source) {
    const raw = /^(?:[ \t]*(?:>|(?:[-+*]|\d{1,9}[.)])(?=[ \t]))){12,}[^\n]*(?:\n|$)/.exec(source)?.[0];
    return raw && { type: "deep", raw };
  },
};
const narrowTables = {
  table(source) {
    const bars = source.split("\n", 2).join("").split("|").length - 1; // of the head and the line below it
    return bars > 2 * (MAX_COLUMNS + 1) ? undefined : false; // no table; or as usual
  },
};
const { defaults } = new Marked({ gfm: true, breaks: true, extensions: [deeplyNested, displayMath, inlineMath], tokenizer: narrowTables });

class BoundedLexer extends Lexer {
  #left = MAX_SEARCH; // each delimiter may search all of its paragraph for its end

  inlineTokens(source, tokens = []) {
    const cost = source.length * (source.match(/[*_~]+|\\[([]/g)?.length ?? 0);
    if (source.length <= MAX_INLINE && cost <= this.#left) {
      this.#left -= cost;
      return super.inlineTokens(source, tokens);
    }
    tokens.push({ type: "text", raw: source, text: source });
    return tokens;
  }
}

/**
 * The sources of the first blocks of `text`, in order, without a gap. More text may change the last `open` of them; there
 * are none where the text is long and more blocks follow.
 */
export function split(text) {
  const blocks = sources(text.slice(0, MAX_BLOCK));
  if (text.length <= MAX_BLOCK) return { blocks, open: OPEN_BLOCKS };
  const known = blocks.slice(0, -OPEN_BLOCKS);
  return known.length ? { blocks: known, open: 0 } : { blocks: [text], open: 1 };
}

function sources(text) {
  const found = [];
  let end = 0;
  for (const { type, raw } of blockTokens(text)) {
    if (!text.startsWith(raw, end)) break; // the rest is one block
    end += raw.length;
    if (found.length && type === "space") found[found.length - 1] += raw;
    else found.push(raw);
  }
  if (end < text.length) found.push(text.slice(end));
  return found;
}

function blockTokens(text) {
  try {
    return new BoundedLexer(defaults).blockTokens(text, []);
  } catch {
    return []; // a RangeError of deep nesting
  }
}

/** The element of one block; `closed` means that it does not change any more. */
export function rendered(source, { closed }) {
  const shown = element("div", { dir: "auto" });
  try {
    if (source.length <= (closed ? MAX_BLOCK : MAX_OPEN_BLOCK)) shown.append(...blocks(new BoundedLexer(defaults).lex(source), 0));
    else shown.append(...pieces(source));
  } catch (error) {
    if (!(error instanceof RangeError)) console.error(error); // a RangeError is deep nesting
    shown.replaceChildren(...pieces(source));
  }
  return shown;
}

const BLOCKS = {
  space: () => "",
  checkbox: () => "",
  heading: ({ depth, tokens }, level) => element(`h${Math.min(depth + 2, 6)}`, {}, ...inline(tokens, level)),
  paragraph: ({ tokens }, level) => element("p", {}, ...inline(tokens, level)),
  text: ({ tokens, text }, level) => element("span", {}, ...(tokens ? inline(tokens, level) : [decoded(text)])),
  blockquote: ({ tokens }, level) => element("blockquote", {}, ...blocks(tokens, level)),
  hr: () => element("hr"),
  code: ({ text, lang }) => code(text, lang?.trim().split(/\s/)[0] ?? ""),
  def: ({ tag, href }) => element("p", {}, `[${tag}]: `, link(href, [href])),
  math: ({ text, display }) => mathElement(text, display),
  list,
  table,
};

const INLINE = {
  text: ({ text, tokens }, level) => (tokens ? element("span", {}, ...inline(tokens, level)) : decoded(text)),
  escape: ({ text }) => text,
  strong: ({ tokens }, level) => element("strong", {}, ...inline(tokens, level)),
  em: ({ tokens }, level) => element("em", {}, ...inline(tokens, level)),
  del: ({ tokens }, level) => element("del", {}, ...inline(tokens, level)),
  codespan: ({ text }) => element("code", {}, text),
  br: () => element("br"),
  checkbox: () => "",
  link: ({ href, tokens }, level) => link(href, inline(tokens, level)),
  image: ({ href, text }) => link(href, [`Image: ${text || href}`]),
  html: ({ raw }) => (/^<br\s*\/?>$/i.test(raw) ? element("br") : raw),
  math: BLOCKS.math,
};

function blocks(tokens, level) {
  if (level > MAX_DEPTH) return tokens.map(({ raw }) => plain(raw));
  return tokens.map((token) => BLOCKS[token.type]?.(token, level + 1) ?? plain(token.raw));
}

function inline(tokens, level) {
  if (level > MAX_DEPTH) return tokens.map(({ raw }) => raw);
  return tokens.map((token) => INLINE[token.type]?.(token, level + 1) ?? token.raw);
}

function list({ ordered, start, loose, items }, level) {
  const item = ({ task, checked, tokens }) =>
    element("li", { className: task ? "task" : "" }, task ? (checked ? "☑ " : "☐ ") : "", ...blocks(tokens, level));
  const shown = element(ordered ? "ol" : "ul", { className: loose ? "loose" : "" }, ...items.map(item));
  if (ordered) shown.start = start;
  return shown;
}

function table({ header, rows, raw }, level) {
  if (header.length * (rows.length + 1) > MAX_CELLS) return plain(raw);
  const row = (name, cells) =>
    element("tr", {}, ...cells.map(({ tokens, align }) => element(name, { className: align ?? "" }, ...inline(tokens, level))));
  return scrollable(
    "Table",
    element("table", {}, element("thead", {}, row("th", header)), element("tbody", {}, ...rows.map((cells) => row("td", cells)))),
  );
}

function code(text, language) {
  const copy = element("button", { type: "button", className: "quiet small", textContent: "Copy" });
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 2000);
  });
  return element(
    "figure",
    { className: "fenced" },
    element("figcaption", {}, element("span", {}, language || "text"), ...(navigator.clipboard ? [copy] : [])),
    scrollable(language ? `Code, ${language}` : "Code", element("pre", {}, element("code", {}, ...(highlighted(text, language) ?? pieces(text))))),
  );
}

/** A link that opens in its own tab; text where the address is not one of the web or of mail. */
function link(href, content) {
  const url = URL.canParse(href) ? new URL(href) : null;
  if (!SCHEMES.includes(url?.protocol)) return element("span", {}, ...content);
  return element("a", { href: url.href, title: url.href, target: "_blank", rel: "noopener noreferrer" }, ...content);
}

function scrollable(label, content) {
  const shown = element("div", { className: "scroll", tabIndex: 0, ariaLabel: label }, content);
  shown.setAttribute("role", "group");
  return shown;
}

const plain = (text) => element("div", { className: "text" }, text);

/** Long plain text in pieces of whole lines where it has any, so that the browser lays out only those in sight. */
const pieces = (text) => (text.match(/[^]{1,4000}(?:\n|$)|[^]{1,4000}/g) ?? []).map(plain);

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };

function decoded(text) {
  return text.replace(/&(?:#(\d{1,6})|#[xX]([\da-fA-F]{1,5})|([a-z]{2,4}));/g, (all, decimal, hex, name) => {
    if (name) return ENTITIES[name] ?? all;
    return String.fromCodePoint(decimal ? Number(decimal) : Number.parseInt(hex, 16)) || all;
  });
}
