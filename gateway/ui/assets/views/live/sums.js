// What lies between two looks at the gateway's counters, and what follows from it. Pure: no page, no network.

/** The counters of `look` less those of `base`; all since the start where `base` is null. Seconds in `over`. */
export function between(look, base) {
  const began = Math.min(...look.workers.map(({ started }) => started));
  return {
    over: Math.max(0.001, look.time - (base?.time ?? began)),
    total: look.requests.total - (base?.requests.total ?? 0),
    outcomes: less(look.requests.outcomes, base?.requests.outcomes),
    reasons: less(look.requests.reasons, base?.requests.reasons),
    flows: Object.fromEntries(
      Object.entries(look.requests.flows).map(([category, row]) => [category, less(row, base?.requests.flows[category])]),
    ),
    routing: lessEach(look.routing.counts, base?.routing.counts),
    request: lessEach(look.request.counts, base?.request.counts),
    retrieval: less(look.retrieval, base?.retrieval),
    feedback: less(look.feedback, base?.feedback),
    experts: look.experts.map((expert) => ofExpert(expert, base?.experts.find(({ id }) => id === expert.id))),
    cpu: look.workers.map((worker) => {
      const before = base ? base.workers.find((one) => one.worker === worker.worker && one.started === worker.started) : null;
      return worker.cpu_seconds - (before?.cpu_seconds ?? 0);
    }),
  };
}

function ofExpert(expert, before) {
  return {
    id: expert.id,
    outcomes: less(expert.outcomes, before?.outcomes),
    fallbacks: expert.fallbacks - (before?.fallbacks ?? 0),
    first: lessEach(expert.first_byte, before?.first_byte),
    tokens: less(expert.tokens, before?.tokens),
    cost: expert.cost - (before?.cost ?? 0),
  };
}

/** What was counted by name; names that stood still are left out. */
export function less(now, before = {}) {
  const grown = Object.entries(now).map(([name, count]) => [name, count - (before[name] ?? 0)]);
  return Object.fromEntries(grown.filter(([, count]) => count > 0));
}

export const lessEach = (now, before) => now.map((count, index) => count - (before?.[index] ?? 0));

export const sum = (counts) => Object.values(counts).reduce((total, count) => total + count, 0);

/** Outcomes that are failures: the client did not leave, and no answer came. */
export const failures = (outcomes) => sum(outcomes) - (outcomes.ok ?? 0) - (outcomes.aborted ?? 0);

/** The sums of histograms over the same bounds. */
export const together = (histograms) =>
  histograms.reduce((total, counts) => total.map((count, index) => count + counts[index]));

/**
 * About the `share` quantile of a histogram in milliseconds, straight between its bucket's bounds (seconds); null for
 * none. What lies beyond the last bound counts as it.
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

/** Counts by category and by expert, from those of both. */
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

/** Each as a share of all. */
export function shares(counts) {
  const total = sum(counts);
  return Object.fromEntries(Object.entries(counts).map(([name, count]) => [name, count / total]));
}
