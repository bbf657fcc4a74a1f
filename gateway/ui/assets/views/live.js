// Live: what the gateway does now, told by itself every second.

import { html, nothing } from "../vendor/lit-html.js";
import { failure, figure, milliseconds, number, percent, bars } from "../parts.js";
import { History } from "./live/history.js";
import { drawn, flow, rates } from "./live/pictures.js";
import { Stream } from "./live/stream.js";
import { between, failures, margins, quantile, shares, sum, together } from "./live/sums.js";
import { expertTable, gatewayFacts, sharesOf } from "./live/tables.js";

export const name = "live";
export const title = "Live";

const SPANS = { 10: "last 10 seconds", 60: "last minute", 300: "last 5 minutes", all: "since start" };
const CALM = 2000; // milliseconds between two drawings of the flow, which is the dearest to draw
const WARNINGS = {
  reload_failed: "The current declaration or promoted artifacts could not be loaded; the last good state stays in service.",
  log_failing: "The routing log cannot be written; records are waiting.",
  limits_degraded: "Redis unavailable: limits are counted per gateway.",
  artifacts_behind: "This gateway could not load the artifacts that are in use.",
};
const SAID = {
  connecting: ["Connecting…", "plain"],
  live: ["Live", "good"],
  paused: ["Paused", "warn"],
  away: ["Gateway unavailable; retrying", "bad"],
  refused: ["Refused", "bad"],
};

// What was seen outlives the view, so that a look elsewhere costs no history.
const seen = new History();
let span = "60";

export function open({ draw }) {
  const shown = { rates: null, flow: null, drawn: 0 };
  const stream = new Stream({
    heard: (look) => {
      seen.add(look);
      refresh(shown, false);
      draw();
    },
    changed: draw,
  });
  const pause = () => stream.pause(!stream.paused);
  const keyed = (event) => {
    if (event.key !== " " || event.target.closest?.("button, a, input, select, textarea, summary, [tabindex='0']")) return;
    event.preventDefault();
    pause();
  };
  const chosen = (event) => {
    span = event.target.value;
    if (seen.latest) refresh(shown, true);
    draw();
  };
  document.addEventListener("keydown", keyed);
  if (seen.latest) refresh(shown, true);
  return {
    template: () => html`
      <div class="row live-head">
        <h1>Live</h1>
        <span role="status">${state(stream)}</span>
        <label>Over <select @change=${chosen}>
          ${Object.entries(SPANS).map(([value, text]) => html`<option value=${value} ?selected=${value === span}>${text}</option>`)}
        </select></label>
        <button @click=${pause} aria-keyshortcuts="Space">${stream.paused ? "Resume" : "Pause"}</button>
      </div>
      ${stream.state === "refused" ? failure(stream.error, () => stream.retry()) : body(stream, shown, chosen)}
    `,
    close: () => {
      document.removeEventListener("keydown", keyed);
      stream.close();
    },
  };
}

const state = ({ state: word, error }) => {
  const [text, kind] = SAID[word];
  const why = word === "away" && error?.status ? `${error.message} Retrying` : text;
  return html`<span class="badge ${kind}">${why}</span>`;
};

/** The pictures anew, the flow only now and then unless `all` of it has changed. */
function refresh(shown, all) {
  const look = seen.latest;
  shown.past = past();
  shown.rates = rates(seen.rates, look.time);
  if (!all && performance.now() - shown.drawn < CALM) return;
  const flows = shown.past?.flows ?? {};
  const told = JSON.stringify(flows);
  if (!all && told === shown.told) return;
  Object.assign(shown, { told, drawn: performance.now(), totals: margins(flows) });
  shown.flow = flow(flows, { categories: look.categories, experts: look.experts.map(({ id }) => id) });
}

/** What happened in the chosen time; null while there is nothing to compare with. */
function past() {
  const look = seen.latest;
  if (span === "all") return between(look, null);
  const base = seen.back(Number(span));
  return base ? between(look, base) : null;
}

