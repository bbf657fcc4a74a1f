// The page of one record: its fields and feedback.

import { html, nothing } from "../../vendor/lit-html.js";
import { api, resource } from "../../api.js";
import { dollars, figure, milliseconds, moment, number, percent, shown } from "../../parts.js";
import { candidateTable, retrievalDetails, outcome, posterior, sentence, speed, timeline, unanswered } from "../../explained.js";
import { recipeCalls } from "../../recipes.js";
import { openLabels } from "./labels.js";

export function openRecord(id, draw) {
  const at = `v1/records/${encodeURIComponent(id)}`;
  const record = resource(() => api.get(at), draw);
  const labels = openLabels(id, draw, () => record.load());
  return {
    template: () => html`
      <p class="crumb"><a href="#/log">Log</a></p>
      <article class="record">
        <h1 class="code">${id}</h1>
        ${shown(record, (found) => whole(found, labels))}
      </article>
    `,
  };
}

function whole(record, labels) {
  return html`
    <p class="lead">${outcome(record.outcome)} ${sentence(record)}</p>
    <dl class="figures">
      ${figure("Category", record.category || "–", `confidence ${percent(record.confidence)}`)}
      ${figure("Expert", record.expert || "–", record.reason ? html`${record.reason} ${unanswered(record)}` : nothing)}
      ${figure("First token", milliseconds(record.first_token_ms))} ${figure("Total", milliseconds(record.total_ms))}
      ${figure("Tokens", `${number(record.input_tokens, 6)} + ${number(record.output_tokens, 6)}`, record.cached_tokens ? `in + out, ${number(record.cached_tokens, 6)} in cached` : "in + out")}
      ${figure("Cost", dollars(record.cost))} ${figure("Speed", speedOf(record), "tokens a second")}
    </dl>
    <div class="columns">
      <div>
        ${card("Category", html`${posterior(record)} ${classified(record)}`)}
        ${record.recipe ? card("Recipe", recipeCalls(record)) : nothing}
        ${card("Candidates", candidateTable(record))} ${card("Time", timeline("Time", periods(record)))}
        ${card("Retrieval", retrievalDetails(record))} ${card("Versions", versions(record))}
      </div>
      <div>
        ${card("Request", request(record))} ${record.prompt == null ? nothing : card("Text", storedText(record.prompt))}
        ${labels.template(record)}
      </div>
    </div>
  `;
}

const card = (title, content) => html`<section class="card"><h2>${title}</h2>${content}</section>`;

const storedText = (text) => html`<div class="kept" tabindex="0" role="region" aria-label="Classified text">
  <pre class="text" dir="auto">${text}</pre>
</div>`;

const speedOf = (record) => number(speed(record));

/** Periods from arrival to the last byte. Routing includes reading the body; retrieval follows it. */
function periods(record) {
  const { routing_ms: routing, retrieval_ms: retrieval, first_token_ms: first, total_ms: total } = record;
  if (first == null) return [{ name: "Routing", ms: routing }, { name: "Response", ms: total - routing }];
  return [
    { name: "Routing", ms: routing },
    ...(retrieval ? [{ name: "Retrieval", ms: retrieval }] : []),
    { name: "Time to first token", ms: Math.max(0, first - routing - retrieval) },
    { name: record.stream ? "Streaming" : "Response", ms: Math.max(0, total - first) },
  ];
}

const STAGES = {
  fast: "fast heads",
  encoder: "encoder",
  multilingual: "multilingual encoder",
  fast_uncertain: "fast heads, uncertain",
  short_circuit: "fast heads (same expert either way)",
};

function classified(record) {
  if (!record.category) return nothing;
  return html`<dl class="pairs">
    <dt>In-distribution probability</dt>
    <dd>${percent(record.in_distribution)}</dd>
    <dt>Stage</dt>
    <dd>${STAGES[record.stage] ?? record.stage}</dd>
  </dl>`;
}

function request(record) {
  const filter = (field) =>
    record[field] == null ? "–" : html`<a href="#/log?${new URLSearchParams({ [field]: record[field] })}">${record[field]}</a>`;
  return html`<dl class="pairs">
    <dt>Time</dt><dd>${moment(record.time)}</dd>
    <dt>API</dt><dd>${record.api}${record.stream ? ", streamed" : ""}</dd>
    <dt>Session</dt><dd>${filter("session")}</dd>
    <dt>Tenant</dt><dd>${filter("tenant")}</dd>
    <dt>Key</dt><dd>${record.key ?? "–"}</dd>
    <dt>Capabilities</dt><dd>${record.needs == null ? "unknown" : record.needs.join(", ") || "none"}</dd>
    <dt>Attempts</dt><dd>${record.attempts}</dd>
    ${record.cache ? html`<dt>Answer cache</dt><dd>${record.cache}</dd>` : nothing}
    <dt>Cost weight</dt><dd>${number(record.cost_weight)}</dd>
    ${record.propensities?.length ? html`<dt>Exploration</dt><dd>${record.candidates.map((name, place) => `${name} ${percent(record.propensities[place])}`).join(", ")}</dd>` : nothing}
  </dl>`;
}

function versions(record) {
  return html`<dl class="pairs">
    <dt>Router</dt><dd class="code">${record.router || "–"}</dd>
    <dt>Plan</dt><dd class="code">${record.plan || "declared"}</dd>
    <dt>experts.yaml</dt><dd class="code">${record.config || "–"}</dd>
    <dt>Text digest (SHA-256)</dt><dd class="code">${record.digest || "–"}</dd>
  </dl>`;
}
