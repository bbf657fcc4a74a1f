// Differences between two snapshots of the gateway's counters, and derived numbers. Pure.

/** The counters of `snapshot` minus those of `base`; all since start where `base` is null. Seconds in `over`. */
export function difference(snapshot, base) {
  const began = Math.min(...snapshot.workers.map(({ started }) => started));
  return {
    over: Math.max(0.001, snapshot.time - (base?.time ?? began + snapshot.skew)),
    total: snapshot.requests.total - (base?.requests.total ?? 0),
    outcomes: increments(snapshot.requests.outcomes, base?.requests.outcomes),
    reasons: increments(snapshot.requests.reasons, base?.requests.reasons),
    flows: Object.fromEntries(
      Object.entries(snapshot.requests.flows).map(([category, row]) => [category, increments(row, base?.requests.flows[category])]),
    ),
    routing: bucketIncrements(snapshot.routing.counts, base?.routing.counts),
    retrieval: increments(snapshot.retrieval, base?.retrieval),
    feedback: increments(snapshot.feedback, base?.feedback),
    experts: snapshot.experts.map((expert) => ofExpert(expert, base?.experts.find(({ id }) => id === expert.id))),
    cpu: snapshot.workers.map((worker) => {
      const before = base ? base.workers.find((one) => one.worker === worker.worker && one.started === worker.started) : null;
      return worker.cpu_seconds - (before?.cpu_seconds ?? 0);
    }),
  };
}

function ofExpert(expert, before) {
  return {
    id: expert.id,
    outcomes: increments(expert.outcomes, before?.outcomes),
    fallbacks: expert.fallbacks - (before?.fallbacks ?? 0),
    first: bucketIncrements(expert.first_byte, before?.first_byte),
    tokens: increments(expert.tokens, before?.tokens),
    cost: expert.cost - (before?.cost ?? 0),
  };
}

/** Increments by name; names without an increment are left out. */
export function increments(now, before = {}) {
  const grown = Object.entries(now).map(([name, count]) => [name, count - (before[name] ?? 0)]);
  return Object.fromEntries(grown.filter(([, count]) => count > 0));
}

export const bucketIncrements = (now, before) => now.map((count, index) => count - (before?.[index] ?? 0));

export const sum = (counts) => Object.values(counts).reduce((total, count) => total + count, 0);

/** Number of failures: neither answered nor aborted by the client. */
export const failures = (outcomes) => sum(outcomes) - (outcomes.ok ?? 0) - (outcomes.aborted ?? 0);

/** The sum of histograms with the same bounds. */
export const merged = (histograms) =>
  histograms.reduce((total, counts) => total.map((count, index) => count + counts[index]));

/**
 * The approximate `share` quantile of a histogram in milliseconds, interpolated between its bucket's bounds (seconds);
 * null for an empty histogram. Values beyond the last bound count as the last bound.
 */
export function quantile(bounds, counts, share) {
  const total = sum(counts);
  if (!total) return null;
  let rank = share * total;
  let index = 0;
  while (index < bounds.length && rank > counts[index]) rank -= counts[index++];
  if (index === bounds.length) return 1000 * bounds.at(-1);
  const from = bounds[index - 1] ?? 0;
  return 1000 * (from + ((bounds[index] - from) * rank) / (counts[index] || 1));
}

/** Marginal counts by category and by expert. */
export function margins(flows) {
  const categories = {};
  const experts = {};
  for (const [category, row] of Object.entries(flows)) {
    for (const [expert, count] of Object.entries(row)) {
      categories[category] = (categories[category] ?? 0) + count;
      experts[expert] = (experts[expert] ?? 0) + count;
    }
  }
  return { categories, experts };
}

/** Counts as shares of their sum. */
export function shares(counts) {
  const total = sum(counts);
  return Object.fromEntries(Object.entries(counts).map(([name, count]) => [name, count / total]));
}