function body(stream, shown, chosen) {
  const look = seen.latest;
  if (!look) {
    return stream.state === "away"
      ? html`<p class="note">Gateway unavailable. This page reconnects automatically.</p>`
      : html`<p class="note">Loading…</p>`;
  }
  return html`
    ${look.warnings.map((word) => html`<p class="card warning bad" role="alert">${WARNINGS[word] ?? word}</p>`)}
    ${figures(look, shown.past)}
    <section class="card" aria-labelledby="rates">
      <h2 id="rates">Requests a second</h2>
      ${drawn(shown.rates)}
    </section>
    ${look.requests.total ? traffic(look, shown, chosen) : nobody()}
    <section class="card" aria-labelledby="experts-now">
      <h2 id="experts-now">Experts</h2>
      ${shown.past ? expertTable(look, shown.past) : nothing}
    </section>
    <div class="columns">
      <section class="card" aria-labelledby="ends">
        <h2 id="ends">Outcomes</h2>
        ${shown.past && shown.past.total ? ends(shown.past) : html`<p class="faint">None in this period.</p>`}
      </section>
      <section class="card" aria-labelledby="gateway">
        <h2 id="gateway">Gateway</h2>
        ${shown.past ? gatewayFacts(look, shown.past) : nothing}
      </section>
    </div>
  `;
}

function figures(look, past) {
  const first = past && together(past.experts.map((expert) => expert.first));
  const of = (bounds, counts, share) => (past ? milliseconds(quantile(bounds, counts, share)) : "–");
  const replaced = past && past.experts.reduce((all, { fallbacks }) => all + fallbacks, 0);
  const part = (many) => (past?.total ? percent(many / past.total) : "–");
  return html`<dl class="figures">
    ${figure("Requests a second", past ? number(past.total / past.over) : "–", `${look.requests.total.toLocaleString("en")} in all`)}
    ${figure("In flight", number(look.in_flight), `${number(look.queued)} queued`)}
    ${figure("First byte p50", of(look.first_byte_bounds, first, 0.5), html`p95 ${of(look.first_byte_bounds, first, 0.95)}`)}
    ${figure("Overhead p50", of(look.routing.bounds, past?.routing, 0.5), html`p95 ${of(look.routing.bounds, past?.routing, 0.95)}`)}
    ${figure("Failed", part(past && failures(past.outcomes)), `${number(past ? failures(past.outcomes) : 0)} requests`)}
    ${figure("Fallbacks", part(replaced), `${number(replaced ?? 0)} requests`)}
  </dl>`;
}

function traffic(look, shown, chosen) {
  if (!sum(shown.totals?.categories ?? {})) {
    return html`<section class="card note">
      <p>No request was routed ${span === "all" ? SPANS.all : `in the ${SPANS[span]}`}.</p>
      <button value="all" @click=${chosen}>Show all since start</button>
    </section>`;
  }
  const { categories, experts } = shown.totals;
  return html`<div class="columns traffic">
    <section class="card" aria-labelledby="flow">
      <h2 id="flow">Category to expert</h2>
      ${drawn(shown.flow)}
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

const nobody = () => html`<section class="card note">
  <h2>No requests yet</h2>
  <p>Requests appear here as they arrive. Send one from the <a href="#/playground">playground</a>, or with any OpenAI client:</p>
  <p><code>curl ${new URL("../v1/chat/completions", document.baseURI).href} -H 'content-type: application/json' -d '{"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}'</code></p>
</section>`;

const ends = (past) => html`
  ${sharesOf("Outcome", past.outcomes)}
  ${sharesOf("Routing reason", past.reasons)}
  ${sharesOf("Retrieval", Object.fromEntries(Object.entries(past.retrieval).filter(([result]) => result !== "none")))}
  ${sharesOf("Feedback", past.feedback)}
`;
