// Explanations of a routing decision, from a record or from `/v1/route`: sentences, bars and tables.

import { html, nothing, svg } from "./vendor/lit-html.js";
import { badge, bars, milliseconds, number, percent } from "./parts.js";

const MIN_VISIBLE_SHARE = 0.005; // below it a bar cannot be seen
const KINDS = { ok: "good", aborted: "warn" };

/** The outcome as a badge. */
export const outcome = (word) => badge(word, KINDS[word] ?? "bad");

/** Why the expert was chosen, as a sentence. */
export function sentence(decision) {
  const { reason, expert, category, confidence, candidates, attempts, propensity, utility, price, rule, correction } = decision;
  if (!expert) return "Ended before routing.";
  const near = correction ? `; near the correction ${(correction.digest ?? correction).slice(0, 12)}` : "";
  const prediction = `${category}, confidence ${percent(confidence)}${near}${rule ? `; rule ${rule}` : ""}`;
  switch (reason) {
    case "routed":
      return `${expert} is expected to answer best (${prediction}).${cheaper({ expert, candidates, utility, price })}`;
    case "explored":
      return `${expert} was chosen by exploration (propensity ${percent(propensity)}; ${prediction}).`;
    case "uncertain":
      return `Confidence below the threshold (${prediction}): sent to the general expert ${expert}.`;
    case "cached":
      return `${expert} answered an identical request before; the answer is from the cache (${prediction}).`;
    case "sticky":
      return `The conversation stays with ${expert}: no other is clearly better (${prediction}).`;
    case "pinned":
      return `${expert} was pinned (${prediction}).`;
    case "rule":
      return `The rule names ${expert} (${prediction}).`;
    case "spilled":
      return `The best expert was overloaded; spilled to ${expert} (${prediction}).`;
    case "fallback":
      return `${decision.fallback_from || candidates[0]} did not answer${because(decision.cause)}, so ${expert} answered (${prediction}; attempts: ${attempts}).`;
    default:
      return `${expert} was chosen (${reason}; ${prediction}).`;
  }
}

const because = (cause) => (cause ? `: ${CAUSES[cause] ?? cause}` : "");

/** The cause of a fallback or a failure, in words. */
const CAUSES = {
  connection_refused: "nothing listens at its address",
  connect_timeout: "its address did not accept a connection in time",
  name_resolution: "its host name does not resolve",
  tls_error: "the TLS connection failed",
  unreachable: "its address cannot be reached",
  connection_lost: "its server broke off the connection",
  unauthorized: "it refused the api_key",
  forbidden: "it forbade the request",
  model_not_found: "it does not serve the declared model",
  not_found: "its address has no such API",
  rate_limited: "its rate limit was reached",
  quota_exceeded: "the quota of its account is used up",
  overloaded: "its server was overloaded",
  server_error: "its server answered with an error",
  unexpected_status: "its server answered with an unexpected status",
  timeout: "it was too slow",
  invalid_response: "its answer was not of the declared API",
  rejected: "it rejected the request",
  unsupported: "it does not speak the API of the request",
  asleep: "it was not loaded in time",
  gateway_limit: "the gateway had no memory left for the answer",
  circuit_open: "it had failed too often",
};

/** The first choice and why it did not answer; nothing where it answered. */
export const unanswered = ({ fallback_from: first, expert, cause }) =>
  cause ? html`<span class="faint" title=${CAUSES[cause] ?? cause}>${first || expert}: ${cause}</span>` : nothing;

/** A sentence on a better candidate whose price outweighs its quality. */
function cheaper({ expert, candidates, utility, price }) {
  const all = qualities({ candidates, utility, price });
  const own = all.find((one) => one.name === expert);
  const better = all.find((one) => own && one.quality != null && one.quality > own.quality + 0.0005);
  return better ? ` ${better.name} has higher expected quality, but not enough for its price.` : "";
}

/** Each candidate with its utility, its price, and their sum, the expected quality. */
export function qualities({ candidates = [], utility = [], price = [] }) {
  return candidates.map((name, index) => ({
    name,
    utility: utility[index],
    price: price[index] ?? 0,
    quality: utility[index] == null ? null : utility[index] + (price[index] ?? 0),
  }));
}

/** The posterior as bars, the chosen category marked. */
export function posterior({ probabilities, category }, { limit = 6 } = {}) {
  const shares = Object.values(probabilities ?? {});
  const count = shares.length;
  if (!count) return html`<p class="faint">Not classified.</p>`;
  const caption = "Probability of each category";
  const options = { chosen: category, text: percent };
  if (count <= limit) return bars(caption, probabilities, options);
  const likely = Math.max(3, Math.min(limit, shares.filter((share) => share >= MIN_VISIBLE_SHARE).length));
  return html`${bars(caption, probabilities, { ...options, limit: likely })}
    <details>
      <summary>All ${count} categories</summary>
      ${bars("Probability of all categories", probabilities, options)}
    </details>`;
}

