// The kinds of artifacts: their titles, what is in use without a version, the command that makes one, and the effect of a promotion.

export const KINDS = {
  router: {
    title: "Router",
    nothing: "none",
    made: "coe train",
    effect: "A gate of another encoder stays unused until a new one is fitted.",
  },
  assignment: {
    title: "Assignment",
    nothing: "as declared in experts.yaml",
    made: "coe plan",
    effect: "New requests follow the new plan; follow-ups stay with their expert within policy.sticky_margin.",
  },
  gate: {
    title: "Gate",
    nothing: "none",
    made: "coe score --retrieval both, then coe plan",
    effect: "It decides whether passages are retrieved, where a document store is declared.",
  },
};

/** A version as text, or what is in use without one. */
export const versionOf = (kind, version) => version ?? KINDS[kind].nothing;

/** Whether all workers serve the version in use. */
export const isServed = ({ in_use: version, served }) =>
  Object.keys(served).every((one) => one === (version ?? ""));
