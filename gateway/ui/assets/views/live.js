// Live: the current numbers of the gateway, updated every second.

import { html, nothing } from "../vendor/lit-html.js";
import { chart } from "../charts.js";
import { failure, figure, milliseconds, number, percent, bars } from "../parts.js";
import { History } from "./live/history.js";
import { flow, rates } from "./live/charts.js";
import { Polling } from "./live/polling.js";
import { openResidency } from "./live/residency.js";
import { openSpend } from "./live/spend.js";
import { difference, failures, margins, quantile, shares, sum, merged } from "./live/counters.js";
import { expertTable, gatewayFacts, sharesOf } from "./live/tables.js";

export const name = "live";
export const title = "Live";

const SPANS = { 10: "last 10 seconds", 60: "last minute", 300: "last 5 minutes", all: "since start" };
const FLOW_INTERVAL_MS = 2000; // between two renderings of the flow, the most expensive chart
const WARNINGS = {
  reload: "The current declaration or promoted artifacts could not be loaded; the last good state stays in service.",
  log: "The routing log cannot be written; records are waiting.",
  limits: "Redis unavailable: limits are counted per gateway.",
  issued_keys: "Issued API keys cannot be read; after 5 minutes they are refused.",
  artifacts: "This gateway could not load the artifacts that are in use.",
  spool: "The spool, or a log without one, cannot be written; what the log does not accept waits in memory.",
  cache: "The store of the answer cache is away; nothing is answered from it.",
  stored_responses: "Answers of the Responses API cannot be stored or read.",
};
const STATE_LABELS = {
  connecting: ["Connecting…", "plain"],
  live: ["Live", "good"],
  paused: ["Paused", "warn"],
  unavailable: ["Gateway unavailable; retrying", "bad"],
  refused: ["Refused", "bad"],
};

// The history outlives the view, so that visiting another view does not lose it.
const history = new History();
let span = "60";

export function open({ draw }) {
  const shown = { rates: null, flow: null, drawn: 0 };
  const spend = openSpend(draw);
  const residency = openResidency(draw);
  const polling = new Polling({
    onSnapshot: (snapshot) => {
      history.add(snapshot);
      residency.update(snapshot);
      refresh(shown, false);
      draw();
    },
    onChange: draw,
  });
  const pause = () => polling.pause(!polling.paused);
  const onKey = (event) => {
    if (event.key !== " " || event.target.closest?.("button, a, input, select, textarea, summary, [tabindex='0']")) return;
    event.preventDefault();
    pause();
  };
  const selectSpan = (event) => {
    span = event.target.value;
    if (history.latest) refresh(shown, true);
    draw();
  };
  document.addEventListener("keydown", onKey);
  if (history.latest) refresh(shown, true);
  return {
    template: () => html`
      <div class="row live-head">
        <h1>Live</h1>
        <span role="status">${state(polling)}</span>
        <label>Over <select @change=${selectSpan}>
          ${Object.entries(SPANS).map(([value, text]) => html`<option value=${value} ?selected=${value === span}>${text}</option>`)}
        </select></label>
        <button @click=${pause} aria-keyshortcuts="Space">${polling.paused ? "Resume" : "Pause"}</button>
      </div>
      ${polling.state === "refused" ? failure(polling.error, () => polling.retry()) : body(polling, shown, selectSpan)}
      ${polling.state === "refused" ? nothing : [residency.template(), spend.template()]}
    `,
    close: () => {
      document.removeEventListener("keydown", onKey);
      polling.close();
    },
  };
}

const state = ({ state: word, error }) => {
  const [text, kind] = STATE_LABELS[word];
  const why = word === "unavailable" && error?.status ? `${error.message} Retrying` : text;
  return html`<span class="badge ${kind}">${why}</span>`;
};

/** Updates the charts; the flow only at intervals, unless `all` is true. */
function refresh(shown, all) {
  const snapshot = history.latest;
  shown.period = periodCounts();
  shown.rates = rates(history.rates, snapshot.time);
  if (!all && performance.now() - shown.drawn < FLOW_INTERVAL_MS) return;
  const flows = shown.period?.flows ?? {};
  const key = JSON.stringify(flows);
  if (!all && key === shown.flowKey) return;
  Object.assign(shown, { flowKey: key, drawn: performance.now(), totals: margins(flows) });
  shown.flow = flow(flows, { categories: snapshot.categories, experts: snapshot.experts.map(({ id }) => id) });
}

