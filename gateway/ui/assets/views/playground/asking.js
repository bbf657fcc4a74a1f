// One question to one model, as it streams: the answer's text, how it came about, and how it ended.

import { api, dataOf } from "../../api.js";

const DRAWN = ["x-request-id", "x-coe-", "x-ratelimit-", "server-timing"];
const NUMBERS = { temperature: Number, max_tokens: Number };

/**
 * An answer that fills in by itself; `changed` is told of each change and `ended` of the last. Its `state` is asking,
 * streaming, done, stopped or failed (then there is an `error`); `stop` is there as long as it may be stopped. In the
 * end it has the log's `record`, and meanwhile `why`, what the router says of the question.
 */
export function ask({ model, messages, settings, session, changed, ended }) {
  const aborter = new AbortController();
  const answer = { model, state: "asking", text: "", headers: {}, error: null, record: null, why: null, said: "", seen: {} };
  answer.stop = () => aborter.abort();
  const request = { body: bodyOf(model, messages, settings), headers: headersOf(settings, session) };
  const told = soon(changed);
  explain(answer, request).then(told);
  stream(answer, request, aborter.signal, told).finally(async () => {
    delete answer.stop;
    changed();
    ended();
    await look(answer);
    changed();
    ended();
  });
  return answer;
}

function bodyOf(model, messages, settings) {
  const body = { model, messages };
  for (const [name, read] of Object.entries(NUMBERS)) if (settings[name] !== "") body[name] = read(settings[name]);
  return body;
}

function headersOf({ cost_weight, retrieval }, session) {
  const headers = { "x-session-id": session, "x-coe-explain": "1", "x-coe-retrieval": retrieval };
  if (cost_weight !== "") headers["x-coe-cost-weight"] = cost_weight;
  return headers;
}

async function stream(answer, { body, headers }, signal, told) {
  const began = performance.now();
  try {
    const response = await api.fetch("v1/chat/completions", { body: { ...body, stream: true }, headers, signal });
    answer.headers = shownOf(response.headers);
    for await (const data of dataOf(response)) {
      if (data === "[DONE]") break;
      take(answer, data, performance.now() - began);
      told();
    }
    answer.state = "done";
  } catch (error) {
    answer.state = signal.aborted ? "stopped" : "failed";
    if (!signal.aborted) answer.error = { message: error.message, status: error.status ?? 0, retry: error.headers?.get("retry-after") ?? null };
    if (error.headers) answer.headers = shownOf(error.headers);
  }
  answer.seen.total = performance.now() - began;
}

/** One event. Throws for an event that is an error. */
function take(answer, data, elapsed) {
  const event = JSON.parse(data);
  if (event.error) throw Object.assign(new Error(event.error.message), { status: 200 });
  const piece = event.choices?.[0]?.delta?.content;
  if (!piece) return;
  answer.seen.first ??= elapsed;
  answer.state = "streaming";
  answer.text += piece;
}

const shownOf = (headers) => Object.fromEntries([...headers].filter(([name]) => DRAWN.some((start) => name.startsWith(start))));

/** The decision explained. It is not the answer's own, which may explore, but made at the same moment from the same. */
async function explain(answer, { body, headers }) {
  try {
    answer.why = await api.post("v1/route", body, { headers });
  } catch (error) {
    answer.why = { failed: error.message };
  }
}

/** What the log says of it; the endpoint waits until it is there. */
async function look(answer) {
  const id = answer.headers["x-request-id"];
  if (!id) return;
  try {
    const { prompt: _, feedback: __, choices: ___, ...record } = await api.get(`v1/records/${id}`);
    answer.record = record;
  } catch (error) {
    answer.record = { failed: error.message };
  }
}

/** Calls `task` once before the next frame, however often it is asked to. */
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
