// "Try another budget": a slider and a sweep over a limit of the budget; each limit is solved as a plan when it is
// requested, and none is promoted.

import { html, nothing } from "../../vendor/lit-html.js";
import { api } from "../../api.js";
import { chart } from "../../charts.js";
import { copyable, figure } from "../../parts.js";
import { ROWS, difference } from "./rows.js";

const STEPS = 200; // of the slider
const SWEPT = 8; // limits of a sweep

/**
 * The budget form over `map`; `plan` is the solution of its limit, null before the slider was moved. `swept` has the
 * plans of a sweep, as { limit, quality, used }.
 */
export function openBudget(map, draw) {
  const { budget } = map.measured;
  const names = Object.keys(ROWS).filter((row) => range(map, row));
  const self = { map, row: names.find((row) => budget[row]) ?? names[0], limit: 0, plan: null, swept: [], error: null, solving: false, config: null, template };
  let stale = false;
  let choices = 0;
  choose(self.row);

  function choose(row) {
    if (!row) return;
    choices += 1;
    stale = false;
    const [low, high] = range(map, row);
    Object.assign(self, { row, low, high, plan: null, swept: [], error: null });
    self.limit = budget[row] ? Math.min(Math.max(budget[row], self.low), self.high) : self.high;
    updateChart();
    draw();
  }

  function setStep(step) {
    self.limit = step >= STEPS ? self.high : step <= 0 ? self.low : rounded(limitAt(self, step / STEPS));
    draw();
    solveLatest();
  }

  async function solveLatest() {
    stale = self.solving;
    if (stale) return; // the newest limit is solved after the current one
    self.solving = true;
    draw();
    try {
      do {
        stale = false;
        await solve();
      } while (stale);
    } finally {
      self.solving = false;
      draw();
    }
  }

  async function solve() {
    const own = choices;
    const found = await solved(self.limit);
    if (own !== choices) return; // another kind of limit was chosen meanwhile
    Object.assign(self, found);
    updateChart();
    draw();
  }

  async function solved(limit) {
    try {
      return { plan: await api.post("v1/map/solve", { ...budget, [self.row]: limit }), error: null };
    } catch (error) {
      return { plan: null, error };
    }
  }

  /** Solves limits over the whole range, one after another; impossible ones are left out. */
  async function sweep() {
    if (self.solving) return;
    const own = choices;
    Object.assign(self, { solving: true, swept: [], error: null });
    draw();
    for (let number = 0; number < SWEPT && own === choices; number += 1) {
      const limit = number === SWEPT - 1 ? self.high : rounded(limitAt(self, number / (SWEPT - 1)));
      const { plan, error } = await solved(limit);
      if (own !== choices) break;
      if (plan) self.swept = [...self.swept, { limit, quality: plan.quality, used: plan.used }];
      else if (error.code !== "budget_impossible") self.error = error;
      if (self.error) break;
      updateChart();
      draw();
    }
    self.solving = false;
    draw();
    if (stale) solveLatest(); // the slider was moved meanwhile
  }

  /** Made only where its numbers change, since a new configuration redraws the chart. */
  function updateChart() {
    self.config = chartConfig(self);
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
        <button class="quiet" ?disabled=${self.solving} @click=${sweep}>Sweep</button>
      </div>
      ${slider(self, setStep)} ${sweepChart(self)} ${outcome(self, solveLatest)}
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

function slider(self, setStep) {
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
    />
    <span class="ends faint"><span>${text(self.low)}</span><span>${text(self.high)}, unconstrained</span></span>
  </label>`;
}

function sweepChart({ row, swept, plan, config }) {
  if (!swept.length && !plan) return nothing;
  const { text, title } = ROWS[row];
  return chart({
    label: `Planned quality by limit of ${title.toLowerCase()}`,
    config,
    columns: ["Limit", "Planned quality", "Used"],
    rows: swept.map(({ limit, quality, used }) => [text(limit), quality.toFixed(4), text(used[row])]),
  });
}

function chartConfig({ map, row, plan, swept, low, high, limit }) {
  const { text, title, unit } = ROWS[row];
  const { planned, budget } = map.measured;
  const line = swept.map((one) => ({ x: one.limit, y: one.quality }));
  const now = planned ? [{ x: budget[row] ?? planned.used[row], y: planned.quality }] : [];
  const then = plan ? [{ x: limit, y: plan.quality }] : [];
  const wide = high / low > 8;
  const ticks = { callback: (value) => text(value), maxTicksLimit: 8 };
  return (palette) => ({
    type: "scatter",
    data: {
      datasets: [
        dots("This budget", then, palette.series[1], { pointStyle: "rectRot", pointRadius: 8 }),
        dots("In use", now, palette.ink, { pointRadius: 6 }),
        { ...dots("Sweep", line, palette.series[0], { pointRadius: 2.5 }), showLine: true, stepped: true, borderWidth: 2 },
      ],
    },
    options: {
      scales: {
        x: { type: wide ? "logarithmic" : "linear", title: { text: `${title} ${unit}, limit` }, ticks },
        y: { title: { text: "Planned quality" } },
      },
      plugins: {
        legend: { reverse: true, labels: { usePointStyle: true, boxWidth: 8, boxHeight: 8 } },
        tooltip: { callbacks: { label: ({ dataset, raw }) => `${dataset.label}: ${raw.y.toFixed(4)} at ${text(raw.x)}` } },
      },
    },
  });
}

const dots = (label, data, shade, more) => ({ label, data, borderColor: shade, backgroundColor: shade, ...more });

function outcome({ map, plan, error, solving }, solveLatest) {
  if (error) {
    return html`<div role="alert" class="bad">
      <p>${error.message}</p>
      ${error.status >= 500 && error.status !== 501 ? html`<button class="quiet" @click=${solveLatest}>Try again</button>` : nothing}
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
