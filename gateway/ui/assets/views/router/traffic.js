// The traffic report: drift, alarms, and the latest retraining rounds.

import { html, nothing } from "../../vendor/lit-html.js";
import { chart } from "../../charts.js";
import { badge, figure, moment, number, percent } from "../../parts.js";
import { KINDS } from "./kinds.js";

const cache = new WeakMap(); // chart configurations by their data

export function traffic({ time, report }) {
  const { traffic: day, drift, alarms, learning } = report;
  return html`
    <p class="faint">Report of ${moment(time)}, cached for one minute.</p>
    <dl class="figures">
      ${figure("Requests of the last day", number(day.last_day), `${number(day.last_hour)} in the last hour`)}
      ${figure("Failed", percent(day.error_rate))} ${figure("Aborted by clients", percent(day.aborted_rate))}
      ${figure("Alarms", alarms.length)}
    </dl>
    ${alarms.length
      ? html`<h3>Alarms</h3>
          <ul class="findings">${alarms.map(({ kind, sentence }) => html`<li>${badge(kind, "bad")} ${sentence}</li>`)}</ul>`
      : nothing}
    <h3>Drift</h3>
    <p class="faint">${drift.findings.length ? html`Compared with ${drift.reference}.` : html`${capital(drift.reference)}.`}</p>
    <ul class="findings">
      ${drift.findings.map(({ alarm, sentence }) => html`<li>${alarm ? badge("drift", "warn") : badge("stable", "good")} ${sentence}</li>`)}
    </ul>
    ${drift.compared ? compared(drift.compared) : nothing}
    <h3>Retraining</h3>
    ${rounds(learning)}
  `;
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

function compared(both) {
  if (!cache.has(both)) cache.set(both, { categories: byCategory(both), confidence: byConfidence(both) });
  const { categories, confidence } = cache.get(both);
  const { before, now } = both.categories;
  const counts = `${number(both.requests.before)} requests before, ${number(both.requests.now)} of the last day`;
  const height = Object.keys(now).length > 8 ? "high" : "middle";
  return html`<p class="faint">${counts}.</p>
    <div class="columns">
      ${chart({
        label: "Share of requests by category, before and now",
        height,
        config: categories,
        columns: ["Category", "Before", "Now"],
        rows: Object.keys(now).map((name) => [name, percent(before[name]), percent(now[name])]),
      })}
      ${chart({
        label: "Share of requests by confidence, before and now",
        height,
        config: confidence,
        columns: ["Confidence", "Before", "Now"],
        rows: both.confidence.now.map((share, index) => [tenth(index), percent(both.confidence.before[index]), percent(share)]),
      })}
    </div>`;
}

const tenth = (index) => `${(index / 10).toFixed(1)}–${((index + 1) / 10).toFixed(1)}`;

const byCategory = ({ categories: { before, now } }) => {
  const names = Object.keys(now).filter((name) => before[name] || now[name]);
  return grouped(names, names.map((name) => before[name]), names.map((name) => now[name]), "Category", "y");
};

const byConfidence = ({ confidence: { before, now } }) => grouped(now.map((_, index) => tenth(index)), before, now, "Confidence", "x");

function grouped(labels, before, now, title, axis) {
  const value = axis === "x" ? "y" : "x";
  const ticks = { callback: (share) => `${Math.round(100 * share)} %` };
  return (palette) => ({
    type: "bar",
    data: {
      labels,
      datasets: [
        { label: "before", data: before, backgroundColor: palette.series[7] },
        { label: "now", data: now, backgroundColor: palette.series[0] },
      ],
    },
    options: {
      indexAxis: axis,
      scales: { [axis]: { title: { text: axis === "x" ? title : "" }, grid: { display: false }, ticks: { autoSkip: false } }, [value]: { ticks, title: { text: "Share of requests" } } },
      plugins: { tooltip: { callbacks: { label: ({ dataset, raw }) => `${dataset.label}: ${percent(raw)}` } } },
    },
  });
}

function rounds(learning) {
  const known = Object.entries(learning);
  if (!known.length) return html`<p class="faint">No round yet; run <code>coe retrain</code>.</p>`;
  return html`<ul class="findings">
    ${known.map(
      ([kind, { time, promoted, sentence }]) => html`<li>
        ${promoted ? badge("promoted", "good") : badge("not promoted")} <strong>${KINDS[kind]?.title ?? kind}</strong>, ${moment(time)}: ${sentence}
      </li>`,
    )}
  </ul>`;
}
