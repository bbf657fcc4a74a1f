// The plan in use against always calling one expert, in dollars and quality, on the last week's requests.

import { html, nothing } from "../../vendor/lit-html.js";
import { api, resource } from "../../api.js";
import { dollars, figure, number, shown, table } from "../../parts.js";

/** The card; the report takes some seconds in a separate process, so it is loaded on request. */
export function openSavings(draw) {
  let status = null;
  const load = () => {
    status = resource(() => api.get("v1/status"), draw);
    draw();
  };
  return {
    template: () => html`<section class="card wide-names">
      <h2>Savings</h2>
      ${status
        ? shown(status, ({ report }) => savings(report.savings))
        : html`<p>This plan against always calling one expert, on the last week's requests.</p>
            <button class="quiet" @click=${load}>Compare</button>`}
    </section>`,
  };
}

function savings({ days, billed, compared, unknown }) {
  if (!billed.requests) return html`<p class="faint">No requests in the last ${days} days.</p>`;
  const bill = `${number(billed.with_cost)} of ${number(billed.requests)} requests in ${days} days`;
  return html`
    <dl class="figures">
      ${figure("Billed", dollars(billed.dollars), bill)}
      ${compared
        ? html`${figure("This plan", dollars(compared.plan.dollars), "expected for these requests")}
          ${figure("Quality", compared.plan.quality.toFixed(3), "expected, 0 to 1")}`
        : nothing}
    </dl>
    ${compared ? table("This plan against each expert", COLUMNS, compared.always) : unplanned()}
    ${compared
      ? html`<h3>Not known</h3>
          <ul class="faint">${unknown.map((sentence) => html`<li>${sentence}</li>`)}</ul>`
      : nothing}
  `;
}

const COLUMNS = [
  { title: "Always", cell: ({ expert }) => expert },
  { title: "Dollars", number: true, cell: ({ dollars: spent }) => dollars(spent) },
  { title: "Plan saves", number: true, cell: ({ saved }) => money(saved) },
  { title: "Quality", number: true, cell: ({ quality }) => quality.toFixed(3) },
  { title: "Plan's quality less this", number: true, cell: ({ difference, error }) => `${signed(difference)} ± ${error.toFixed(3)}` },
];

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;

const money = (value) => (value < 0 ? `−${dollars(-value)}` : dollars(value));

const unplanned = () =>
  html`<p>No plan that was made from scores is in use. Run <code>coe score</code> and <code>coe plan</code>.</p>`;
