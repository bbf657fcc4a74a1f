// "What would happen now": the request decided again with the current router, plan and experts, beside what was.

import { html, nothing } from "../../vendor/lit-html.js";
import { api, resource } from "../../api.js";
import { percent, shown } from "../../parts.js";
import { sentence } from "../../explained.js";

const SOURCES = {
  prompt: "The log kept the text, so the router in use has classified it anew.",
  posterior: "The log kept no text (log.store_prompts), so this takes the category's probabilities as they were and weighs the experts anew.",
};

export function openAgain(path, draw) {
  let decision = null;
  const ask = () => {
    decision = resource(() => api.post(path), draw);
    draw();
  };
  return {
    template: (record) => html`<section class="card">
      <div class="row">
        <h2>What would happen now</h2>
        <button @click=${ask} ?disabled=${!record.category}>Decide again</button>
      </div>
      <div role="status">${decision ? shown(decision, result) : html`<p class="faint">${record.category ? "With the router, the plan and the experts as they are now." : "The request ended before it was classified."}</p>`}</div>
    </section>`,
  };
}

function result({ source, needs_known: known, recorded, replayed }) {
  const names = ["expert", "category", "reason"];
  const same = names.slice(0, 2).every((name) => recorded[name] === replayed[name]);
  return html`
    <p>${same ? "The same: " : ""}${sentence({ ...replayed, attempts: 1, propensity: 1 })}</p>
    <p class="faint">${SOURCES[source]}${known ? "" : " What the request needed (tools, images) was not written down then, so all experts count as able."}</p>
    <table class="compared">
      <caption class="unseen">The decision then and now</caption>
      <thead><tr><th></th><th scope="col">Then</th><th scope="col">Now</th></tr></thead>
      <tbody>
        ${row("Expert", recorded.expert, replayed.expert)} ${row("Category", recorded.category, replayed.category)}
        ${row("Sure", percent(recorded.confidence), percent(replayed.confidence))} ${row("Reason", recorded.reason, replayed.reason)}
        ${row("Order of asking", recorded.candidates.join(", "), replayed.candidates.join(", "))}
        ${row("Router", recorded.router, replayed.router)} ${row("Plan", recorded.plan || "as declared", replayed.plan || "as declared")}
      </tbody>
    </table>
    <h3>Categories</h3>
    <table class="compared">
      <caption class="unseen">Probability of the likeliest categories then and now</caption>
      <thead><tr><th></th><th scope="col" class="number">Then</th><th scope="col" class="number">Now</th></tr></thead>
      <tbody>
        ${likeliest(recorded.probabilities, replayed.probabilities).map(
          (name) => html`<tr>
            <th scope="row">${name}</th>
            <td class="number">${percent(recorded.probabilities[name])}</td>
            <td class="number">${percent(replayed.probabilities[name])}</td>
          </tr>`,
        )}
      </tbody>
    </table>
  `;
}

const row = (title, then, now) => html`<tr>
  <th scope="row">${title}</th>
  <td>${then || "–"}</td>
  <td class=${then === now ? nothing : "changed"}>${now || "–"}</td>
</tr>`;

function likeliest(then, now, limit = 6) {
  const most = (name) => Math.max(then[name] ?? 0, now[name] ?? 0);
  return [...new Set([...Object.keys(then), ...Object.keys(now)])].sort((a, b) => most(b) - most(a)).slice(0, limit);
}
