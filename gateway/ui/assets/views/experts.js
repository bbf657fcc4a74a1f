// Experts: how each stands, what it can do, what it costs.

import { html } from "../vendor/lit-html.js";
import { api, resource } from "../api.js";
import { badge, dollars, number, shown } from "../parts.js";

export const name = "experts";
export const title = "Experts";

const EVERY = 5000; // milliseconds between looks

export function open({ draw }) {
  const experts = resource(() => api.get("v1/experts"), draw);
  const timer = setInterval(() => experts.load(), EVERY);
  return {
    template: () => html`
      <h1>Experts</h1>
      ${shown(experts, ({ data }) => html`<div class="cards">${data.map(card)}</div>`)}
    `,
    close: () => clearInterval(timer),
  };
}

function card(expert) {
  return html`<section class="card" aria-labelledby="expert-${expert.id}">
    <div class="row">
      <h2 id="expert-${expert.id}">${expert.id}</h2>
      ${expert.up ? badge("up", "good") : badge("down", "bad")}
    </div>
    <dl class="pairs">
      <dt>Model</dt>
      <dd class="code">${expert.model}</dd>
      <dt>Load</dt>
      <dd>${number(expert.load)} (${expert.in_flight} in flight)</dd>
      <dt>Price</dt>
      <dd>${dollars(expert.prices.input)} in, ${dollars(expert.prices.output)} out per million tokens</dd>
    </dl>
  </section>`;
}
