// Dollars of the routing log by API key, expert and category, and what always calling one expert would have cost.

import { html, nothing } from "../../vendor/lit-html.js";
import { api, resource } from "../../api.js";
import { bar, dollars, figure, number, shown, table } from "../../parts.js";

const PERIODS = { 1: "last day", 7: "last 7 days", 30: "last 30 days" };
const DIMENSIONS = { key: "API key", expert: "Expert", category: "Category" };
const LIMIT = 10; // rows of each table

/** The card; the report reads the log in a separate process, so it is loaded on request. */
export function openSpend(draw) {
  let period = "7";
  let found = null;
  const load = () => {
    found = resource(async () => (await api.get(`v1/report?days=${period}`)).report, draw);
    draw();
  };
  const select = (event) => {
    period = event.target.value;
    if (found) load();
  };
  return {
    template: () => html`<section class="card wide-names" aria-labelledby="spend">
      <div class="row">
        <h2 id="spend">Spend</h2>
        <label>Period <select @change=${select}>
          ${Object.entries(PERIODS).map(([value, text]) => html`<option value=${value} ?selected=${value === period}>${text}</option>`)}
        </select></label>
      </div>
      ${found ? shown(found, report) : html`<button class="quiet" @click=${load}>Read the log</button>`}
    </section>`,
  };
}

function report({ spend: { total, always, rows, note }, value }) {
  if (!total.requests) return html`<p class="faint">No requests in this period.</p>`;
  const baselines = [...always.experts].reverse(); // the cheapest first
  const largest = always.experts[0];
  return html`
    <p>${value.verdict}.</p>
    <dl class="figures">
      ${figure("Spent", dollars(total.dollars), `${number(total.requests)} requests, ${number(total.unpriced)} of unknown cost`)}
      ${largest?.dollars
        ? figure(`Always ${largest.expert}`, dollars(largest.dollars), `${dollars(always.dollars)} for the same requests`)
        : nothing}
    </dl>
    <div class="columns">
      ${Object.entries(DIMENSIONS).map(
        ([dimension, title]) => html`<div>
          <h3>${title}</h3>
          ${table(`Dollars by ${title}`, columns(title, total.dollars), rows[dimension].slice(0, LIMIT))}
          ${rows[dimension].length > LIMIT ? html`<p class="faint">${number(rows[dimension].length - LIMIT)} more: <code>coe report --json</code></p>` : nothing}
        </div>`,
      )}
      ${largest?.dollars
        ? html`<div>
            <h3>Always one expert</h3>
            ${table("Dollars of always calling one expert", BASELINES, baselines.slice(0, LIMIT))}
            ${baselines.length > LIMIT ? html`<p class="faint">${number(baselines.length - LIMIT)} more expensive: <code>coe report</code></p>` : nothing}
          </div>`
        : nothing}
    </div>
    ${always.unknown.length ? html`<p class="faint">Without prices in experts.yaml, so of unknown cost: ${always.unknown.join(", ")}</p>` : nothing}
    <p class="faint">${note}.</p>
  `;
}

const columns = (title, whole) => [
  { title, cell: ({ name }) => name || "none" },
  { title: "Share", cell: ({ dollars: spent }) => bar(whole ? spent / whole : 0) },
  { title: "Dollars", number: true, cell: ({ dollars: spent }) => dollars(spent) },
  { title: "Requests", number: true, cell: ({ requests }) => number(requests) },
];

const BASELINES = [
  { title: "Always", cell: ({ expert }) => expert },
  { title: "Dollars", number: true, cell: ({ dollars: spent }) => dollars(spent) },
  { title: "Saved", number: true, cell: ({ saved }) => (saved < 0 ? `−${dollars(-saved)}` : dollars(saved)) },
];
