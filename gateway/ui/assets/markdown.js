// <coe-markdown>: an answer as Markdown, rendered block by block while it streams.
//
// Work is bounded: a block that can no longer change is rendered once, and all elements together work for a slice of time
// in a frame, then pause for longer. The text is plain until the renderer is loaded, and where it cannot be loaded.

const SLICE_MS = 8;
const PAUSE = 3; // times the length of the last frame with layout: rendering takes about a quarter of the time at most
const MAX_PAUSE_MS = 1000;

const due = new Set();
let scheduled = false;
let renderer = null; // ./markdown/blocks.js
let loading = null;

class Markdown extends HTMLElement {
  #text = "";
  #complete = false;
  #from = 0; // where the unsettled text begins
  #settled = 0; // the number of settled blocks, the first children
  #keys = []; // of the blocks in the children after them
  #blocks = null; // the sources of the next blocks; null where they are not known
  #open = 0; // the number of the last of them that more text may change
  #next = 0; // the first of them that is not rendered yet

  set text(given) {
    const text = given.includes("\r") ? given.replace(/\r\n?/g, "\n") : given;
    if (text === this.#text) return;
    if (!text.startsWith(this.#text)) this.#reset();
    this.#text = text;
    this.#changed();
  }

  /** Whether the text is the whole answer. */
  set complete(complete) {
    if (complete === this.#complete) return;
    if (!complete) this.#reset();
    this.#complete = complete;
    this.#changed();
  }

  connectedCallback() {
    loadRenderer();
    this.#changed();
  }

  disconnectedCallback() {
    due.delete(this);
  }

  /** Renders everything again. */
  renew() {
    this.#reset();
    this.#changed();
  }

  #reset() { // the old elements stay until the new ones take their places
    [this.#from, this.#settled, this.#keys] = [0, 0, []];
  }

  #changed() {
    this.#blocks = null;
    if (this.isConnected) schedule(this);
  }

  /** Renders what has changed until the time `end`, one block at least. False where some is left. */
  update(end) {
    if (!renderer) {
      this.replaceChildren(plain(this.#text));
      return true;
    }
    if (!this.#blocks) {
      const { blocks, open } = renderer.split(this.#text.slice(this.#from));
      [this.#blocks, this.#open, this.#next] = [blocks, this.#complete ? 0 : open, 0];
    }
    while (this.#next < this.#blocks.length) {
      this.#place(this.#next++);
      if (performance.now() > end && this.#next < this.#blocks.length) return false;
    }
    while (this.children.length > this.#settled + this.#blocks.length) this.lastChild.remove();
    return this.#settle();
  }

  #place(index) {
    const source = this.#blocks[index];
    const closed = index < this.#blocks.length - this.#open;
    const key = `${closed}${source}`;
    if (this.#keys[index] === key) return;
    this.#keys[index] = key;
    const shown = renderer.rendered(source, { closed });
    const old = this.children[this.#settled + index];
    if (old) old.replaceWith(shown);
    else this.append(shown);
  }

  /** Counts the closed blocks as settled. False where text after the blocks is left. */
  #settle() {
    const closed = this.#blocks.splice(0, this.#blocks.length - this.#open);
    this.#from += length(closed);
    this.#settled += closed.length;
    this.#keys.splice(0, closed.length);
    this.#next = this.#blocks.length;
    if (this.#from + length(this.#blocks) === this.#text.length) return true;
    this.#blocks = null;
    return false;
  }
}

const length = (texts) => texts.reduce((sum, text) => sum + text.length, 0);

function plain(text) {
  const shown = document.createElement("div");
  Object.assign(shown, { className: "text", dir: "auto", textContent: text });
  return shown;
}

/** Begins to load the renderer, once. */
export function loadRenderer() {
  loading ??= load();
}

async function load() {
  try {
    renderer = await import("./markdown/blocks.js");
    for (const element of document.querySelectorAll("coe-markdown")) element.renew();
  } catch (error) {
    console.warn(`Answers are plain text, as the renderer cannot be loaded: ${error.message}`);
  }
}

function schedule(element) {
  due.add(element);
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(work);
}

function work() {
  const began = performance.now();
  for (const element of due) {
    if (!element.update(began + SLICE_MS)) break;
    due.delete(element);
    if (performance.now() > began + SLICE_MS) break;
  }
  setTimeout(() => setTimeout(resume, Math.min(MAX_PAUSE_MS, PAUSE * (performance.now() - began)))); // after layout
}

function resume() {
  scheduled = false;
  for (const element of due) return schedule(element);
}

customElements.define("coe-markdown", Markdown);