/** Counts of the selected period; null while there is no earlier snapshot. */
function periodCounts() {
  const snapshot = history.latest;
  if (span === "all") return difference(snapshot, null);
  const base = history.back(Number(span));
  return base ? difference(snapshot, base) : null;
}

function body(polling, shown, selectSpan) {
  const snapshot = history.latest;
  if (!snapshot) {
    return polling.state === "unavailable"
      ? html`<p class="note">Gateway unavailable. This page reconnects automatically.</p>`
      : html`<p class="note">Loading…</p>`;
  }
  return html`
    ${snapshot.warnings.map((word) => html`<p class="card warning bad" role="alert">${WARNINGS[word] ?? word}</p>`)}
    ${figures(snapshot, shown.period)}
    <section class="card" aria-labelledby="rates">
      <h2 id="rates">Requests per second</h2>
      ${chart(shown.rates)}
    </section>
    ${snapshot.requests.total ? traffic(snapshot, shown, selectSpan) : noRequests()}
    <section class="card" aria-labelledby="experts-now">
      <h2 id="experts-now">Experts</h2>
      ${shown.period ? expertTable(snapshot, shown.period) : nothing}
    </section>
    <div class="columns">
      <section class="card" aria-labelledby="ends">
        <h2 id="ends">Outcomes</h2>
        ${shown.period && shown.period.total ? outcomes(shown.period) : html`<p class="faint">None in this period.</p>`}
      </section>
      <section class="card" aria-labelledby="gateway">
        <h2 id="gateway">Gateway</h2>
        ${shown.period ? gatewayFacts(snapshot, shown.period) : nothing}
      </section>
    </div>
  `;
}

function figures(snapshot, period) {
  const first = period && merged(period.experts.map((expert) => expert.first));
  const of = (bounds, counts, share) => (period ? milliseconds(quantile(bounds, counts, share)) : "–");
  const replaced = period && period.experts.reduce((all, { fallbacks }) => all + fallbacks, 0);
  const part = (many) => (period?.total ? percent(many / period.total) : "–");
  return html`<dl class="figures">
    ${figure("Requests per second", period ? number(period.total / period.over) : "–", `${snapshot.requests.total.toLocaleString("en")} in total`)}
    ${figure("In flight", number(snapshot.in_flight), `${number(snapshot.queued)} queued`)}
    ${figure("First byte p50", of(snapshot.first_byte_bounds, first, 0.5), html`p95 ${of(snapshot.first_byte_bounds, first, 0.95)}`)}
    ${figure("Overhead p50", of(snapshot.routing.bounds, period?.routing, 0.5), html`p95 ${of(snapshot.routing.bounds, period?.routing, 0.95)}`)}
    ${figure("Failed", part(period && failures(period.outcomes)), `${number(period ? failures(period.outcomes) : 0)} requests`)}
    ${figure("Fallbacks", part(replaced), `${number(replaced ?? 0)} requests`)}
  </dl>`;
}

function traffic(snapshot, shown, selectSpan) {
  if (!sum(shown.totals?.categories ?? {})) {
    return html`<section class="card note">
      <p>No request was routed ${span === "all" ? SPANS.all : `in the ${SPANS[span]}`}.</p>
      <button value="all" @click=${selectSpan}>Show all since start</button>
    </section>`;
  }
  const { categories, experts } = shown.totals;
  return html`<div class="columns traffic">
    <section class="card" aria-labelledby="flow">
      <h2 id="flow">Category to expert</h2>
      ${chart(shown.flow)}
    </section>
    <section class="card" aria-labelledby="shares">
      <h2 id="shares">Shares</h2>
      <h3>Category</h3>
      ${bars("Share of each category", shares(categories))}
      <h3>Expert</h3>
      ${bars("Share of each expert", shares(experts))}
    </section>
  </div>`;
}

const noRequests = () => html`<section class="card note">
  <h2>No requests yet</h2>
  <p>Requests appear here as they arrive. Send one from the <a href="#/playground">playground</a>, or with any OpenAI client:</p>
  <p><code>curl ${new URL("../v1/chat/completions", document.baseURI).href} -H 'content-type: application/json' -d '{"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}'</code></p>
</section>`;

const outcomes = (period) => html`
  ${sharesOf("Outcome", period.outcomes)}
  ${sharesOf("Routing reason", period.reasons)}
  ${sharesOf("Retrieval", Object.fromEntries(Object.entries(period.retrieval).filter(([result]) => result !== "none")))}
  ${sharesOf("Feedback", period.feedback)}
`;
