// The open conversation: its turns, its settings and its streams. It outlives the view; the browser keeps it (store.js),
// and the tab keeps its id and the draft.

import { api } from "../../api.js";
import { sendChat } from "./request.js";
import * as store from "./store.js";

const TAB = "coe-playground";
/** The value of "Compare with" that compares a recipe with its members; no expert can have this name. */
export const MEMBERS = "*members";

const MAX_TURNS = 40;
const DEFAULTS = { model: "auto", second: "", third: "", system: "", cost_weight: "", temperature: "", max_tokens: "", retrieval: "auto" };

export const conversation = { id: newId(), settings: { ...DEFAULTS }, session: newSession(), turns: [], draft: "", draw: () => {} };

// The open conversation as this tab last read or wrote it: its content, and the text in the storage, null where none is.
const synced = { content: "", stored: null };

/**
 * Sends a prompt to `models`; a turn has an answer for each, at least two places, null where nothing was sent. `recipe` is
 * the name of the recipe that the turn compares with its members, or empty; `kept` is the lane of the answer that the
 * conversation continues with, null while it continues with each on its own.
 */
export function send(prompt, models, recipe = "") {
  const turn = { prompt, recipe, kept: null, answers: Array(Math.max(2, models.length)).fill(null) };
  const before = conversation.turns.slice();
  conversation.turns = [...before.slice(1 - MAX_TURNS), turn];
  models.forEach((model, lane) => start(turn, lane, model, before));
  save();
}

/** Sends a changed prompt in place of `turn` and all after it. */
export function resend(turn, prompt, models, recipe = "") {
  conversation.turns = conversation.turns.slice(0, conversation.turns.indexOf(turn));
  send(prompt, models, recipe);
}

/** Sends a prompt again, in place of an answer; the response cache is not used. */
export function retry(turn, lane) {
  start(turn, lane, turn.answers[lane].model, conversation.turns.slice(0, conversation.turns.indexOf(turn)), { cache: "off" });
  save();
}

/** Continues with the answer in one lane: its model, its session and its text. */
export function continueWith(turn, lane) {
  turn.kept = lane;
  conversation.session = sessionOf(lane);
  conversation.settings = { ...conversation.settings, model: turn.answers[lane].model, second: "", third: "" };
  save();
}

const sessionOf = (lane) => (lane ? `${conversation.session}-${lane + 1}` : conversation.session);

function start(turn, lane, model, before, { cache } = {}) {
  const { settings } = conversation;
  const answer = sendChat({
    model,
    messages: [...history(before, lane), { role: "user", content: turn.prompt }],
    settings,
    session: sessionOf(lane),
    cache,
    changed: () => conversation.draw(),
    ended: save,
  });
  turn.answers = turn.answers.map((old, place) => (place === lane ? answer : old));
}

/** The messages of earlier turns: the kept answers, else those of the same lane, or of the first one that has any. */
function history(turns, lane) {
  const found = conversation.settings.system.trim() ? [{ role: "system", content: conversation.settings.system }] : [];
  for (const { prompt, answers, kept } of turns) {
    const given = [answers[kept ?? lane], ...answers].find((answer) => answer?.text);
    if (given) found.push({ role: "user", content: prompt }, { role: "assistant", content: given.text });
  }
  return found;
}

export const busy = () => conversation.turns.some(({ answers }) => answers.some((answer) => answer?.stop));

export function stop() {
  for (const { answers } of conversation.turns) for (const answer of answers) answer?.stop?.();
}

/** Opens a new conversation with the same settings; the one that was open is kept. */
export function startNew() {
  leave();
  clear();
}

/** Opens a kept conversation. False where it is not kept any more. */
export function reopen(id) {
  if (id === conversation.id) return true;
  if (!store.load(id)) {
    store.drop(id);
    store.problem.text = "That conversation is not kept any more.";
    return false;
  }
  leave();
  load(id);
  saveTab();
  return true;
}

function leave() {
  stop();
  save();
}

function clear() {
  Object.assign(conversation, { id: newId(), session: newSession(), turns: [] });
  Object.assign(synced, { content: "", stored: null });
  saveTab();
}

/** Deletes one kept conversation, which may be the open one. */
export function remove(id) {
  if (id === conversation.id) {
    stop();
    clear();
  }
  store.drop(id);
}

export function removeAll() {
  remove(conversation.id);
  store.dropAll();
}

export function set(name, value) {
  conversation.settings = { ...conversation.settings, [name]: value };
  save();
}

/** Saves the state of the tab, and the conversation where this tab has changed it. */
export function save() {
  saveTab();
  if (!conversation.turns.length || content() === synced.content) return;
  const stored = store.stored(conversation.id);
  if (stored === null && synced.stored !== null) return removedElsewhere();
  if (stored && stored !== synced.stored) conversation.id = newId(); // another tab has changed it too: both are kept
  saveTab();
  if (store.keep(JSON.parse(content()))) synced.content = content();
  synced.stored = store.stored(conversation.id) ?? null;
}

/** The conversation as it is stored, as JSON. */
function content() {
  const { id, settings, session, turns } = conversation;
  return JSON.stringify({ id, settings, session, turns: turns.map((turn) => ({ ...turn, answers: turn.answers.map((one) => one && saved(one)) })) });
}

/** Follows what other tabs did to the open conversation. */
function follow(allDeleted = false) {
  const stored = store.stored(conversation.id);
  if (allDeleted || (stored === null && synced.stored !== null)) removedElsewhere();
  else if (stored && stored !== synced.stored && !busy() && content() === synced.content) load(conversation.id);
  conversation.draw();
}

function removedElsewhere() {
  if (!conversation.turns.length) return;
  stop();
  clear();
  store.problem.text = "This conversation was removed in another tab.";
}

function saved({ stop: _, unfolded: __, ...answer }) {
  return { ...answer, state: answer.state === "done" || answer.state === "failed" ? answer.state : "stopped" };
}

function saveTab() {
  const { id, settings, draft } = conversation;
  sessionStorage.setItem(TAB, JSON.stringify({ id, settings, draft }));
}

function take({ settings, ...rest }) {
  Object.assign(conversation, rest, { settings: { ...DEFAULTS, ...settings } });
}

/** Shows a kept conversation; without effect where there is none. */
function load(id) {
  const found = store.load(id);
  if (!found) return;
  take(found);
  Object.assign(synced, { content: content(), stored: store.stored(id) });
}

function restore() {
  try {
    const { id, ...tab } = JSON.parse(sessionStorage.getItem(TAB) ?? "{}");
    take(tab);
    if (id) load(id);
  } catch {
    sessionStorage.removeItem(TAB);
  }
}

function newId() {
  return [...crypto.getRandomValues(new Uint8Array(9))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function newSession() {
  return `playground-${newId()}`;
}

restore();
addEventListener("pagehide", save);
addEventListener("pageshow", ({ persisted }) => persisted && follow()); // no events of other tabs before that
store.onOtherTabs(follow);
api.addEventListener("key", () => {
  if (api.key) return;
  removeAll();
  Object.assign(conversation, { settings: { ...DEFAULTS }, draft: "" });
  sessionStorage.removeItem(TAB);
});
