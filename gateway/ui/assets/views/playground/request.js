// One streaming chat request: its response text, the decision behind it, and its end state.

import { api, dataOf } from "../../api.js";

const SHOWN_HEADERS = ["x-request-id", "x-coe-", "x-ratelimit-", "server-timing"];
const RECORD_TRIES = 5;
const NUMBER_SETTINGS = { temperature: Number, max_tokens: Number };

/**
 * Sends a chat and returns the answer, which is filled in while it streams. Calls `changed` at each change and `ended` at
 * the end, and again once the record or the explanation is there. Its `state` is pending, streaming, done, stopped or
 * failed (with an `error`); `stop` exists while it can be stopped, and `finish` is the finish reason. `explanation` is
 * the result of `/v1/route`, and `record` the record in the log, once it exists.
 */
export function sendChat({ model, messages, settings, session, cache, changed, ended }) {
  const aborter = new AbortController();
  const answer = { model, state: "pending", text: "", headers: {}, error: null, finish: "", record: null, explanation: null, rated: "", measured: {} };
  answer.stop = () => aborter.abort();
  const request = { body: bodyOf(model, messages, settings), headers: headersOf(settings, session, cache) };
  const changedSoon = soon(changed);
  const explained = explain(answer, request).then(changedSoon);
  const keep = () => {
    changed();
    ended();
  };
  stream(answer, request, aborter.signal, changedSoon).finally(() => {
    delete answer.stop;
    keep();
    loadRecord(answer).then(keep); // not after the explanation, which may be slow
    explained.then(keep);
  });
  return answer;
}

function bodyOf(model, messages, settings) {
  const body = { model, messages };
  for (const [name, read] of Object.entries(NUMBER_SETTINGS)) if (settings[name] !== "") body[name] = read(settings[name]);
  return body;
}

function headersOf({ cost_weight, retrieval }, session, cache) {
  const headers = { "x-session-id": session, "x-coe-explain": "1", "x-coe-retrieval": retrieval };
  if (cost_weight !== "") headers["x-coe-cost-weight"] = cost_weight;
  if (cache) headers["x-coe-cache"] = cache;
  return headers;
}

async function stream(answer, { body, headers }, signal, changedSoon) {
  const began = performance.now();
  try {
    const response = await api.fetch("v1/chat/completions", { body: { ...body, stream: true }, headers, signal });
    answer.headers = shownOf(response.headers);
    for await (const data of dataOf(response)) {
      if (data === "[DONE]") break;
      addEvent(answer, data, performance.now() - began);
      changedSoon();
    }
    answer.state = "done";
  } catch (error) {
    answer.state = signal.aborted ? "stopped" : "failed";
    if (!signal.aborted) answer.error = { message: error.message, status: error.status ?? 0, retry: error.headers?.get("retry-after") ?? null };
    if (error.headers) answer.headers = shownOf(error.headers);
  }
  answer.measured.total = performance.now() - began;
}

/** Adds one event to the answer. Throws for an error event. */
function addEvent(answer, data, elapsed) {
  const event = JSON.parse(data);
  if (event.error) throw Object.assign(new Error(event.error.message), { status: 200 });
  const choice = event.choices?.[0];
  if (choice?.finish_reason) answer.finish = choice.finish_reason;
  const chunk = choice?.delta?.content;
  if (!chunk) return;
  answer.measured.first ??= elapsed;
  answer.state = "streaming";
  answer.text += chunk;
}

const shownOf = (headers) => Object.fromEntries([...headers].filter(([name]) => SHOWN_HEADERS.some((start) => name.startsWith(start))));

/** Loads the explained decision. It is made at the same time for the same chat, but without exploration. */
async function explain(answer, { body, headers }) {
  try {
    answer.explanation = await api.post("v1/route", body, { headers });
  } catch (error) {
    answer.explanation = { failed: error.message };
  }
}

/** Loads the record. The endpoint waits about a second for the log; a busy log takes longer, so several requests are sent. */
async function loadRecord(answer) {
  const { "x-request-id": id, "x-coe-expert": expert } = answer.headers;
  if (!id) return;
  for (let tries = expert ? RECORD_TRIES : 1; tries; tries--) {
    try {
      const { prompt: _, feedback: __, choices: ___, ...record } = await api.get(`v1/records/${id}`);
      answer.record = record;
      return;
    } catch (error) {
      if (tries === 1 || error.status !== 404) answer.record = { failed: error.message };
      if (error.status !== 404) return;
    }
  }
}

/** Calls `task` at most once before the next frame. */
function soon(task) {
  let due = false;
  return () => {
    if (due) return;
    due = true;
    const run = () => {
      due = false;
      task();
    };
    if (document.hidden) setTimeout(run, 100);
    else requestAnimationFrame(run);
  };
}
