// The kinds of artifacts: their names, what none in use means, and what putting one into use does.

export const KINDS = {
  router: {
    title: "Router",
    nothing: "none",
    made: "coe train",
    told: "Overlays that were fitted to another router stay unused until coe retrain has fitted new ones.",
  },
  assignment: {
    title: "Assignment",
    nothing: "as declared in experts.yaml",
    made: "coe plan",
    told: "Requests go by the new plan from then on; follow-ups stay with their expert as far as policy.sticky_margin says.",
  },
  overlays: {
    title: "Overlays",
    nothing: "none",
    made: "coe retrain",
    told: "They turn the requests of their tenants alone, and only over the router they were fitted to.",
  },
  gate: {
    title: "Gate",
    nothing: "none",
    made: "coe score --retrieval both, then coe plan",
    told: "It decides whether documents are consulted, where a document store is declared.",
  },
};

/** A version as text, also where there is none. */
export const versionOf = (kind, version) => version ?? KINDS[kind].nothing;

/** Whether all that serve here do so with what is in use. */
export const takenOver = ({ in_use: version, served }) =>
  Object.keys(served).every((one) => one === (version ?? ""));
