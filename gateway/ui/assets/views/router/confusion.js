// The confusion matrix of a router.

import { html } from "../../vendor/lit-html.js";
import { percent } from "../../parts.js";
import { heat, heatmap, scale } from "../../heat.js";

/** `found` is { categories, counts }, a row for each true category. */
export function confusion(found, at) {
  if (!found) {
    return html`<h3>Confusion</h3>
      <p class="faint">No confusion matrix is stored for this version.</p>`;
  }
  const { categories, counts } = found;
  const totals = counts.map((row) => row.reduce((sum, count) => sum + count, 0));
  const cell = (y, x) => {
    const share = counts[y][x] / (totals[y] || 1);
    const predicted = y === x ? "correct" : `predicted as ${categories[x]}`;
    return {
      text: counts[y][x] ? (100 * share).toFixed(share < 0.1 ? 1 : 0) : "",
      kind: `${heat(Math.sqrt(share))} ${y === x ? "first" : ""}`,
      description: `${counts[y][x].toLocaleString("en")} of ${totals[y].toLocaleString("en")} prompts of ${categories[y]} were ${predicted} (${percent(share)})`,
    };
  };
  return html`<h3>Confusion</h3>
    <p class="faint legend">
      Rows are true categories, columns predicted ones, in percent of the row.
      ${scale("0", "100 %")} <span>The colour scale is a square root, which shows small confusions.</span>
    </p>
    ${heatmap(at, {
      label: "Predicted category by true category",
      corner: "",
      rows: categories,
      columns: categories,
      cell,
      idle: "Point at a cell, or use the arrow keys, to see the counts.",
    })}`;
}
