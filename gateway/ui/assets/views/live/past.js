// History from the routing log: an hour, a day or a week of traffic, latency, satisfaction and dollars.

import { html } from "../../vendor/lit-html.js";
import { api, resource } from "../../api.js";
import { chart, colour } from "../../charts.js";
import { dollars, figure, milliseconds, number, percent, shown } from "../../parts.js";

const PERIODS = { "1h": "last hour", "1d": "last day", "7d": "last 7 days" };
const DIMENSIONS = { expert: "expert", category: "category", key: "API key" };

/** The card; the report reads the log in a separate process, so it is loaded on request. */
export function openPast(draw) {
  let period = "1d";
  let by = "expert";
  let found = null;
  const load = () => {
    const since = period;
    found = resource(async () => charts((await api.get(`v1/history?since=${since}`)).report, since), draw);
    draw();
  };
  const selectPeriod = (event) => {
    period = event.target.value;
    if (found) load();
  };
  const selectBy = (event) => {
    by = event.target.value;
    draw();
  };
  const select = (label, values, chosen, change) => html`<label>${label} <select @change=${change}>
    ${Object.entries(values).map(([value, text]) => html`<option value=${value} ?selected=${value === chosen}>${text}</option>`)}
  </select></label>`;
  return {
    template: () => html`<section class="card" aria-labelledby="past">
      <div class="row">
        <h2 id="past">History</h2>
        ${select("Period", PERIODS, period, selectPeriod)} ${select("By", DIMENSIONS, by, selectBy)}
      </div>
      ${found
        ? shown(found, (report) => report.template(by), { isEmpty: ({ empty }) => empty, empty: "No requests in this period." })
        : html`<button class="quiet" @click=${load}>Read the log</button>`}
    </section>`,
  };
}

/** The charts of a report. They are made once for each dimension, since a new configuration draws a chart again. */
function charts(report, period) {
  const made = new Map();
  const totals = report.buckets.map(({ total }) => total);
  return {
    empty: !totals.some(({ requests }) => requests),
    template: (by) => {
      if (!made.has(by)) made.set(by, configurations(report, period, by));
      return html`
        ${figures(totals)}
        <div class="columns">
          ${made.get(by).map((one) => html`<div><h3>${one.label}</h3>${chart(one)}</div>`)}
        </div>
        ${report.sampled
          ? html`<p class="faint">${report.sampled} of ${report.buckets.length} intervals are busy: their counts and dollars are estimated from a sample.</p>`
          : ""}
      `;
    },
  };
}

function figures(totals) {
  const sum = (name) => totals.reduce((all, one) => all + one[name], 0);
  const [requests, ratings] = [sum("requests"), sum("ratings")];
  const rating = totals.reduce((all, one) => all + (one.satisfaction ?? 0) * one.ratings, 0) / ratings;
  return html`<dl class="figures">
    ${figure("Requests", number(requests))}
    ${figure("Failed", requests ? percent(sum("failed") / requests) : "–", `${number(sum("failed"))} requests`)}
    ${figure("Satisfaction", ratings ? number(rating) : "–", `${number(ratings)} ratings`)}
    ${figure("Spent", dollars(sum("dollars")), sum("unpriced") ? `${number(sum("unpriced"))} requests of unknown cost` : undefined)}
  </dl>`;
}

function configurations(report, period, by) {
  const times = report.buckets.map((_, index) => label((report.start + index * report.seconds) * 1000, period));
  const names = report.names[by];
  const named = (field) =>
    names.map((name) => ({ name, values: report.buckets.map((bucket) => bucket[by][name]?.[field] ?? null) }));
  const total = (field, name) => ({ name, values: report.buckets.map((bucket) => bucket.total[field]) });
  const word = DIMENSIONS[by];
  const failed = { ...total("failed", "failed"), bad: true };
  const latency = [total("first_token_p50_ms", "p50"), total("first_token_p95_ms", "p95")];
  return [
    figureOf(`Requests by ${word}`, times, named("requests"), { stacked: true, text: number }),
    figureOf("Failed requests", times, [failed], { stacked: true, text: number }),
    figureOf("Time to first token", times, latency, { text: milliseconds }),
    figureOf(`Satisfaction by ${word}`, times, named("satisfaction"), { text: number, max: 1, points: true }),
    figureOf(`Dollars by ${word}`, times, named("dollars"), { stacked: true, text: dollars }),
  ];
}

/** The time of an interval's start, in the visitor's time zone. */
function label(time, period) {
  const date = new Date(time);
  const clock = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return period === "7d" ? `${date.toLocaleDateString([], { weekday: "short" })} ${clock}` : clock;
}

function figureOf(label, times, series, { stacked = false, text, max, points = false }) {
  return {
    label,
    height: "middle",
    config: (palette) => ({
      type: stacked ? "bar" : "line",
      data: {
        labels: times,
        datasets: series.map(({ name, values, bad }, index) => {
          const ink = bad ? palette.bad : colour(index, palette);
          return { label: name, data: values, borderColor: ink, backgroundColor: ink, borderWidth: stacked ? 0 : 1.5, pointRadius: points ? 2.5 : 0, spanGaps: true };
        }),
      },
      options: {
        events: [],
        plugins: { legend: { position: "bottom" } },
        scales: {
          x: { stacked, ticks: { maxTicksLimit: 6, maxRotation: 0 }, grid: { display: false } },
          y: { stacked, min: 0, max, ticks: { maxTicksLimit: 5, callback: (value) => text(value) } },
        },
      },
    }),
    columns: ["From", ...series.map(({ name }) => name)],
    rows: times
      .map((time, index) => [time, ...series.map(({ values }) => (values[index] == null ? "–" : text(values[index])))])
      .filter((_, index) => series.some(({ values }) => values[index])),
  };
}
