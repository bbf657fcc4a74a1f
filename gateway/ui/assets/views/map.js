// Map: the assignment of categories to experts and recipes, and the scores behind it.

import { html, nothing } from "../vendor/lit-html.js";
import { api, resource } from "../api.js";
import { badge, moment, shown } from "../parts.js";
import { heat, heatmap, scale, spot } from "../heat.js";
import { stepsText } from "../recipes.js";
import { assignment, utility } from "./map/assignment.js";
import { costOf, recipeTable, recipesByName } from "./map/recipes.js";
import { ROWS, points } from "./map/rows.js";

export const name = "map";
export const title = "Map";

export function open({ draw }) {
  const map = resource(loadMap, draw);
  const at = spot(draw);
  return {
    template: () => html`
      <div class="row">
        <h1>Map</h1>
        <button class="quiet" @click=${() => map.load()}>Refresh</button>
      </div>
      ${shown(map, (found) => whole(found, at))}
    `,
  };
}

/** The map, with the recipes. */
async function loadMap() {
  const [map, recipes] = await Promise.all([api.get("v1/map"), api.get("v1/recipes")]);
  return { ...map, recipes: recipes.data };
}

function whole(map, at) {
  return html`
    <p class="whence">${origin(map)}</p>
    ${consequences(map)}
    ${map.measured ? html`<section class="card"><h2>Expected quality</h2>${qualities(map, at)}</section>` : unmeasured(map)}
    <section class="card wide-names">
      <h2>Assignment</h2>
      ${assignment(map)}
    </section>
    ${map.recipes.length ? html`<section class="card wide-names"><h2>Recipes</h2>${recipeTable(map)}</section>` : nothing}
    ${map.measured ? html`<section class="card wide-names"><h2>Value of each expert</h2>${utility(map)}</section>` : nothing}
  `;
}

function consequences({ consequences: found }) {
  if (!found.length) return nothing;
  return html`<section class="card">
    <h2>experts.yaml differs from the plan</h2>
    <ul>
      ${found.map(({ sentence }) => html`<li>${sentence}</li>`)}
    </ul>
  </section>`;
}

function origin({ version, promotion, measured }) {
  if (!version) return html`${badge("declared")} The assignment of experts.yaml is in use.`;
  const made = { plan: "planned", retrain: "learned from traffic", hand: "promoted manually", rollback: "rolled back" };
  return html`${badge("planned", "good")} Plan <code>${version}</code>${promotion
    ? html`, ${made[promotion.by] ?? promotion.by} ${moment(promotion.time)}${promotion.why && promotion.by !== "plan" ? html`: ${promotion.why}` : nothing}`
    : nothing}.${measured ? html` Scores: ${measured.source}.` : nothing}`;
}

function unmeasured({ version }) {
  return html`<section class="card">
    <h2>${version ? "No data stored for this plan" : "No scores yet"}</h2>
    <p>
      ${version
        ? html`Run <code>coe plan</code> again to see expected quality, and its bounds here.`
        : html`<code>coe tune</code> scores the experts on probes, solves a plan that assigns categories to experts, and
            puts it into use. Pins under <code>assignment</code> in experts.yaml are kept; leave out the categories that
            the plan may decide.`}
    </p>
    <pre class="code shell">${version ? "coe plan quality" : "coe tune --budget 2.00"}</pre>
  </section>`;
}

function qualities(map, at) {
  const { categories, experts, measured } = map;
  const all = measured.estimate.flat().filter((value) => value !== null);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const recipes = recipesByName(map);
  const members = (name) => (recipes.has(name) ? stepsText(recipes.get(name)) : "");
  const chosen = map.assignment.map(({ expert, runner_up }) => [experts.indexOf(expert), experts.indexOf(runner_up)]);
  const cell = (y, x) => {
    const [estimate, error, count] = [measured.estimate[y][x], measured.error[y][x], measured.count[y][x]];
    if (estimate === null) {
      const why = `${categories[y]}, ${experts[x]}: not in the plan. Score it and plan again.`;
      return { text: "–", kind: chosen[y][0] === x ? "shut first" : "shut", description: why };
    }
    const kinds = [heat((estimate - low) / (high - low || 1))];
    if (count === 0) kinds.push("guessed");
    if (map.quality_planned[y][x] === null) kinds.push("shut");
    if (chosen[y][0] === x) kinds.push("first");
    if (chosen[y][1] === x) kinds.push("second");
    return { text: points(estimate), small: `± ${points(error)}`, kind: kinds.join(" "), description: describe(map, y, x, chosen[y], members(experts[x])) };
  };
  return html`
    <p class="faint legend">
      ${scale(points(low), points(high))}
      <span><span class="key first">0.0</span> assigned</span>
      <span><span class="key second">0.0</span> runner-up</span>
      <span><span class="key guessed">0.0</span> estimated, no scores</span>
      <span><span class="key shut">0.0</span> not eligible</span>
    </p>
    ${heatmap(at, {
      label: "Expected quality by category and expert",
      corner: "",
      rows: categories,
      columns: experts,
      note: members,
      cell,
      idle: "Point at a cell, or use the arrow keys, to see its scores.",
    })}
  `;
}

function describe(map, y, x, [first, second], members) {
  const { categories, experts, measured, quality_planned: bounds, pinned } = map;
  const scores = measured.count[y][x];
  const known = scores
    ? `mean ${points(measured.mean[y][x], 3)} of ${Math.round(scores).toLocaleString("en")} scores`
    : "no scores: estimated from the expert's other categories and the category's other experts";
  const part = x === first ? " Assigned to this category." : x === second ? " Runner-up." : "";
  const shut =
    pinned[categories[y]] !== undefined && pinned[categories[y]] !== experts[x]
      ? ` experts.yaml pins the category to ${pinned[categories[y]]}.`
      : " Not hosted under this budget, or not eligible.";
  const trust = bounds[y][x] === null ? shut : ` Used by the plan: ${points(bounds[y][x], 3)}.`;
  const cost = costOf(map, y, x);
  const price = cost === null ? "" : ` Cost ${ROWS.mean_cost.text(cost)} per thousand requests.`;
  const calls = members ? ` Members: ${members}.` : "";
  return `${categories[y]}, ${experts[x]}: ${points(measured.estimate[y][x], 3)} ± ${points(measured.error[y][x], 3)}, ${known}.${trust}${price}${part}${calls}`;
}

