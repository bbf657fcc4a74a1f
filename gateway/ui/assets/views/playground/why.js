// Why an answer came from where it came: the router's posterior, neighbours, experts, documents, and where time went.

import { html, nothing } from "../../vendor/lit-html.js";
import { bar, dollars, milliseconds, number } from "../../parts.js";
import { considered, documents, posterior, sentence, speed, timeline } from "../../explained.js";

/** The panel of one answer. `heading` is the level of its headings' tags: html`<h2>` or deeper. */
export function why(answer) {
  const told = decided(answer);
  if (!told) return html`<p class="faint" role="status">${answer.state === "asking" ? "Deciding…" : reasonless(answer)}</p>`;
  return html`
    <p>${sentence(told)}</p>
    ${figures(answer, told)}
    ${part("Category", posterior(told))}
    ${part("Nearest examples", neighbours(answer.why))}
    ${part("Candidates", considered(told, answer.why?.health))}
    ${part("Retrieval", told.retrieval ? documents(told) : html`<p class="faint">Known when the answer is complete.</p>`)}
    ${part("Time", timeline("Steps of the request", steps(answer, told)))}
    ${headers(answer)}
    ${answer.record?.request_id ? html`<p><a href="#/log/${answer.record.request_id}">Open record</a></p>` : nothing}
  `;
}

const part = (title, content) => html`<section class="part"><h3>${title}</h3>${content}</section>`;

function reasonless({ why: asked, record }) {
  return asked?.failed ?? record?.failed ?? "No information on the decision.";
}

/** The record where it is there; until then what the headers and the explanation say. */
function decided({ record, headers: found, why: asked }) {
  if (record?.request_id && record.category) return record;
  const known = asked && !asked.failed ? asked : null;
  if (!found["x-coe-expert"]) return known && { ...known, attempts: 1, propensity: 1 };
  return {
    ...(known ?? { candidates: [], utility: [], price: [], probabilities: {} }),
    expert: found["x-coe-expert"],
    category: found["x-coe-category"],
    confidence: Number(found["x-coe-confidence"]),
    reason: found["x-coe-reason"],
    fallback_from: found["x-coe-fallback-from"] ?? "",
    cause: found["x-coe-cause"] ?? "",
    attempts: Number(found["x-coe-attempts"]),
    propensity: 1,
  };
}

function figures({ seen, record }, told) {
  const rate = record?.request_id ? speed(record) : null;
  return html`<dl class="facts">
    ${fact("First token", milliseconds(seen.first))} ${fact("Total", milliseconds(seen.total))}
    ${fact("Tokens", told.output_tokens == null ? "–" : `${number(told.input_tokens, 6)} + ${number(told.output_tokens, 6)}`)}
    ${fact("Tokens/s", number(rate))} ${fact("Cost", dollars(told.cost))}
  </dl>`;
}

const fact = (name, value) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`;

function neighbours(asked) {
  if (!asked) return html`<p class="faint">Loading…</p>`;
  if (asked.failed) return html`<p class="faint">${asked.failed}</p>`;
  if (!asked.neighbours.length) return html`<p class="faint">This router stores no examples.</p>`;
  return html`<ol class="neighbours">
    ${asked.neighbours.map(
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

/** Six of the eight steps are told by the header, the seventh follows from the record, the eighth comes after it all. */
function steps({ headers: found, record, state }, told) {
  const header = found["server-timing"] ?? "";
  const times = Object.fromEntries([...header.matchAll(/([a-z]+);dur=([\d.]+)/g)].map(([, name, ms]) => [name, Number(ms)]));
  const relayed = told.first_token_ms == null || !record?.request_id ? null : told.total_ms - told.first_token_ms;
  const named = ["admit", "parse", "classify", "assign", "gate", "call"].map((name) => ({ name, ms: times[name] ?? null }));
  const open = state === "asking" || state === "streaming";
  return [...named, { name: "relay", ms: relayed, note: open ? "…" : "–" }, { name: "record", ms: null, note: "after the answer" }];
}

function headers({ headers: found }) {
  const names = Object.keys(found).sort();
  if (!names.length) return nothing;
  return html`<details class="part">
    <summary>Response headers</summary>
    <dl class="pairs headers">${names.map((name) => html`<dt class="code">${name}</dt><dd class="code">${found[name]}</dd>`)}</dl>
  </details>`;
}
