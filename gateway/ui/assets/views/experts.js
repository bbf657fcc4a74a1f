// Experts: state, declaration and numbers of each expert, and a checklist for adding one.

import { html, nothing } from "../vendor/lit-html.js";
import { api, resource } from "../api.js";
import { shown } from "../parts.js";
import { openAdding } from "./experts/add.js";
import { card } from "./experts/card.js";

export const name = "experts";
export const title = "Experts";

const POLL_MS = 5000;

// "#/experts" lists all, "#/experts/NAME" scrolls to one and its failures, "#/experts?add" opens the checklist.
export function open({ draw, path, query }) {
  const experts = resource(() => api.get("v1/experts"), draw);
  const failures = new Map();
  let chosen = path[0];
  let scrolledTo = null;
  let adding = query.has("add") ? openAdding(draw) : null;
  const refresh = () => document.hidden || experts.load();
  const timer = setInterval(refresh, POLL_MS);
  document.addEventListener("visibilitychange", refresh);

  const ask = (id) => {
    if (failures.has(id)) return;
    failures.set(id, resource(() => api.get(`v1/experts/${encodeURIComponent(id)}/failures`), draw));
    draw();
  };
  const tests = new Map();
  const test = (id) => {
    tests.set(id, resource(() => api.post(`v1/experts/${encodeURIComponent(id)}/test`), draw));
    draw();
  };
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
      ${data.map((expert) => card(expert, { failures: failures.get(expert.id), ask: () => ask(expert.id), result: tests.get(expert.id), test: () => test(expert.id), chosen: expert.id === chosen }))}
    </div>`;
  };

  return {
    template: () => html`
      <div class="row experts-head">
        <h1>Experts</h1>
        ${adding ? nothing : html`<a class="button" href="#/experts?add">Add an expert</a>`}
      </div>
      ${adding?.template() ?? nothing} ${shown(experts, cards)}
    `,
    moved({ path: [next], query }) {
      chosen = next;
      if (query.has("add")) {
        adding ??= openAdding(draw);
      } else {
        adding?.close();
        adding = null;
      }
    },
    close() {
      clearInterval(timer);
      document.removeEventListener("visibilitychange", refresh);
      adding?.close();
    },
  };
}
