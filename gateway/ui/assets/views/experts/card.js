// The card of one expert: state, declaration, numbers and assigned categories.

import { html, nothing } from "../../vendor/lit-html.js";
import { badge, dollars, milliseconds, number, percent } from "../../parts.js";
import { failures, quantile, sum } from "../live/counters.js";
import { breakers, tier } from "../live/tables.js";

const STATES = { closed: "closed", open: "open", half_open: "half-open", rate_limited: "rate limited" };

export function card(expert, { chosen }) {
  const [requests, failed] = [sum(expert.outcomes), failures(expert.outcomes)];
  return html`<section class="card expert ${chosen ? "chosen" : ""}" id="card-${expert.id}" aria-labelledby="expert-${expert.id}">
    <div class="row">
      <h2 id="expert-${expert.id}">${expert.id}</h2>
      ${expert.tier ? tier(expert.tier) : nothing}
      ${breakers(expert.breakers)}
    </div>
    <dl class="doing">
      ${keyFigure("Requests", requests.toLocaleString("en"))}
      ${keyFigure("Failed", requests ? percent(failed / requests) : "–", failed ? "bad" : "")}
      ${keyFigure("First byte p95", milliseconds(quantile(expert.first_byte_bounds, expert.first_byte, 0.95)))}
      ${keyFigure("In flight", busy(expert))}
    </dl>
    <dl class="pairs">
      <dt>Model</dt>
      <dd class="code">${expert.model}</dd>
      ${expert.adapter ? html`<dt>Adapter</dt><dd class="code">${expert.adapter}</dd>` : nothing}
      <dt>Runtime</dt>
      <dd>${expert.runtime}</dd>
      ${size(expert)}
      <dt>Context</dt>
      <dd>${expert.context_length.toLocaleString("en")} tokens</dd>
      <dt>APIs and capabilities</dt>
      <dd>${[...expert.apis, ...expert.capabilities].join(", ")}</dd>
      <dt>Price</dt>
      <dd>${price(expert.prices)}</dd>
      ${expert.cost ? html`<dt>Spent</dt><dd>${dollars(expert.cost)}</dd>` : nothing}
      <dt>Tokens</dt>
      <dd>${number(expert.tokens.input ?? 0)} in, ${number(expert.tokens.output ?? 0)} out</dd>
      ${expert.failing.length ? html`<dt>Failing</dt><dd>${expert.failing.map((one) => badge(`${one.cause}, ${number(one.failures)} times`, "bad"))}</dd>` : nothing}
      <dt>Fallbacks</dt>
      <dd>${expert.fallbacks ? expert.fallbacks.toLocaleString("en") : "none"}</dd>
      ${expert.tier ? html`<dt>Residency</dt><dd>${number(expert.waiting)} waiting, loaded ${number(expert.switches)} times</dd>` : nothing}
      ${declaredParameters(expert)}
    </dl>
    ${servers(expert)}
    ${assignedCategories(expert.assigned_categories)}
    <p><a href="#/log?expert=${encodeURIComponent(expert.id)}">Records<span class="unseen"> of ${expert.id}</span></a></p>
  </section>`;
}

const keyFigure = (name, value, kind = "") => html`<div><dt>${name}</dt><dd class=${kind}>${value}</dd></div>`;

/** Requests in flight, and of how many at most where `concurrent_requests` is declared. */
const busy = ({ in_flight: now, concurrent_requests: most, replicas }) =>
  most ? `${number(now)} of ${number(most * replicas.length)}` : number(now);

function size({ active_parameters_b: active, memory_gb: memory }) {
  const facts = [active ? `${number(active)} B active` : "", memory ? `${number(memory)} GB` : ""].filter(Boolean);
  return facts.length ? html`<dt>Size</dt><dd>${facts.join(", ")}</dd>` : nothing;
}

const price = ({ input, output, cached_input: cached }) =>
  input || output
    ? `${dollars(input)} in${cached < input ? ` (${dollars(cached)} cached)` : ""}, ${dollars(output)} out per million tokens`
    : "free";

/** The parameters that the declaration adds to requests. */
function declaredParameters({ parameters, system_prompt: prompt }) {
  const facts = Object.entries(parameters).map(([name, value]) => `${name} ${typeof value === "object" ? JSON.stringify(value) : value}`);
  if (prompt) facts.unshift("a system prompt");
  return facts.length ? html`<dt>Parameters</dt><dd>${facts.join(", ")}</dd>` : nothing;
}

function servers({ replicas, breakers: states }) {
  return html`<h3>${replicas.length > 1 ? `${replicas.length} servers` : "Server"}</h3>
    <ul class="bare">
      ${replicas.map(
        ({ address, state, waiting }) => html`<li>
          <code>${address}</code>
          <span class="faint">
            ${(states[address] ?? state) === "closed" ? nothing : html`<span class="warn">breaker ${STATES[states[address] ?? state]}</span>`}${waiting ? ` ${number(waiting)} in its queue` : ""}
          </span>
        </li>`,
      )}
    </ul>`;
}

function assignedCategories(rows) {
  return html`<h3>Assigned categories</h3>
    ${rows.length
      ? html`<ul class="chips">
          ${rows.map(
            ({ category, runner_up: second, margin }) =>
              html`<li>${category}${second && margin ? html` <span class="faint">+${number(margin, 2)} over ${second}</span>` : nothing}</li>`,
          )}
        </ul>`
      : html`<p class="faint">No category assigned; available by name.</p>`}`;
}
