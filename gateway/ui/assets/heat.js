// A heatmap table; arrow keys move between cells, and the current cell is described in words.

import { html, nothing } from "./vendor/lit-html.js";

const MAX_LEVEL_COLUMNS = 10; // with more columns, their names are upright

/** The colour of a share from 0 to 1. */
export const heat = (share) => `heat-${Math.round(10 * Math.max(0, Math.min(1, share)))}`;

/** A legend of the colours, from `low` to `high`. */
export const scale = (low, high) => html`<span class="scale">
  <span>${low}</span>${[0, 2, 4, 6, 8, 10].map((step) => html`<i class="heat-${step}"></i>`)}<span>${high}</span>
</span>`;

/** The current cell of a heatmap. */
export const spot = (draw) => ({
  row: 0,
  column: 0,
  touched: false,
  to(row, column) {
    if (this.touched && this.row === row && this.column === column) return;
    Object.assign(this, { row, column, touched: true });
    draw();
  },
});

/**
 * `cell(row, column)` returns { text, small?, kind, description }: its text, CSS classes and a description. `at` is a
 * spot; `idle` is shown in place of a description until a cell is current. `note(name)` returns a text about a column, or
 * nothing.
 */
export function heatmap(at, { label, corner, rows, columns, cell, idle, note = () => "" }) {
  const tall = columns.length > MAX_LEVEL_COLUMNS ? "tall" : nothing;
  const row = Math.min(at.row, rows.length - 1);
  const column = Math.min(at.column, columns.length - 1);
  return html`
    <div class="scroll" role="group" aria-label=${label}>
      <table class="heat" @keydown=${(event) => step(event, at, rows.length, columns.length)}>
        <caption class="unseen">${label}</caption>
        <thead>
          <tr>
            <th scope="col">${corner}</th>
            ${columns.map((name) => heading(name, note(name), tall))}
          </tr>
        </thead>
        <tbody>
          ${rows.map(
            (name, y) => html`<tr>
              <th scope="row">${name}</th>
              ${columns.map((_, x) => one(cell(y, x), at, y, x, row === y && column === x))}
            </tr>`,
          )}
        </tbody>
      </table>
    </div>
    <p class="heat-description faint" aria-hidden="true">${at.touched ? cell(row, column).description : idle}</p>
  `;
}

function heading(name, note, tall) {
  const below = note && tall === nothing ? html`<small>${note}</small>` : nothing;
  return html`<th scope="col" class=${tall} title=${note ? `${name}: ${note}` : name}><span>${name}</span>${below}</th>`;
}

function one({ text, small, kind, description }, at, y, x, current) {
  return html`<td>
    <button
      class="cell ${kind}"
      data-cell="${y} ${x}"
      tabindex=${current ? 0 : -1}
      aria-label=${description}
      @focus=${() => at.to(y, x)}
      @mouseenter=${() => at.to(y, x)}
    >${text}${small ? html`<small>${small}</small>` : nothing}</button>
  </td>`;
}

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function step(event, at, rows, columns) {
  const ends = { Home: [at.row, 0], End: [at.row, columns - 1] };
  const by = STEPS[event.key];
  const next = ends[event.key] ?? (by && [at.row + by[0], at.column + by[1]]);
  if (!next) return;
  event.preventDefault();
  const [y, x] = [Math.max(0, Math.min(rows - 1, next[0])), Math.max(0, Math.min(columns - 1, next[1]))];
  event.currentTarget.querySelector(`[data-cell="${y} ${x}"]`).focus();
}
