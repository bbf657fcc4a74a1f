// The explanation of one answer: posterior, nearest examples, candidates, retrieval, and the time of each step.

import { html, nothing } from "../../vendor/lit-html.js";
import { bar, dollars, milliseconds, number, percent } from "../../parts.js";
import { recipeCalls } from "../../recipes.js";
import { candidateTable, retrievalDetails, posterior, sentence, speed, timeline } from "../../explained.js";

/** The explanation panel of one answer. */
export function why(answer) {
  const decision = decisionOf(answer);
  if (!decision) return html`<p class="faint" role="status">${answer.state === "pending" ? "Deciding…" : noDecision(answer)}</p>`;
  return html`
    <p>${sentence(decision)}</p>
    ${figures(answer, decision)}
    ${decision.recipe ? part("Recipe", recipeCalls(decision)) : nothing}
    ${part("Category", posterior(decision))}
    ${part("Nearest examples", neighbours(answer.explanation))}
    ${answer.explanation?.measured?.length ? part("Nearest measured prompts", measured(answer.explanation)) : nothing}
    ${part("Candidates", candidateTable(decision, answer.explanation?.health))}
    ${part("Retrieval", decision.retrieval ? retrievalDetails(decision) : html`<p class="faint">${noRetrieval(answer)}</p>`)}
    ${part("Time", timeline("Steps of the request", steps(answer, decision)))}
    ${headers(answer)}
    ${answer.record?.request_id ? html`<p><a href="#/log/${answer.record.request_id}">Open record</a></p>` : nothing}
  `;
}

const part = (title, content) => html`<section class="part"><h3>${title}</h3>${content}</section>`;

function noDecision({ explanation, record }) {
  return explanation?.failed ?? record?.failed ?? "No information on the decision.";
}

function noRetrieval(answer) {
  if (answer.record?.failed) return `Not known: the record could not be loaded (${answer.record.failed})`;
  const known = isOpen(answer) || answer.headers["x-request-id"];
  return known ? "Known when the answer is complete." : "Not known: the request ended before its response began.";
}

const isOpen = ({ state }) => state === "pending" || state === "streaming";

/** The record where it exists; before that, the headers and the explanation. */
function decisionOf({ record, headers: found, explanation }) {
  if (record?.request_id && record.category) return record;
  const known = explanation && !explanation.failed ? explanation : null;
  if (!found["x-coe-expert"]) return known && { ...known, attempts: 1, propensity: 1 };
  return {
    ...(known ?? { candidates: [], utility: [], price: [], probabilities: {} }),
    expert: found["x-coe-expert"],
    category: found["x-coe-category"],
    confidence: Number(found["x-coe-confidence"]),
    reason: found["x-coe-reason"],
    rule: found["x-coe-rule"] ?? "",
    fallback_from: found["x-coe-fallback-from"] ?? "",
    cause: found["x-coe-cause"] ?? "",
    attempts: Number(found["x-coe-attempts"]),
    propensity: 1,
  };
}

function figures({ measured, record }, decision) {
  const rate = record?.request_id ? speed(record) : null;
  return html`<dl class="facts">
    ${fact("First token", milliseconds(measured.first))} ${fact("Total", milliseconds(measured.total))}
    ${fact("Tokens", decision.output_tokens == null ? "–" : `${number(decision.input_tokens, 6)} + ${number(decision.output_tokens, 6)}`)}
    ${fact("Tokens/s", number(rate))} ${fact("Cost", dollars(decision.cost))}
  </dl>`;
}

const fact = (name, value) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`;

function neighbours(explanation) {
  if (!explanation) return html`<p class="faint">Loading…</p>`;
  if (explanation.failed) return html`<p class="faint">${explanation.failed}</p>`;
  if (!explanation.neighbours.length) return html`<p class="faint">This router stores no examples.</p>`;
  return html`<ol class="neighbours">
    ${explanation.neighbours.map(
      ({ category, similarity, text }) => html`<li>
        ${text == null
          ? html`<span class="faint">Text not stored.</span>`
          : html`<span class="text" dir="auto">${text}</span>`}
        <span class="near">
          <span>${category}</span>${bar(similarity, 8)}<span class="number">${similarity.toFixed(2)}<span class="unseen"> cosine similarity</span></span>
        </span>
      </li>`,
    )}
  </ol>`;
}

/** The prompts behind the residual, with the scores of the candidates; a rated request has no text. */
function measured({ measured: prompts }) {
  return html`<ol class="neighbours">
    ${prompts.map(
      ({ prompt_id: id, category, text, similarity, weight, scores }) => html`<li>
        ${text == null ? html`<a href="#/log/${id}">Rated request</a>` : html`<span class="text" dir="auto">${text}</span>`}
        <span class="near">
          <span>${category}</span>${bar(similarity, 8)}<span class="number">${similarity.toFixed(2)}<span class="unseen"> cosine similarity</span></span>
        </span>
        <span class="faint">${Object.entries(scores).map(([name, score]) => `${name} ${number(score)}`).join(", ")}; weight ${percent(weight)}</span>
      </li>`,
    )}
  </ol>`;
}

/** The eight steps of the serving line: six from the header server-timing, the seventh from the record; the eighth follows. */
function steps(answer, decision) {
  const { headers: found, record } = answer;
  const header = found["server-timing"] ?? "";
  const times = Object.fromEntries([...header.matchAll(/([a-z]+);dur=([\d.]+)/g)].map(([, name, ms]) => [name, Number(ms)]));
  const relayed = decision.first_token_ms == null || !record?.request_id ? null : decision.total_ms - decision.first_token_ms;
  const named = ["admit", "parse", "classify", "assign", "retrieve", "call"].map((name) => ({ name, ms: times[name] ?? null }));
  return [...named, { name: "relay", ms: relayed, note: isOpen(answer) ? "…" : "–" }, { name: "record", ms: null, note: "after the response" }];
}

function headers({ headers: found }) {
  const names = Object.keys(found).sort();
  if (!names.length) return nothing;
  return html`<details class="part">
    <summary>Response headers</summary>
    <dl class="pairs headers">${names.map((name) => html`<dt class="code">${name}</dt><dd class="code">${found[name]}</dd>`)}</dl>
  </details>`;
}
