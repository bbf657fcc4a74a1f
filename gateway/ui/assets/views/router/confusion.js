// What prompts of each category were taken for.

import { html } from "../../vendor/lit-html.js";
import { percent } from "../../parts.js";
import { heat, heatmap, scale } from "../../heat.js";

/** `found` is { categories, counts }, a row for each true category; older versions have none. */
export function confusion(found, at) {
  if (!found) {
    return html`<h3>Confusion</h3>
      <p class="faint">This version was trained before confusions were counted; <code>coe train</code> counts them.</p>`;
  }
  const { categories, counts } = found;
  const totals = counts.map((row) => row.reduce((sum, count) => sum + count, 0));
  const cell = (y, x) => {
    const share = counts[y][x] / (totals[y] || 1);
    const taken = y === x ? "rightly recognised" : `taken for ${categories[x]}`;
    return {
      text: counts[y][x] ? (100 * share).toFixed(share < 0.1 ? 1 : 0) : "",
      kind: `${heat(Math.sqrt(share))} ${y === x ? "first" : ""}`,
      told: `${counts[y][x].toLocaleString("en")} of ${totals[y].toLocaleString("en")} prompts of ${categories[y]} were ${taken} (${percent(share)})`,
    };
  };
  return html`<h3>Confusion</h3>
    <p class="faint legend">
      Rows are what prompts are, columns what they were taken for, in percent of the row.
      ${scale("0", "100 %")} <span>The colour goes by the root, so that small confusions show.</span>
    </p>
    ${heatmap(at, {
      label: "What prompts of each category were taken for",
      corner: "",
      rows: categories,
      columns: categories,
      cell,
      idle: "Point at a cell, or go through them with the arrow keys, to see the counts.",
    })}`;
}
