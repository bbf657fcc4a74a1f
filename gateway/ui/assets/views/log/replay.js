// "Replay": the decision with the current router, plan and experts, next to the recorded one.

import { html, nothing } from "../../vendor/lit-html.js";
import { api, resource } from "../../api.js";
import { percent, shown } from "../../parts.js";
import { sentence } from "../../explained.js";

const SOURCES = {
  prompt: "The log stores the text, so the current router classified it again.",
  posterior: "The log stores no text (log.store_prompts), so the recorded probabilities were used to rank the experts again.",
};

export function openReplay(path, draw) {
  let decision = null;
  const replay = () => {
    decision = resource(() => api.post(path), draw);
    draw();
  };
  return {
    template: (record) => html`<section class="card">
      <div class="row">
        <h2>Replay</h2>
        <button @click=${replay} ?disabled=${!record.category}>Replay decision</button>
      </div>
      <div role="status">${decision ? shown(decision, result) : html`<p class="faint">${record.category ? "With the current router, plan and experts." : "The request was not classified."}</p>`}</div>
    </section>`,
  };
}

function result({ source, needs_known: known, recorded, replayed }) {
  const names = ["expert", "category", "reason"];
  const same = names.slice(0, 2).every((name) => recorded[name] === replayed[name]);
  return html`
    <p>${same ? "No change: " : ""}${sentence({ ...replayed, attempts: 1, propensity: 1 })}</p>
    <p class="faint">${SOURCES[source]}${known ? "" : " The required capabilities (tools, images) were not recorded, so all experts count as eligible."}</p>
    <table class="compared">
      <caption class="unseen">Decision recorded and replayed</caption>
      <thead><tr><th></th><th scope="col">Then</th><th scope="col">Now</th></tr></thead>
      <tbody>
        ${row("Expert", recorded.expert, replayed.expert)} ${row("Category", recorded.category, replayed.category)}
        ${row("Confidence", percent(recorded.confidence), percent(replayed.confidence))} ${row("Reason", recorded.reason, replayed.reason)}
        ${row("Candidates", recorded.candidates.join(", "), replayed.candidates.join(", "))}
        ${row("Router", recorded.router, replayed.router)} ${row("Plan", recorded.plan || "declared", replayed.plan || "declared")}
      </tbody>
    </table>
    <h3>Categories</h3>
    <table class="compared">
      <caption class="unseen">Probability of the likeliest categories, recorded and replayed</caption>
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

const row = (title, recorded, replayed) => html`<tr>
  <th scope="row">${title}</th>
  <td>${recorded || "–"}</td>
  <td class=${recorded === replayed ? nothing : "changed"}>${replayed || "–"}</td>
</tr>`;

function likeliest(recorded, replayed, limit = 6) {
  const most = (name) => Math.max(recorded[name] ?? 0, replayed[name] ?? 0);
  return [...new Set([...Object.keys(recorded), ...Object.keys(replayed)])].sort((a, b) => most(b) - most(a)).slice(0, limit);
}
