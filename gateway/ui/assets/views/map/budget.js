// "Try another budget": a slider over a limit of the budget; each position is solved as a plan, and none is promoted.

import { html, nothing } from "../../vendor/lit-html.js";
import { api } from "../../api.js";
import { chart } from "../../charts.js";
import { copyable, figure } from "../../parts.js";
import { ROWS, difference } from "./rows.js";

const STEPS = 200; // of the slider

/** The budget form over `map`; `plan` is the solution of its limit, null before the slider was moved. */
export function openBudget(map, draw) {
  const { frontiers, budget } = map.measured;
  const names = Object.keys(ROWS).filter((row) => frontiers[row]);
  const self = { map, row: names.find((row) => budget[row]) ?? names[0], limit: 0, plan: null, error: null, solving: false, config: null, template };
  let stale = false;
  let choices = 0;
  choose(self.row);

  function choose(row) {
    if (!row) return;
    choices += 1;
    stale = false;
    const limits = frontiers[row].map(({ limit }) => limit);
    Object.assign(self, { row, low: limits[0], high: limits.at(-1), plan: null, error: null });
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
    const found = { plan: null, error: null };
    try {
      found.plan = await api.post("v1/map/solve", { ...budget, [self.row]: self.limit });
    } catch (error) {
      found.error = error;
    }
    if (own !== choices) return; // another kind of limit was chosen meanwhile
    Object.assign(self, found);
    updateChart();
    draw();
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
      </div>
      ${slider(self, setStep)} ${frontier(self)} ${outcome(self, solveLatest)}
    </section>`;
  }

  return self;
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
    <span class="ends faint"><span>${text(self.low)}, smallest feasible</span><span>${text(self.high)}, unconstrained</span></span>
  </label>`;
}

function frontier({ map, row, config }) {
  const { text, title } = ROWS[row];
  const found = map.measured.frontiers[row];
  return chart({
    label: `Planned quality by limit of ${title.toLowerCase()}`,
    config,
    columns: ["Limit", "Planned quality", "Used"],
    rows: found.filter(({ efficient }) => efficient).map(({ limit, quality, used }) => [text(limit), quality.toFixed(4), text(used[row])]),
  });
}

function chartConfig({ map, row, plan, limit }) {
  const { text, title, unit } = ROWS[row];
  const { frontiers, planned, budget } = map.measured;
  const line = frontiers[row].map((one) => ({ x: one.limit, y: one.quality }));
  const now = planned ? [{ x: budget[row] ?? planned.used[row], y: planned.quality }] : [];
  const then = plan ? [{ x: limit, y: plan.quality }] : [];
  const wide = line.at(-1).x / line[0].x > 8;
  const ticks = { callback: (value) => text(value), maxTicksLimit: 8 };
  return (palette) => ({
    type: "scatter",
    data: {
      datasets: [
        dots("This budget", then, palette.series[1], { pointStyle: "rectRot", pointRadius: 8 }),
        dots("In use", now, palette.ink, { pointRadius: 6 }),
        { ...dots("Frontier", line, palette.series[0], { pointRadius: 2.5 }), showLine: true, stepped: true, borderWidth: 2 },
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
