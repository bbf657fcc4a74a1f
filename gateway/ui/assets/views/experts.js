// Experts: state, declaration and numbers of each expert.

import { html } from "../vendor/lit-html.js";
import { api, resource } from "../api.js";
import { shown } from "../parts.js";
import { card } from "./experts/card.js";

export const name = "experts";
export const title = "Experts";

const POLL_MS = 5000;

// "#/experts" lists all, "#/experts/NAME" scrolls to one.
export function open({ draw, path }) {
  const experts = resource(() => api.get("v1/experts"), draw);
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
  const cards = ({ data }) => {
    queueMicrotask(scroll);
    return html`<div class="cards">
      ${data.map((expert) => card(expert, { chosen: expert.id === chosen }))}
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
