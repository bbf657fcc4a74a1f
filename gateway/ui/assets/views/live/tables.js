// The tables of the view: how each expert does, what requests came to, and the gateway's processes.

import { html, nothing } from "../../vendor/lit-html.js";
import { badge, bar, bars, dollars, milliseconds, number, percent, table } from "../../parts.js";
import { failures, quantile, shares, sum } from "./sums.js";

const TIERS = { awake: "good", asleep: "plain", stopped: "plain", switching: "warn" };
const STATES = { closed: "closed", open: "open", half_open: "half-open", resting: "rate limited" };

/** The state of an expert's breakers: the worst counts, and how many share it. */
export function breakers(replicas) {
  const states = Object.values(replicas);
  const worst = ["open", "half_open", "resting"].find((state) => states.includes(state));
  if (!worst) return badge(STATES.closed, "good");
  const many = states.length > 1 ? ` ${states.filter((state) => state === worst).length} of ${states.length}` : "";
  const down = states.every((state) => state === "open");
  return badge(`${STATES[worst]}${many}`, down ? "bad" : "warn");
}

export const tier = (name) => badge(name, TIERS[name] ?? "plain");

/** By expert, over what lies between two looks. */
export function expertTable(look, past) {
  const rows = look.experts.map((expert, index) => ({ ...expert, past: past.experts[index], index }));
  const total = rows.reduce((all, { past: { outcomes } }) => all + sum(outcomes), 0);
  const turns = rows.some((expert) => expert.tier);
  const first = (share) => (row) => milliseconds(quantile(look.first_byte_bounds, row.past.first, share));
  const columns = [
    { title: "Expert", cell: ({ id }) => html`<a href="#/experts/${encodeURIComponent(id)}">${id}</a>` },
    { title: "Breaker", cell: ({ replicas }) => breakers(replicas) },
    turns ? { title: "Tier", cell: (row) => (row.tier ? tier(row.tier) : "–") } : null,
    turns ? { title: "Waiting", number: true, cell: (row) => number(row.waiting) } : null,
    turns ? { title: "Loaded", number: true, cell: (row) => number(row.switches) } : null,
    { title: "Share", cell: (row) => share(row, total) },
    { title: "Requests/s", number: true, cell: (row) => number(sum(row.past.outcomes) / past.over, 2) },
    { title: "In flight", number: true, cell: (row) => number(row.in_flight) },
    { title: "First byte p50", number: true, cell: first(0.5) },
    { title: "p95", number: true, cell: first(0.95) },
    { title: "Failed", number: true, cell: (row) => count(failures(row.past.outcomes)) },
    { title: "Fallbacks", number: true, cell: (row) => count(row.past.fallbacks) },
    { title: "Tokens/s", number: true, cell: (row) => number(sum(row.past.tokens) / past.over) },
  ];
  return table("Experts", columns.filter(Boolean), rows);
}

const share = ({ past, index }, total) =>
  total
    ? html`<span class="share">${bar(sum(past.outcomes) / total, (index % 8) + 1)}<span class="number">${percent(sum(past.outcomes) / total)}</span></span>`
    : "–";

const count = (many) => (many ? html`<span class="bad">${number(many)}</span>` : "0");

/** Shares by name with a heading; nothing where nothing was counted. */
export function sharesOf(title, counts) {
  if (!sum(counts)) return nothing;
  return html`<h3>${title}</h3>
    ${bars(title, shares(counts))}`;
}

/** What the processes use, and with what they serve. */
export function gatewayFacts(look, past) {
  const memory = look.workers.reduce((all, worker) => all + worker.memory_bytes, 0);
  const cost = past.experts.reduce((all, expert) => all + expert.cost, 0);
  const versions = Object.entries(look.artifacts).filter(([, used]) => Object.keys(used).some(Boolean));
  return html`<dl class="pairs">
    <dt>Host</dt>
    <dd class="code">${look.gateway.host}</dd>
    <dt>Workers</dt>
    <dd>${look.workers.length}</dd>
    <dt>CPU</dt>
    <dd>${past.cpu.map((seconds) => percent(seconds / past.over)).join(", ")} of a core</dd>
    <dt>Memory</dt>
    <dd>${number(memory / 1e6)} MB</dd>
    <dt>Log</dt>
    <dd>${number(look.log.backlog)} waiting${look.log.dropped ? html`, <span class="bad">${number(look.log.dropped)} lost</span>` : nothing}</dd>
    ${cost > 0 ? html`<dt>Cost</dt><dd>${dollars((3600 * cost) / past.over)} an hour</dd>` : nothing}
    ${versions.map(
      ([kind, used]) => html`<dt>${kind[0].toUpperCase() + kind.slice(1)}</dt>
        <dd class="code">${Object.keys(used).map((version) => version || "none").join(", ")}</dd>`,
    )}
    <dt>Configuration</dt>
    <dd class="code">${[...new Set(look.serving.map(({ config }) => config))].join(", ")}</dd>
  </dl>`;
}
