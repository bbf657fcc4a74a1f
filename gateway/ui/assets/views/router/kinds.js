// The kinds of artifacts: their names, what none in use means, and what putting one into use does.

export const KINDS = {
  router: {
    title: "Router",
    nothing: "none",
    made: "coe train",
    told: "Overlays of another router stay unused until coe retrain fits new ones.",
  },
  assignment: {
    title: "Assignment",
    nothing: "as declared in experts.yaml",
    made: "coe plan",
    told: "New requests follow the new plan; follow-ups stay with their expert within policy.sticky_margin.",
  },
  overlays: {
    title: "Overlays",
    nothing: "none",
    made: "coe retrain",
    told: "They affect requests of their tenants only, and only with the router they were fitted to.",
  },
  gate: {
    title: "Gate",
    nothing: "none",
    made: "coe score --retrieval both, then coe plan",
    told: "It decides whether passages are retrieved, where a document store is declared.",
  },
};

/** A version as text, also where there is none. */
export const versionOf = (kind, version) => version ?? KINDS[kind].nothing;

/** Whether all that serve here do so with what is in use. */
export const takenOver = ({ in_use: version, served }) =>
  Object.keys(served).every((one) => one === (version ?? ""));
