// A snapshot of the gateway's numbers, summed over all workers, from its metrics in Prometheus's text format.

import { api } from "../../api.js";

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const BREAKERS = ["closed", "rate_limited", "half_open", "open"];
const TIERS = ["stopped", "asleep", "switching", "awake"];

/** The snapshot of now. `skew` is the visitor's clock minus the gateway's, in seconds. */
export async function readSnapshot(options) {
  const response = await api.fetch("metrics", options);
  const time = Date.now() / 1000;
  const date = Date.parse(response.headers.get("date") ?? "");
  return { time, skew: date ? time - date / 1000 : 0, ...snapshotOf(samplesOf(await response.text())) };
}

/** The samples of each name: [{ labels, value }]. */
export function samplesOf(text) {
  const samples = {};
  for (const line of text.split("\n")) {
    const [, name, labels = "", value] = SAMPLE.exec(line) ?? [];
    if (!name) continue;
    const pairs = [...labels.matchAll(LABEL)].map(([, label, escaped]) => [label, escaped.replace(/\\(.)/g, (_, one) => (one === "n" ? "\n" : one))]);
    (samples[name] ??= []).push({ labels: Object.fromEntries(pairs), value: Number(value) });
  }
  return samples;
}

function snapshotOf(samples) {
  const of = (name, labels = {}) =>
    (samples[name] ?? []).filter((one) => Object.entries(labels).every(([label, value]) => one.labels[label] === value));
  const total = (name, labels) => of(name, labels).reduce((sum, { value }) => sum + value, 0);
  const by = (label, name, labels) => {
    const sums = {};
    for (const one of of(name, labels)) if (one.labels[label]) sums[one.labels[label]] = (sums[one.labels[label]] ?? 0) + one.value;
    return sums;
  };
  const bounds = (name) => [...new Set(of(`${name}_bucket`).map(({ labels: { le } }) => Number(le)))].filter((bound) => bound < Infinity);
  const buckets = (name, labels) => {
    const counts = of(`${name}_bucket`, labels).map(({ value }, index, all) => value - (all[index - 1]?.value ?? 0));
    return counts.length ? counts : Array(bounds(name).length + 1).fill(0);
  };
  const requests = "coe_requests_total";
  const categories = Object.keys(by("category", requests)).sort();
  const expert = (id) => ({
    id,
    outcomes: by("outcome", requests, { expert: id }),
    fallbacks: total("coe_fallbacks_total", { expert: id }),
    in_flight: total("coe_expert_in_flight", { expert: id }),
    breakers: Object.fromEntries(of("coe_breaker_state", { expert: id }).map(({ labels, value }) => [labels.replica, BREAKERS[value]])),
    first_byte: buckets("coe_first_byte_seconds", { expert: id }),
    tokens: by("kind", "coe_tokens_total", { expert: id }),
    cost: total("coe_cost_dollars_total", { expert: id }),
    tier: TIERS[of("coe_expert_tier", { expert: id })[0]?.value],
    waiting: total("coe_expert_waiting", { expert: id }),
    switches: total("coe_expert_switches", { expert: id }),
  });
  return {
    categories,
    requests: {
      total: total(requests),
      outcomes: by("outcome", requests),
      reasons: by("reason", requests),
      flows: Object.fromEntries(categories.map((category) => [category, by("expert", requests, { category })])),
    },
    in_flight: total("coe_requests_in_flight"),
    queued: total("coe_queue_length"),
    routing: { bounds: bounds("coe_routing_seconds"), counts: buckets("coe_routing_seconds") },
    first_byte_bounds: bounds("coe_first_byte_seconds"),
    experts: of("coe_expert_in_flight").map(({ labels }) => expert(labels.expert)),
    retrieval: by("result", "coe_retrieval_total"),
    feedback: by("kind", "coe_feedback_total"),
    log: { backlog: total("coe_log_backlog"), dropped: total("coe_log_dropped") },
    warnings: of("coe_degraded").filter(({ value }) => value).map(({ labels }) => labels.part),
    artifacts: Object.groupBy(of("coe_artifact_info").map(({ labels }) => labels).filter(({ version }) => version), ({ kind }) => kind),
    workers: of("process_start_time_seconds").map(({ labels, value }) => ({
      worker: labels.worker,
      started: value,
      memory_bytes: total("process_resident_memory_bytes", labels),
      cpu_seconds: total("process_cpu_seconds_total", labels),
    })),
  };
}