const three = (value) => (value == null || !Number.isFinite(value) ? "–" : value.toFixed(3));

/** The candidates in call order; `health` ({ up, load } by name) is shown where it is known. */
export function candidateTable({ candidates = [], utility = [], price = [], expert }, health) {
  if (!candidates.length) return html`<p class="faint">No candidates.</p>`;
  if (!utility.length) return html`<p class="faint">Not ranked: the expert was pinned.</p>`;
  const priced = price.length > 0;
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Candidates">
    <table class="considered">
      <caption class="unseen">Candidates, in call order</caption>
      <thead>
        <tr>
          <th scope="col">Expert</th>
          <th scope="col" class="number">Quality</th>
          ${priced ? html`<th scope="col" class="number">Price</th><th scope="col" class="number">Utility</th>` : nothing}
          ${health ? html`<th scope="col" class="number">Load</th>` : nothing}
        </tr>
      </thead>
      <tbody>
        ${qualities({ candidates, utility, price }).map(
          (one) => html`<tr class=${one.name === expert ? "chosen" : nothing}>
            <th scope="row">${one.name}${one.name === expert ? html`<span class="unseen"> (chosen)</span>` : nothing}</th>
            <td class="number">${three(one.quality)}</td>
            ${priced ? html`<td class="number">${three(one.price)}</td><td class="number">${three(one.utility)}</td>` : nothing}
            ${health ? html`<td class="number">${healthText(health[one.name])}</td>` : nothing}
          </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

function healthText(one) {
  if (!one) return "–";
  return one.up ? percent(one.load) : badge("down", "bad");
}

/** Consecutive periods, [{ name, ms }], as a bar of their shares and a list of their lengths. */
export function timeline(caption, periods) {
  const known = periods.filter(({ ms }) => ms != null);
  const total = known.reduce((sum, { ms }) => sum + ms, 0) || 1;
  let begun = 0;
  const place = (ms) => {
    const x = `${(100 * begun) / total}%`;
    begun += ms;
    return x;
  };
  return html`<svg class="timeline" aria-hidden="true">
      ${known.map(
        ({ ms }, index) =>
          svg`<rect x=${place(ms)} width="${(100 * ms) / total}%" height="100%" class="series-${index + 1}"></rect>`,
      )}
    </svg>
    <dl class="stretches" aria-label=${caption}>
      ${periods.map(
        ({ name, ms, note }) => html`<div>
          <dt>${ms == null ? nothing : swatch(known.findIndex((one) => one.name === name))}${name}</dt>
          <dd>${ms == null ? (note ?? "–") : milliseconds(ms)}</dd>
        </div>`,
      )}
    </dl>`;
}

const swatch = (index) =>
  html`<svg class="swatch" aria-hidden="true">${svg`<rect width="100%" height="100%" rx="2" class="series-${index + 1}"></rect>`}</svg>`;

const GATES = {
  none: "No document store is declared, or the request cannot carry passages.",
  off: "The request turned retrieval off.",
  skipped: "Gate closed: expected gain below the price.",
  empty: "Gate open; no passage was found.",
  failed: "The document store was unavailable or timed out.",
  used: "Gate open; the expert received passages.",
};

/** The outcome of retrieval. */
export function retrievalDetails({ retrieval, gate, gain, passages = [], passage_tokens: tokens, retrieval_ms: ms }) {
  return html`<p>${GATES[retrieval] ?? retrieval}</p>
    <dl class="pairs">
      ${gate == null ? nothing : html`<dt>Probability of improvement</dt><dd>${percent(gate)}</dd>`}
      ${gain == null ? nothing : html`<dt>Expected gain</dt><dd>${three(gain)}</dd>`}
      ${passages.length ? html`<dt>Passages</dt><dd>${passages.map((id) => html`<div class="code">${id}</div>`)}</dd>` : nothing}
      ${tokens ? html`<dt>Passage tokens</dt><dd>about ${number(tokens)}</dd>` : nothing}
      ${ms ? html`<dt>Duration</dt><dd>${milliseconds(ms)}</dd>` : nothing}
    </dl>`;
}

/** Output tokens per second of the stream. */
export function speed({ output_tokens: tokens, first_token_ms: first, total_ms: total, stream }) {
  if (!tokens || first == null || !stream || total - first < 1) return null;
  return (1000 * tokens) / (total - first);
}
