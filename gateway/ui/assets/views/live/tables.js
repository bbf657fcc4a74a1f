// Tables of the live view: experts, outcomes and the processes of the gateway.

import { html, nothing } from "../../vendor/lit-html.js";
import { badge, bar, bars, dollars, milliseconds, number, percent, table } from "../../parts.js";
import { failures, quantile, shares, sum } from "./counters.js";

const TIERS = { awake: "good", asleep: "plain", stopped: "plain", switching: "warn" };
const STATES = { closed: "closed", open: "open", half_open: "half-open", rate_limited: "rate limited" };

/** The worst state of an expert's circuit breakers, and how many are in it. */
export function breakers(byReplica) {
  const states = Object.values(byReplica);
  const worst = ["open", "half_open", "rate_limited"].find((state) => states.includes(state));
  if (!worst) return badge(STATES.closed, "good");
  const many = states.length > 1 ? ` ${states.filter((state) => state === worst).length} of ${states.length}` : "";
  const down = states.every((state) => state === "open");
  return badge(`${STATES[worst]}${many}`, down ? "bad" : "warn");
}

export const tier = (name) => badge(name, TIERS[name] ?? "plain");

/** By expert, over the time between two snapshots. */
export function expertTable(snapshot, period) {
  const rows = snapshot.experts.map((expert, index) => ({ ...expert, period: period.experts[index], index }));
  const total = rows.reduce((all, { period: { outcomes } }) => all + sum(outcomes), 0);
  const residency = rows.some((expert) => expert.tier);
  const first = (share) => (row) => milliseconds(quantile(snapshot.first_byte_bounds, row.period.first, share));
  const columns = [
    { title: "Expert", cell: ({ id }) => html`<a href="#/experts/${encodeURIComponent(id)}">${id}</a>` },
    { title: "Breaker", cell: (row) => breakers(row.breakers) },
    residency ? { title: "Tier", cell: (row) => (row.tier ? tier(row.tier) : "–") } : null,
    residency ? { title: "Waiting", number: true, cell: (row) => number(row.waiting) } : null,
    residency ? { title: "Loaded", number: true, cell: (row) => number(row.switches) } : null,
    { title: "Share", cell: (row) => share(row, total) },
    { title: "Requests/s", number: true, cell: (row) => number(sum(row.period.outcomes) / period.over, 2) },
    { title: "In flight", number: true, cell: (row) => number(row.in_flight) },
    { title: "First byte p50", number: true, cell: first(0.5) },
    { title: "p95", number: true, cell: first(0.95) },
    { title: "Failed", number: true, cell: (row) => count(failures(row.period.outcomes)) },
    { title: "Fallbacks", number: true, cell: (row) => count(row.period.fallbacks) },
    { title: "Tokens/s", number: true, cell: (row) => number(sum(row.period.tokens) / period.over) },
  ];
  return table("Experts", columns.filter(Boolean), rows);
}

const share = ({ period, index }, total) =>
  total
    ? html`<span class="share">${bar(sum(period.outcomes) / total, (index % 8) + 1)}<span class="number">${percent(sum(period.outcomes) / total)}</span></span>`
    : "–";

const count = (many) => (many ? html`<span class="bad">${number(many)}</span>` : "0");

/** Shares by name with a heading; nothing where the counts are empty. */
export function sharesOf(title, counts) {
  if (!sum(counts)) return nothing;
  return html`<h3>${title}</h3>
    ${bars(title, shares(counts))}`;
}

/** Resource use and versions of the worker processes. */
export function gatewayFacts(snapshot, period) {
  const memory = snapshot.workers.reduce((all, worker) => all + worker.memory_bytes, 0);
  const cost = period.experts.reduce((all, expert) => all + expert.cost, 0);
  return html`<dl class="pairs">
    <dt>Workers</dt>
    <dd>${snapshot.workers.length}</dd>
    <dt>CPU</dt>
    <dd>${period.cpu.map((seconds) => percent(seconds / period.over)).join(", ")} of a core</dd>
    <dt>Memory</dt>
    <dd>${number(memory / 1e6)} MB</dd>
    <dt>Log</dt>
    <dd>${number(snapshot.log.backlog)} waiting${snapshot.log.dropped ? html`, <span class="bad">${number(snapshot.log.dropped)} lost</span>` : nothing}</dd>
    ${cost > 0 ? html`<dt>Cost</dt><dd>${dollars((3600 * cost) / period.over)} an hour</dd>` : nothing}
    ${Object.entries(snapshot.artifacts).map(
      ([kind, used]) => html`<dt>${kind[0].toUpperCase() + kind.slice(1)}</dt>
        <dd class="code">${used.map(({ version }) => version).join(", ")}</dd>`,
    )}
  </dl>`;
}
