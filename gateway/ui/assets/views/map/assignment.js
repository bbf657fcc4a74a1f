// The assignment in use by category, and the value of each expert in it.

import { html, nothing } from "../../vendor/lit-html.js";
import { badge, bar, table } from "../../parts.js";
import { costOf } from "./recipes.js";
import { ROWS, points, share } from "./rows.js";

/** The expert of each category. */
export function assignment(map) {
  const { measured, experts } = map;
  const row = new Map(map.assignment.map(({ category }, index) => [category, index]));
  const largest = Math.max(...(measured?.weights ?? [1]));
  const columns = [
    { title: "Category", cell: ({ category }) => category },
    measured && {
      title: "Share",
      number: true,
      cell: ({ category }) => shareOf(measured.weights[row.get(category)], largest),
    },
    { title: "Expert", cell: ({ category, expert }) => html`<strong>${expert}</strong> ${map.pinned[category] === expert ? badge("pinned") : nothing}` },
    measured && {
      title: "Quality",
      number: true,
      cell: ({ category, expert }) => points(map.quality_planned[row.get(category)][experts.indexOf(expert)]),
    },
    measured?.uses.cost && {
      title: "Cost",
      number: true,
      cell: ({ category, expert }) => ROWS.mean_cost.text(costOf(map, row.get(category), experts.indexOf(expert))),
    },
    measured && { title: "Runner-up", cell: ({ runner_up }) => runner_up ?? "–" },
    measured && { title: "Margin", number: true, cell: margin },
  ].filter(Boolean);
  return html`${table("Assignment", columns, map.assignment)}
    ${measured
      ? html`<p class="faint">Quality is the bound that decisions use, cost is per thousand requests. The margin is the lead over the runner-up after prices; it is negative
          where the budget assigns the category to a second best.</p>`
      : nothing}`;
}

const shareOf = (weight, largest) =>
  html`<span class="withbar">${bar(weight / largest, 8)}<span>${share(weight)}</span></span>`;

const margin = ({ margin: value, runner_up }) => {
  if (!runner_up) return html`<span class="faint">no runner-up</span>`;
  return html`<span class=${value < 0 ? "warn" : nothing}>${value < 0 ? "−" : ""}${Math.abs(value).toFixed(3)}</span>`;
};

/** By expert: its value, the price of a request in quality, and its resource use. */
export function utility(map) {
  const { measured, experts, hosted, prices } = map;
  const most = Math.max(...experts.map((name) => measured.value_of_expert[name] ?? 0), 1e-9);
  const known = (name) => measured.estimate.some((row) => row[experts.indexOf(name)] !== null);
  const place = (name) => (!known(name) ? badge("not in the plan") : hosted.includes(name) ? nothing : badge("not hosted"));
  const uses = Object.values(ROWS).filter(({ use }) => measured.uses[use]?.some((value) => value));
  const columns = [
    { title: "Expert", cell: (name) => html`<strong>${name}</strong> ${place(name)}` },
    { title: "Value (quality lost without it)", number: true, cell: (name) => (known(name) ? lost(measured.value_of_expert[name], most) : "–") },
    { title: "Price", number: true, cell: (name) => (prices[name] ? prices[name].toFixed(4) : "0") },
    ...uses.map(({ title, text, use }) => ({
      title,
      number: true,
      cell: (name) => text(measured.uses[use][experts.indexOf(name)]),
    })),
  ];
  return html`${table("Value of each expert", columns, experts)}
    <p class="faint">Value is the planned quality that the best plan without the expert loses. The price is in units of quality: decisions subtract it
      for each request, so that the budget is kept. Prices and uses are means over the categories of the plan.</p>`;
}

const lost = (value, most) => {
  if (value === undefined) return html`<span class="faint">not computed in time</span>`;
  if (value === null) return html`<span class="warn">no plan without it</span>`;
  if (!value) return html`<span class="faint">nothing</span>`;
  return html`<span class="withbar">${bar(value / most)}<span>${value < 0.00005 ? "< 0.0001" : value.toFixed(4)}</span></span>`;
};
