// Code with its syntax highlighted.

import highlighter from "../vendor/highlight.js";

// The grammars take quadratic time for some texts, so longer code and code with a longer run (base64, hex) stay plain.
const MAX_CODE = 8_000; // characters
const LONG_RUN = /\S{200}|\s{200}/;
const ENTITIES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#x27;": "'" };
const PART = /<span class="([\w -]+)">|(<\/span>)|([^<]+|<)/g;

/** The nodes of `text`; null where its language is not known, or its text may take long. */
export function highlighted(text, language) {
  if (!language || text.length > MAX_CODE || LONG_RUN.test(text) || !highlighter.getLanguage(language)) return null;
  return nodes(highlighter.highlight(text, { language, ignoreIllegals: true }).value);
}

/** Reads the highlighter's output, which consists of spans with a class and of escaped text; all else is text. */
function nodes(markup) {
  const root = document.createDocumentFragment();
  let current = root;
  for (const [, className, closing, text] of markup.matchAll(PART)) {
    if (className) {
      const span = document.createElement("span");
      span.className = className;
      current.append(span);
      current = span;
    } else if (closing) current = current.parentNode ?? root;
    else current.append(text.replace(/&(?:amp|lt|gt|quot|#x27);/g, (entity) => ENTITIES[entity]));
  }
  return [root];
}
