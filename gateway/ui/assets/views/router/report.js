// The report of one version, optionally compared with another one.

import { html, nothing } from "../../vendor/lit-html.js";
import { badge, percent, shown, table } from "../../parts.js";
import { KINDS } from "./kinds.js";
import { curves } from "./curves.js";
import { confusion } from "./confusion.js";

/** `one` is the kind, `whole` the version's report, `other` a resource of the one to compare with, or null. */
export function report(one, whole, other, at) {
  const { title } = KINDS[one.kind];
  const candidates = one.versions.filter(({ version, damaged }) => version !== whole.version && !damaged);
  return html`<section class="card" aria-labelledby="report">
    <div class="row">
      <h2 id="report">${title} <code>${whole.version}</code></h2>
      ${whole.version === one.in_use ? badge("in use", "good") : nothing}
      ${candidates.length ? comparing(one, whole, candidates, other) : nothing}
    </div>
    ${whole.damaged
      ? html`<p class="bad" role="alert">This version cannot be used: ${whole.damaged}</p>`
      : other
        ? shown(other, (beside) => CONTENTS[one.kind](whole, beside, at))
        : CONTENTS[one.kind](whole, null, at)}
  </section>`;
}

function comparing({ kind, in_use: inUse }, { version }, candidates, other) {
  const go = (event) => {
    const beside = event.target.value;
    location.hash = `#/router/${kind}/${version}${beside ? `?with=${beside}` : ""}`;
  };
  const chosen = other?.value?.version;
  return html`<label>Compare with
    <select @change=${go}>
      <option value="">none</option>
      ${candidates.map(
        (one) => html`<option value=${one.version} .selected=${one.version === chosen}>${one.version}${one.version === inUse ? ", in use" : ""}</option>`,
      )}
    </select>
  </label>`;
}

const share = (value) => (value == null ? "–" : `${(100 * value).toFixed(1)} %`);
const three = (value) => (value == null ? "–" : value.toFixed(3));
const whole = (value) => (value == null ? "–" : value.toLocaleString("en"));

// [name, value of metrics, how it is written, whether more (1) or less (-1) is better, what it means]
const FIGURES = [
  ["Accuracy", "accuracy", share, 1, "of held-out prompts"],
  ["Accuracy, new topics", "accuracy_on_new_topics", share, 1, "of prompts whose topic was left out of training"],
  ["Calibration error, new topics", "ece", three, -1, "gap between confidence and accuracy; 0 is perfect"],
  ["Out-of-scope AUROC", "out_of_scope_auroc", three, 1, "of confidence, on texts of no category; 0.5 is chance"],
  ["Escalation rate", "escalated", share, -1, "prompts sent to the encoder"],
  ["Confidence threshold", "confidence_threshold", three, 0, "suggested by training"],
  ["Sent to general (known)", "rejected", share, -1, "known prompts below the threshold"],
  ["Sent to general (unknown)", "rejected_out_of_scope", share, 1, "texts of no category below the threshold"],
  ["Prompts", "examples", whole, 0, "in the training set"],
  ["From corrections", "corrections", whole, 0, "corrected prompts among them"],
];

function router({ version, metrics }, other, at) {
  const there = FIGURES.filter(([, key]) => metrics[key] != null || other?.metrics[key] != null);
  if (!there.length) return html`<p class="note">No metrics stored.</p>`;
  const rows = there.map(([name, key, text, good, meaning]) => ({
    name,
    meaning,
    text,
    good,
    own: metrics[key],
    beside: other?.metrics[key],
  }));
  return html`
    <div class="columns">
      <div>${figures("Training metrics", version, rows, other)}</div>
      <div>${categories(version, metrics, other)}</div>
    </div>
    ${curves(metrics, other?.metrics, version, other?.version)} ${confusion(metrics.confusion, at)}
  `;
}

function figures(caption, version, rows, other) {
  const columns = [
    { title: "", cell: ({ name, meaning }) => html`${name}${meaning ? html`<span class="meaning faint">${meaning}</span>` : nothing}` },
    { title: html`<code>${version}</code>`, number: true, cell: ({ own, text }) => text(own) },
    other && { title: html`<code>${other.version}</code>`, number: true, cell: ({ beside, text }) => text(beside) },
    other && { title: "Difference", number: true, cell: difference },
  ].filter(Boolean);
  return table(caption, columns, rows);
}

function difference({ own, beside, text, good }) {
  if (own == null || beside == null) return "–";
  const by = own - beside;
  if (text(Math.abs(by)) === text(0)) return html`<span class="faint">same</span>`;
  const kind = good * by > 0 ? "good" : good * by < 0 ? "bad" : "faint";
  return html`<span class=${kind}>${by < 0 ? "−" : "+"}${text(Math.abs(by))}</span>`;
}

function categories(version, metrics, other) {
  const names = Object.keys({ ...metrics.accuracy_by_category, ...other?.metrics.accuracy_by_category });
  const rows = names.map((name) => ({
    name,
    text: share,
    good: 1,
    own: metrics.accuracy_by_category?.[name],
    beside: other?.metrics.accuracy_by_category?.[name],
  }));
  return rows.length ? figures("Accuracy by category", version, rows, other) : nothing;
}

function assignment({ choice, budget, source, learning }, other) {
  const rows = Object.entries(choice).map(([category, expert]) => ({ category, expert, then: other?.choice[category] }));
  const changes = rows.filter(({ expert, then }) => other && expert !== then).length;
  const columns = [
    { title: "Category", cell: ({ category }) => category },
    { title: "Expert", cell: ({ expert, then }) => (other && expert !== then ? html`<strong>${expert}</strong>` : expert) },
    other && { title: html`<code>${other.version}</code>`, cell: ({ expert, then }) => (expert === then ? html`<span class="faint">same</span>` : then ?? "–") },
  ].filter(Boolean);
  const rowsOf = Object.entries(budget ?? {});
  return html`
    <dl class="pairs">
      ${source ? html`<dt>Scores</dt><dd>${source}</dd>` : nothing}
      <dt>Budget</dt>
      <dd>${rowsOf.length ? rowsOf.map(([row, limit]) => `${row}: ${limit}`).join(", ") : "none"}</dd>
      ${learning ? html`<dt>Learnt</dt><dd>${learning.sentence} (${learning.requests.toLocaleString("en")} requests)</dd>` : nothing}
      ${other ? html`<dt>Differs</dt><dd>in ${changes} of ${rows.length} categories</dd>` : nothing}
    </dl>
    ${table("Assignment", columns, rows)}
  `;
}

const GATE = { never: "Never", always: "Always", gated: "Gated" };

function gate({ metrics }) {
  const rows = Object.entries({ ...metrics.experts, ...(metrics.all ? { "all experts": metrics.all } : {}) });
  if (!rows.length) return html`<p class="note">No metrics stored.</p>`;
  return table(
    "Quality with retrieval never, always and gated",
    [
      { title: "Expert", cell: ([name]) => name },
      ...Object.entries(GATE).map(([key, title]) => ({ title, number: true, cell: ([, found]) => three(found[key]) })),
      { title: "Retrieval rate", number: true, cell: ([, { opened }]) => percent(opened) },
    ],
    rows,
  );
}

const CONTENTS = { router, assignment, gate };
