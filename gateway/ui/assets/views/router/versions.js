// The version in use of each kind, all its versions, and their history.

import { html, nothing } from "../../vendor/lit-html.js";
import { badge, moment, percent, table } from "../../parts.js";
import { KINDS, isServed, versionOf } from "./kinds.js";

const BY = { train: "train", plan: "plan", retrain: "retrain", hand: "manual", rollback: "rollback" };

/** The card of a kind with the version in use. */
export function card(one, move) {
  const { title } = KINDS[one.kind];
  const last = one.history.find(({ version }) => version === one.in_use);
  return html`<section class="card in-use" aria-labelledby="in-use-${one.kind}">
    <div class="row">
      <h2 id="in-use-${one.kind}">${title}</h2>
      ${state(one)}
    </div>
    <p class=${one.in_use ? "code" : "faint"}>${versionOf(one.kind, one.in_use)}</p>
    ${last && one.in_use ? html`<p class="faint">${moment(last.time)}, ${BY[last.by] ?? last.by}${last.why ? html`: ${last.why}` : nothing}</p>` : nothing}
    ${one.unused
      ? html`<p class="warn">Unused: no document store is declared, or the gate is of other categories or another encoder.</p>`
      : nothing}
    ${one.damaged ? html`<p class="bad">${one.damaged}</p>` : nothing}
    ${one.before
      ? html`<button class="quiet" @click=${() => move.ask({ kind: one.kind, was: one.in_use, version: one.before.version, back: true })}>
          Roll back to ${one.before.version ? html`<code>${one.before.version}</code>` : versionOf(one.kind, null)}
        </button>`
      : nothing}
  </section>`;
}

function state(one) {
  const workers = Object.values(one.served).reduce((sum, count) => sum + count, 0);
  const served = one.served[one.in_use ?? ""] ?? 0;
  if (!workers) return nothing;
  if (!isServed(one)) return badge(`loaded by ${served} of ${workers} workers`, "warn");
  if (!one.in_use) return nothing;
  return one.unused ? badge("unused", "warn") : badge(workers > 1 ? `served by ${workers} workers` : "served", "good");
}

/** The versions of a kind, newest first; `chosen` is the one whose report is shown. */
export function versions(one, chosen, move) {
  const { title, made } = KINDS[one.kind];
  if (!one.versions.length) {
    return html`<section class="card">
      <h2>${title}: versions</h2>
      <p class="note">None yet; run <code>${made}</code>.</p>
    </section>`;
  }
  const columns = [
    { title: "Version", cell: ({ version }) => link(one, version, chosen) },
    { title: "Created", cell: ({ created }) => (created ? moment(Date.parse(created) / 1000) : "–") },
    { title: "Origin", cell: ({ origin }) => (origin ? (BY[origin] ?? origin) : "–") },
    { title: "Data", cell: ({ data }) => (data ? html`<code title=${data}>${data.slice(0, 12)}</code>` : "–") },
    ...(FIGURES[one.kind] ?? []),
    { title: "", cell: (row) => action(one, row, move) },
  ];
  return html`<section class="card">
    <h2>${title}: versions</h2>
    ${table(`Versions of the ${title.toLowerCase()}, newest first`, columns, one.versions)}
    ${one.more_versions ? html`<p class="faint">${one.more_versions} older ones are not shown.</p>` : nothing}
    <details class="moves">
      <summary>History (${one.history.length + one.more_history})</summary>
      ${table("History, newest first", moves(one.kind), one.history)}
      ${one.more_history ? html`<p class="faint">${one.more_history} earlier entries are not shown.</p>` : nothing}
    </details>
  </section>`;
}

const FIGURES = {
  router: [
    { title: "Accuracy", number: true, cell: ({ metrics }) => percent(metrics.accuracy) },
    { title: "Calibration error", number: true, cell: ({ metrics }) => metrics.ece?.toFixed(3) ?? "–" },
    { title: "Prompts", number: true, cell: ({ metrics }) => metrics.examples?.toLocaleString("en") ?? "–" },
  ],
  assignment: [{ title: "Planned quality", number: true, cell: ({ quality }) => quality?.toFixed(3) ?? "–" }],
  gate: [{ title: "Quality with the gate", number: true, cell: ({ quality }) => quality?.toFixed(3) ?? "–" }],
};

function link({ kind }, version, chosen) {
  return html`<a href="#/router/${kind}/${version}" aria-current=${version === chosen ? "true" : nothing}><code>${version}</code></a>`;
}

function action(one, { version, damaged }, move) {
  if (version === one.in_use) return badge("in use", "good");
  if (damaged) return html`<span class="bad">${damaged}</span>`;
  const ask = () => move.ask({ kind: one.kind, was: one.in_use, version, back: false });
  return html`<button class="quiet" @click=${ask}>Promote<span class="unseen"> ${version}</span></button>`;
}

const moves = (kind) => [
  { title: "Time", cell: ({ time }) => moment(time) },
  { title: "From", cell: ({ was }) => html`<code>${versionOf(kind, was)}</code>` },
  { title: "To", cell: ({ version }) => html`<code>${versionOf(kind, version)}</code>` },
  { title: "Origin", cell: ({ by }) => BY[by] ?? by },
  { title: "Reason", cell: ({ why }) => html`<span class="wraps">${why || "–"}</span>` },
];
