// The conversation itself, apart from how it is drawn: its turns, its settings, and the streams under way. It outlives
// the view, a reload of the page (in the tab's own storage, bounded) and the gateway; a forgotten key ends it.

import { api } from "../../api.js";
import { ask } from "./asking.js";

const KEPT = "coe-playground";
const TURNS = 40;
const CHARACTERS = 1_000_000; // of all that is kept
const DEFAULTS = { model: "auto", second: "", system: "", cost_weight: "", temperature: "", max_tokens: "", retrieval: "auto" };

export const room = { settings: { ...DEFAULTS }, session: newSession(), turns: [], draft: "", draw: () => {} };

/** A prompt and its answers, one for each model that was asked: [first, second or null]. */
export function send(prompt) {
  const models = [room.settings.model, ...(room.settings.second ? [room.settings.second] : [])];
  const turn = { prompt, answers: [null, null] };
  const before = room.turns.slice();
  room.turns = [...before.slice(1 - TURNS), turn];
  room.draft = "";
  models.forEach((model, lane) => start(turn, lane, model, before));
  keep();
}

/** The same again, in place of an answer that failed or was stopped. */
export function again(turn, lane) {
  start(turn, lane, turn.answers[lane].model, room.turns.slice(0, room.turns.indexOf(turn)));
}

function start(turn, lane, model, before) {
  const { settings } = room;
  const answer = ask({
    model,
    messages: [...history(before, lane), { role: "user", content: turn.prompt }],
    settings,
    session: lane ? `${room.session}-2` : room.session,
    changed: () => room.draw(),
    ended: keep,
  });
  turn.answers = turn.answers.map((old, place) => (place === lane ? answer : old));
}

/** What an expert is told of the turns before: its own lane's answers, the other's where it was not asked. */
function history(turns, lane) {
  const found = room.settings.system.trim() ? [{ role: "system", content: room.settings.system }] : [];
  for (const { prompt, answers } of turns) {
    const given = [answers[lane], answers[1 - lane]].find((answer) => answer?.text);
    if (given) found.push({ role: "user", content: prompt }, { role: "assistant", content: given.text });
  }
  return found;
}

export const busy = () => room.turns.some(({ answers }) => answers.some((answer) => answer?.stop));

export function stop() {
  for (const { answers } of room.turns) for (const answer of answers) answer?.stop?.();
}

export function clear() {
  stop();
  Object.assign(room, { session: newSession(), turns: [] });
  keep();
}

export function set(name, value) {
  room.settings = { ...room.settings, [name]: value };
  keep();
}

/** Into the tab's storage, without the oldest turns where it is too much. */
export function keep() {
  const { settings, session, draft } = room;
  const saved = ({ stop: _, ...answer }) => ({ ...answer, state: answer.state === "done" || answer.state === "failed" ? answer.state : "stopped" });
  let turns = room.turns.map(({ prompt, answers }) => ({ prompt, answers: answers.map((one) => one && saved(one)) }));
  for (;;) {
    const text = JSON.stringify({ settings, session, draft, turns });
    if (text.length <= CHARACTERS || !turns.length) {
      if (text.length <= CHARACTERS) sessionStorage.setItem(KEPT, text);
      return;
    }
    turns = turns.slice(1);
  }
}

function restore() {
  try {
    const { settings, ...rest } = JSON.parse(sessionStorage.getItem(KEPT) ?? "{}");
    Object.assign(room, rest, { settings: { ...DEFAULTS, ...settings } });
  } catch {
    sessionStorage.removeItem(KEPT);
  }
}

function newSession() {
  const bytes = crypto.getRandomValues(new Uint8Array(9));
  return `playground-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

restore();
addEventListener("pagehide", keep);
api.addEventListener("key", () => {
  if (api.key) return;
  stop();
  Object.assign(room, { settings: { ...DEFAULTS }, session: newSession(), turns: [], draft: "" });
  sessionStorage.removeItem(KEPT);
});
