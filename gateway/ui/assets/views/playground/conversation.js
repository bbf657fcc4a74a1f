// The state of the conversation: its turns, its settings and the open streams. It outlives the view and, in the tab's
// session storage, a reload of the page; forgetting the API key deletes it.

import { api } from "../../api.js";
import { sendChat } from "./request.js";

const STORAGE_KEY = "coe-playground";
/** The value of "Compare with" that compares a recipe with its members; no expert can have this name. */
export const MEMBERS = "*members";

const MAX_TURNS = 40;
const MAX_STORED_CHARACTERS = 1_000_000;
const DEFAULTS = { model: "auto", second: "", system: "", cost_weight: "", temperature: "", max_tokens: "", retrieval: "auto" };

export const conversation = { settings: { ...DEFAULTS }, session: newSession(), turns: [], draft: "", draw: () => {} };

/**
 * Sends a prompt to `models`; a turn has an answer for each, at least two places, null where nothing was sent. `recipe` is
 * the name of the recipe that the turn compares with its members, or empty.
 */
export function send(prompt, models, recipe = "") {
  const turn = { prompt, recipe, answers: Array(Math.max(2, models.length)).fill(null) };
  const before = conversation.turns.slice();
  conversation.turns = [...before.slice(1 - MAX_TURNS), turn];
  conversation.draft = "";
  models.forEach((model, lane) => start(turn, lane, model, before));
  save();
}

/** Sends a prompt again, in place of an answer that failed or was stopped. */
export function retry(turn, lane) {
  start(turn, lane, turn.answers[lane].model, conversation.turns.slice(0, conversation.turns.indexOf(turn)));
}

function start(turn, lane, model, before) {
  const { settings } = conversation;
  const answer = sendChat({
    model,
    messages: [...history(before, lane), { role: "user", content: turn.prompt }],
    settings,
    session: lane ? `${conversation.session}-${lane + 1}` : conversation.session,
    changed: () => conversation.draw(),
    ended: save,
  });
  turn.answers = turn.answers.map((old, place) => (place === lane ? answer : old));
}

/** The messages of earlier turns: the answers of the same lane, or of the first one that has any. */
function history(turns, lane) {
  const found = conversation.settings.system.trim() ? [{ role: "system", content: conversation.settings.system }] : [];
  for (const { prompt, answers } of turns) {
    const given = [answers[lane], ...answers].find((answer) => answer?.text);
    if (given) found.push({ role: "user", content: prompt }, { role: "assistant", content: given.text });
  }
  return found;
}

export const busy = () => conversation.turns.some(({ answers }) => answers.some((answer) => answer?.stop));

export function stop() {
  for (const { answers } of conversation.turns) for (const answer of answers) answer?.stop?.();
}

export function clear() {
  stop();
  Object.assign(conversation, { session: newSession(), turns: [] });
  save();
}

export function set(name, value) {
  conversation.settings = { ...conversation.settings, [name]: value };
  save();
}

/** Saves to the tab's session storage, without the oldest turns where it is too large. */
export function save() {
  const { settings, session, draft } = conversation;
  const saved = ({ stop: _, ...answer }) => ({ ...answer, state: answer.state === "done" || answer.state === "failed" ? answer.state : "stopped" });
  let turns = conversation.turns.map(({ prompt, recipe, answers }) => ({ prompt, recipe, answers: answers.map((one) => one && saved(one)) }));
  for (;;) {
    const text = JSON.stringify({ settings, session, draft, turns });
    if (text.length <= MAX_STORED_CHARACTERS || !turns.length) {
      if (text.length <= MAX_STORED_CHARACTERS) sessionStorage.setItem(STORAGE_KEY, text);
      return;
    }
    turns = turns.slice(1);
  }
}

function restore() {
  try {
    const { settings, ...rest } = JSON.parse(sessionStorage.getItem(STORAGE_KEY) ?? "{}");
    Object.assign(conversation, rest, { settings: { ...DEFAULTS, ...settings } });
  } catch {
    sessionStorage.removeItem(STORAGE_KEY);
  }
}

function newSession() {
  const bytes = crypto.getRandomValues(new Uint8Array(9));
  return `playground-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

restore();
addEventListener("pagehide", save);
api.addEventListener("key", () => {
  if (api.key) return;
  stop();
  Object.assign(conversation, { settings: { ...DEFAULTS }, session: newSession(), turns: [], draft: "" });
  sessionStorage.removeItem(STORAGE_KEY);
});
