// Conversations in the browser's local storage: a list, and one entry for each. Bounded in count and size, the oldest go
// first. Nothing of them is sent anywhere.

const LIST = "coe-conversations";
const PREFIX = "coe-conversation-";
export const MAX_CONVERSATIONS = 100;
export const MAX_CHARACTERS = 4_000_000; // of all conversations; browsers allow about 5 million in all
const MAX_TURNS_CHARACTERS = 1_000_000; // of one conversation
const MAX_TITLE = 80;

/** What of the storage does not work, as a sentence; empty where all does. `removed` is how many were removed for room. */
export const problem = { text: "", removed: 0 };

/** The kept conversations, { id, title, turns, created, changed, size }, the latest first. */
export function kept() {
  return parsed(LIST) ?? [];
}

/** A conversation by its id; null where it is not kept any more. */
export const load = (id) => parsed(PREFIX + id);

/** The text that is stored of a conversation: null where none is, undefined where the storage cannot be read. */
export const stored = (id) => read(PREFIX + id);

/**
 * Keeps a conversation, in place of its older state, without the oldest turns where it is too long. It gets its title from
 * the first prompt until it is renamed. False where it is not kept.
 */
export function keep(conversation) {
  const turns = latest(conversation.turns);
  if (!turns.length) {
    problem.text = "The latest message and its answers are too long to be kept: they are lost when you close the tab.";
    return false;
  }
  const { id } = conversation;
  const text = JSON.stringify({ ...conversation, turns });
  const all = kept();
  const old = all.find((one) => one.id === id);
  const now = Date.now();
  const entry = { id, title: old?.title ?? titled(turns[0].prompt), turns: turns.length, created: old?.created ?? now, changed: now, size: text.length };
  const others = all.filter((one) => one.id !== id);
  while (others.length >= MAX_CONVERSATIONS || (others.length && total(others) + text.length > MAX_CHARACTERS)) removeLast(others, old);
  const failed = writtenWithRoom(entry, text, others, old);
  report(failed);
  if (!failed && turns.length < conversation.turns.length) problem.text = `This conversation is long: only its last ${turns.length} turns are kept.`;
  return !failed;
}

/** Writes a conversation and the list; where the storage is full, without the oldest others if that makes enough room. */
function writtenWithRoom(entry, text, others, old) {
  const needed = text.length - (old?.size ?? 0) + JSON.stringify(entry).length;
  for (let freed = 0; ; freed += removeLast(others, old), problem.removed++) {
    const failed = written(PREFIX + entry.id, text) ?? written(LIST, JSON.stringify([entry, ...others]));
    if (!failed) return undefined;
    const helps = failed.name === "QuotaExceededError" && others.length && freed < 2 * needed && freed + total(others) >= needed;
    if (helps) continue;
    if (!old) remove(PREFIX + entry.id);
    return failed;
  }
}

/** The latest turns that fit in MAX_TURNS_CHARACTERS. */
function latest(turns) {
  let [first, room] = [turns.length, MAX_TURNS_CHARACTERS];
  while (first && (room -= JSON.stringify(turns[first - 1]).length) >= 0) first--;
  return turns.slice(first);
}

export function rename(id, title) {
  update(kept().map((one) => (one.id === id ? { ...one, title: titled(title) || one.title } : one)));
}

export function drop(id) {
  remove(PREFIX + id);
  update(kept().filter((one) => one.id !== id));
}

export function dropAll() {
  try {
    for (const name of Object.keys(localStorage)) if (name === LIST || name.startsWith(PREFIX)) remove(name);
  } catch (error) {
    report(error);
  }
}

/** Removes the oldest of `others` from the list, which keeps `old`, and its conversation; returns its size. */
function removeLast(others, old) {
  const { id, size } = others.pop();
  written(LIST, JSON.stringify(old ? [old, ...others] : others));
  remove(PREFIX + id);
  return size;
}

const total = (entries) => entries.reduce((sum, { size }) => sum + size, 0);
const titled = (text) => text.trim().replace(/\s+/g, " ").slice(0, MAX_TITLE);
const update = (entries) => report(written(LIST, JSON.stringify(entries)));

function parsed(name) {
  try {
    return JSON.parse(read(name));
  } catch {
    return null; // damaged
  }
}

function read(name) {
  try {
    return localStorage.getItem(name);
  } catch (error) {
    report(error);
    return undefined;
  }
}

/** The error of writing, undefined where there was none. */
function written(name, text) {
  try {
    localStorage.setItem(name, text);
    return undefined;
  } catch (error) {
    return error;
  }
}

function remove(name) {
  try {
    localStorage.removeItem(name);
  } catch (error) {
    report(error);
  }
}

function report(error) {
  const removed = problem.removed ? `The browser's storage is full: old conversations were removed (${problem.removed}).` : "";
  if (!error) problem.text = removed;
  else if (error.name === "QuotaExceededError") problem.text = `${removed || "The browser's storage is full."} This conversation is kept only until you close the tab.`;
  else problem.text = `The browser does not keep conversations (${error.message}): this one is lost when you close the tab.`;
}

/** Calls `changed` with true where another tab deleted all conversations, else with false where it changed some. */
export function onOtherTabs(changed) {
  addEventListener("storage", ({ key, newValue }) => {
    if (key === null || (key === LIST && newValue === null)) changed(true);
    else if (key === LIST || key.startsWith(PREFIX)) changed(false);
  });
}
