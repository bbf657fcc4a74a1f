// Configurations of two charts: requests per second, and the flow from categories to experts.

import { colour } from "../../charts.js";
import { number } from "../../parts.js";
import { margins, sum } from "./counters.js";

const SPAN_SECONDS = 300;
const ROW_SECONDS = 30; // of one row in the table of numbers

/** Requests and failures per second; `now` is the time of the latest snapshot. */
export function rates(points, now) {
  const line = (name) => points.map((point) => ({ x: point.time - now, y: point[name] }));
  const most = Math.max(1, ...points.map(({ all }) => all ?? 0));
  return {
    label: "Requests per second over the last five minutes",
    height: "low",
    config: (palette) => ({
      type: "line",
      data: {
        datasets: [
          series("all", line("all"), colour(0, palette)),
          series("failed", line("failed"), palette.bad),
        ],
      },
      options: {
        parsing: false,
        normalized: true,
        events: [],
        layout: { padding: { right: 8 } },
        scales: {
          x: { type: "linear", min: -SPAN_SECONDS, max: 0, ticks: { stepSize: 60, maxRotation: 0, callback: ago }, grid: { display: false } },
          y: { min: 0, suggestedMax: most, ticks: { maxTicksLimit: 5 } },
        },
      },
    }),
    columns: ["Time", "Requests per second", "Failures per second"],
    rows: steps(points, now),
  };
}

const series = (label, data, ink) => ({
  label,
  data,
  borderColor: ink,
  backgroundColor: ink,
  borderWidth: 1.5,
  pointRadius: 0,
  spanGaps: false,
});

const ago = (seconds) => (seconds ? `${Math.round(-seconds / 60)} min` : "now");

function steps(points, now) {
  const rows = [];
  for (let from = 0; from < SPAN_SECONDS; from += ROW_SECONDS) {
    const within = points.filter(({ time, all }) => all !== null && now - time >= from && now - time < from + ROW_SECONDS);
    if (!within.length) continue;
    const mean = (name) => number(within.reduce((total, point) => total + point[name], 0) / within.length);
    rows.push([from ? `${from} s ago` : "now", mean("all"), mean("failed")]);
  }
  return rows;
}

/** Requests from category to expert; colours follow the order of experts. */
export function flow(flows, { categories, experts }) {
  const links = Object.entries(flows).flatMap(([category, row]) =>
    Object.entries(row).map(([expert, count]) => ({ from: `c ${category}`, to: `e ${expert}`, flow: count, category, expert })),
  );
  const total = links.reduce((all, link) => all + link.flow, 0);
  return {
    label: "Requests from category to expert",
    height: sum(margins(flows).categories) && Object.keys(flows).length > 6 ? "high" : "middle",
    config: (palette) => ({
      type: "sankey",
      data: {
        datasets: [
          {
            data: links,
            labels: Object.fromEntries(links.flatMap((link) => [[link.from, link.category], [link.to, link.expert]])),
            priority: order(categories, experts),
            colorFrom: palette.series[7],
            colorTo: ({ raw }) => colour(Math.max(0, experts.indexOf(raw?.expert)), palette),
            colorMode: "to",
            alpha: 0.45,
            borderWidth: 0,
            nodeWidth: 8,
            color: palette.ink,
            size: "max",
          },
        ],
      },
      options: { events: [], plugins: { legend: { display: false }, tooltip: { enabled: false } } },
    }),
    columns: ["Category", "Expert", "Requests", "Share"],
    rows: links
      .toSorted((a, b) => b.flow - a.flow)
      .map(({ category, expert, flow: count }) => [category, expert, number(count), `${((100 * count) / total).toFixed(1)} %`]),
  };
}

const order = (categories, experts) =>
  Object.fromEntries([
    ...categories.map((name, index) => [`c ${name}`, index]),
    ...experts.map((name, index) => [`e ${name}`, index]),
  ]);
