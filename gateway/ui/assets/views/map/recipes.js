// The recipes in the plan: their members, the categories they are assigned to, and what they cost.

import { html, nothing } from "../../vendor/lit-html.js";
import { badge, table } from "../../parts.js";
import { stepsText } from "../../recipes.js";
import { ROWS } from "./rows.js";

/** The recipes by name. */
export const recipesByName = ({ recipes }) => new Map(recipes.map((recipe) => [recipe.id, recipe]));

/** The cost in a category of the assignment, in dollars per thousand requests; null if unknown. `y` and `x` are indices. */
export const costOf = ({ measured }, y, x) => measured?.uses_by_category.cost?.[y][x] ?? measured?.uses.cost?.[x] ?? null;

/** All recipes, with their members. */
export function recipeTable(map) {
  const categories = (name, role) => map.assignment.filter((row) => row[role] === name).map(({ category }) => category).join(", ") || "–";
  const columns = [
    { title: "Recipe", cell: ({ id }) => html`<strong>${id}</strong> ${place(map, id)}` },
    { title: "Members", cell: (recipe) => stepsText(recipe) },
    { title: "Assigned", cell: ({ id }) => categories(id, "expert") },
    map.measured && { title: "Runner-up", cell: ({ id }) => categories(id, "runner_up") },
    map.measured && { title: "Cost", number: true, cell: ({ id }) => ROWS.mean_cost.text(map.measured.uses.cost?.[map.experts.indexOf(id)]) },
  ].filter(Boolean);
  return html`${table("Recipes", columns, map.recipes)}
    <p class="faint">Members joined by + are called at the same time. The cost is per thousand requests, as the mean over the categories of the plan.</p>`;
}

function place({ experts, hosted }, name) {
  if (!experts.includes(name)) return badge("not in the plan");
  return hosted.includes(name) ? nothing : badge("not hosted");
}
