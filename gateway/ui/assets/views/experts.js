// Experts: how each stands, what it is and did, and a checklist for adding one.

import { html, nothing } from "../vendor/lit-html.js";
import { api, resource } from "../api.js";
import { shown } from "../parts.js";
import { openAdding } from "./experts/adding.js";
import { card } from "./experts/card.js";

export const name = "experts";
export const title = "Experts";

const EVERY = 5000; // milliseconds between looks

// "#/experts" shows all, "#/experts/NAME" leads to one and its failures, "#/experts?add" opens the checklist.
export function open({ draw, path, query }) {
  const experts = resource(() => api.get("v1/experts"), draw);
  const failures = new Map();
  let chosen = path[0];
  let led = null; // the expert that was scrolled to
  let adding = query.has("add") ? openAdding(draw) : null;
  const look = () => document.hidden || experts.load();
  const timer = setInterval(look, EVERY);
  document.addEventListener("visibilitychange", look);

  const ask = (id) => {
    if (failures.has(id)) return;
    failures.set(id, resource(() => api.get(`v1/experts/${encodeURIComponent(id)}/failures`), draw));
    draw();
  };
  const lead = () => {
    if (!chosen || led === chosen) return;
    const found = document.getElementById(`card-${chosen}`);
    if (!found) return;
    led = chosen;
    found.scrollIntoView({ block: "nearest" });
  };
  const cards = ({ data }) => {
    queueMicrotask(lead);
    return html`<div class="cards">
      ${data.map((expert) => card(expert, { failures: failures.get(expert.id), ask: () => ask(expert.id), chosen: expert.id === chosen }))}
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
    moved({ path: [next], query: asked }) {
      chosen = next;
      if (asked.has("add")) {
        adding ??= openAdding(draw);
      } else {
        adding?.close();
        adding = null;
      }
    },
    close() {
      clearInterval(timer);
      document.removeEventListener("visibilitychange", look);
      adding?.close();
    },
  };
}
