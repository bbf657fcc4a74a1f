// The arms of recipes in the plan: their members, the categories they are assigned to, and what they cost.

import { html, nothing } from "../../vendor/lit-html.js";
import { badge, table } from "../../parts.js";
import { stepsText } from "../../recipes.js";
import { ROWS } from "./rows.js";

/** The recipe of each arm, by the arm's name. */
export const recipeOfArm = ({ recipes }) => new Map(recipes.flatMap((recipe) => recipe.arms.map((arm) => [arm, recipe])));

/** The cost in a category of the assignment, in dollars per thousand requests; null if unknown. `y` and `x` are indices. */
export const costOf = ({ measured }, y, x) => measured?.uses_by_category.cost?.[y][x] ?? measured?.uses.cost?.[x] ?? null;

/** All arms, with the recipe's members. */
export function arms(map) {
  const rows = map.recipes.flatMap((recipe) => recipe.arms.map((name) => ({ name, recipe })));
  const categories = (name, role) => map.assignment.filter((row) => row[role] === name).map(({ category }) => category).join(", ") || "–";
  const columns = [
    { title: "Arm", cell: ({ name }) => html`<strong>${name}</strong> ${place(map, name)}` },
    { title: "Members", cell: ({ recipe }) => stepsText(recipe) },
    { title: "Assigned", cell: ({ name }) => categories(name, "expert") },
    map.measured && { title: "Runner-up", cell: ({ name }) => categories(name, "runner_up") },
    map.measured && { title: "Cost", number: true, cell: ({ name }) => ROWS.mean_cost.text(map.measured.uses.cost?.[map.experts.indexOf(name)]) },
  ].filter(Boolean);
  return html`${table("Arms of recipes", columns, rows)}
    <p class="faint">Level 1 of a recipe stops earliest and is the cheapest. Members joined by + are called at the same time. The cost is per thousand
      requests, as the mean over the categories of the plan.</p>`;
}

function place({ experts, hosted }, name) {
  if (!experts.includes(name)) return badge("not in the plan");
  return hosted.includes(name) ? nothing : badge("not hosted");
}
