// "Try another budget": a slider over a limit of the budget; the limit is solved as a plan when the slider is released,
// and none is promoted.

import { html, nothing } from "../../vendor/lit-html.js";
import { api } from "../../api.js";
import { copyable, figure } from "../../parts.js";
import { ROWS, difference } from "./rows.js";

const STEPS = 200; // of the slider

/** The budget form over `map`; `plan` is the solution of its limit, null before the slider was moved. */
export function openBudget(map, draw) {
  const { budget } = map.measured;
  const names = Object.keys(ROWS).filter((row) => range(map, row));
  const self = { map, row: names.find((row) => budget[row]) ?? names[0], limit: 0, plan: null, error: null, solving: false, template };
  let latest = 0; // number of the latest choice; the answer to an earlier one is dropped
  choose(self.row);

  function choose(row) {
    if (!row) return;
    latest += 1;
    const [low, high] = range(map, row);
    Object.assign(self, { row, low, high, plan: null, error: null, solving: false });
    self.limit = budget[row] ? Math.min(Math.max(budget[row], self.low), self.high) : self.high;
    draw();
  }

  function setStep(step) {
    self.plan = null;
    self.limit = step >= STEPS ? self.high : step <= 0 ? self.low : rounded(limitAt(self, step / STEPS));
    draw();
  }

  async function solve() {
    const own = ++latest;
    Object.assign(self, { plan: null, error: null, solving: true });
    draw();
    const found = { plan: null, error: null };
    try {
      found.plan = await api.post("v1/map/solve", { ...budget, [self.row]: self.limit });
    } catch (error) {
      found.error = error;
    }
    if (own !== latest) return;
    Object.assign(self, found, { solving: false });
    draw();
  }

  function template() {
    if (!names.length) return nothing;
    return html`<section class="card">
      <div class="row">
        <h2>Try another budget</h2>
        <label>Limit of
          <select @change=${(event) => choose(event.target.value)}>
            ${names.map((row) => html`<option value=${row} .selected=${row === self.row}>${ROWS[row].title}</option>`)}
          </select>
        </label>
      </div>
      ${slider(self, setStep, solve)} ${outcome(self, solve)}
    </section>`;
  }

  return self;
}

/** The limits of a row that make a difference, at most: those of its cheapest and its dearest plan. Null for none. */
function range({ measured, experts }, row) {
  const { use } = ROWS[row];
  const known = (measured.uses[use] ?? []).filter((value) => value > 0);
  const [low, high] = use
    ? [Math.min(...known), row === "memory_gb" ? known.reduce((sum, value) => sum + value, 0) : Math.max(...known)]
    : [1 / experts.length, 1];
  return low < high ? [low, high] : null;
}

// The slider is logarithmic: from 2 to 4 is as far as from 20 to 40.
const limitAt = ({ low, high }, share) => low * (high / low) ** share;
const shareAt = ({ low, high, limit }) => Math.log(limit / low) / Math.log(high / low);
const rounded = (value) => Number(value.toPrecision(3));

function slider(self, setStep, solve) {
  const { title, unit, text } = ROWS[self.row];
  return html`<label class="slider">
    <span>${title} ${unit}: at most <output>${text(self.limit)}</output></span>
    <input
      type="range"
      min="0"
      max=${STEPS}
      .value=${String(Math.round(shareAt(self) * STEPS))}
      aria-valuetext=${text(self.limit)}
      @input=${(event) => setStep(Number(event.target.value))}
      @change=${solve}
    />
    <span class="ends faint"><span>${text(self.low)}</span><span>${text(self.high)}, unconstrained</span></span>
  </label>`;
}

function outcome({ map, plan, error, solving }, solve) {
  if (error) {
    return html`<div role="alert" class="bad">
      <p>${error.message}</p>
      ${error.status >= 500 && error.status !== 501 ? html`<button class="quiet" @click=${solve}>Try again</button>` : nothing}
    </div>`;
  }
  if (!plan) {
    const status = solving ? "Solving…" : "Move the slider to solve a plan under another limit. Nothing is promoted.";
    return html`<p class="faint" role="status">${status}</p>`;
  }
  const { planned } = map.measured;
  const was = new Map(map.assignment.map(({ category, expert }) => [category, expert]));
  const changes = plan.assignment.filter(({ category, expert }) => was.get(category) !== expert);
  return html`
    <p role="status">
      ${changes.length
        ? html`<strong>${changes.length} of ${plan.assignment.length} categories change.</strong>`
        : html`<strong>Nothing changes</strong> compared with the plan in use.`}
    </p>
    <dl class="figures">
      ${figure(
        "Planned quality",
        points3(plan.quality),
        planned ? `${difference(plan.quality - planned.quality)} against ${points3(planned.quality)}` : "",
      )}
      ${Object.entries(ROWS)
        .filter(([row]) => plan.used[row])
        .map(([row, { title, text }]) => figure(title, text(plan.used[row]), planned?.used[row] ? `${text(planned.used[row])} now` : ""))}
    </dl>
    ${changes.length
      ? html`<ul class="changes">
          ${changes.map(({ category, expert }) => html`<li>${category}: <span class="faint">${was.get(category)} →</span> <strong>${expert}</strong></li>`)}
        </ul>`
      : nothing}
    <p class="faint">To apply it, add this to experts.yaml and run <code>coe plan</code> on the same scores:</p>
    ${copyable(yaml(plan.budget))}
  `;
}

const points3 = (value) => value.toFixed(3);

const yaml = (rows) => ["budget:", ...Object.entries(rows).map(([row, limit]) => `  ${row}: ${limit}`)].join("\n");
