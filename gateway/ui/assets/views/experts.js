// Experts: state, declaration and numbers of each expert.

import { html } from "../vendor/lit-html.js";
import { api, resource } from "../api.js";
import { shown } from "../parts.js";
import { card } from "./experts/card.js";
import { readSnapshot } from "./live/metrics.js";

export const name = "experts";
export const title = "Experts";

const POLL_MS = 5000;

/** The experts with their state and declaration, and the numbers of all workers. */
async function load() {
  const [{ data }, snapshot] = await Promise.all([api.get("v1/experts"), readSnapshot()]);
  const numbers = new Map(snapshot.experts.map((expert) => [expert.id, { ...expert, first_byte_bounds: snapshot.first_byte_bounds }]));
  return data.filter(({ id }) => numbers.has(id)).map((expert) => ({ ...numbers.get(expert.id), ...expert }));
}

// "#/experts" lists all, "#/experts/NAME" scrolls to one.
export function open({ draw, path }) {
  const experts = resource(load, draw);
  let chosen = path[0];
  let scrolledTo = null;
  const refresh = () => document.hidden || experts.load();
  const timer = setInterval(refresh, POLL_MS);
  document.addEventListener("visibilitychange", refresh);

  const scroll = () => {
    if (!chosen || scrolledTo === chosen) return;
    const found = document.getElementById(`card-${chosen}`);
    if (!found) return;
    scrolledTo = chosen;
    found.scrollIntoView({ block: "nearest" });
  };
  const cards = (found) => {
    queueMicrotask(scroll);
    return html`<div class="cards">
      ${found.map((expert) => card(expert, { chosen: expert.id === chosen }))}
    </div>`;
  };

  return {
    template: () => html`<h1>Experts</h1>${shown(experts, cards)}`,
    moved({ path: [next] }) {
      chosen = next;
    },
    close() {
      clearInterval(timer);
      document.removeEventListener("visibilitychange", refresh);
    },
  };
}
