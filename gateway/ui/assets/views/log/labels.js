// Feedback on a response, and the forms to add it: thumb, score, correct category, preferred expert.

import { html, nothing } from "../../vendor/lit-html.js";
import { api } from "../../api.js";
import { moment, number } from "../../parts.js";

const KINDS = {
  thumb: "Thumb",
  score: "Score",
  preferred: "Preferred expert",
  category: "Category",
  regenerated: "Regenerated",
  abandoned: "Abandoned",
};

export function openLabels(id, draw, changed) {
  let result = null; // { good, text } of the latest feedback
  async function send(fields) {
    try {
      await api.post("v1/feedback", { request_id: id, ...fields });
      result = { good: true, text: "Feedback saved." };
      changed();
    } catch (error) {
      result = { good: false, text: error.message };
    }
    draw();
  }
  return {
    template: (record) => html`<section class="card">
      <h2>Feedback</h2>
      ${record.feedback.length ? feedbackTable(record.feedback) : html`<p class="faint">No feedback.</p>`}
      <h3>Add feedback</h3>
      ${forms(record, send)}
      <p role="status" class=${result?.good === false ? "bad" : "good"}>${result?.text ?? nothing}</p>
    </section>`,
  };
}

function feedbackTable(feedback) {
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Feedback"><table class="said">
    <caption class="unseen">Feedback on this response</caption>
    <thead><tr><th scope="col">Kind</th><th scope="col">Value</th><th scope="col">Key</th><th scope="col">Time</th></tr></thead>
    <tbody>
      ${feedback.map(
        ({ kind, value, key, time }) => html`<tr>
          <td>${KINDS[kind] ?? kind}</td>
          <td>${valueText(kind, value)}</td>
          <td>${key ?? "–"}</td>
          <td>${moment(time)}</td>
        </tr>`,
      )}
    </tbody>
  </table></div>`;
}

function valueText(kind, value) {
  if (kind === "thumb") return value > 0 ? "up" : "down";
  return typeof value === "number" ? number(value) : (value ?? "–");
}

function forms({ choices, category, expert }, send) {
  const form = (name, read) => (event) => {
    event.preventDefault();
    send({ [name]: read(new FormData(event.target).get(name)) });
  };
  const select = (name, label, values, current) => html`<form class="pair" @submit=${form(name, String)}>
    <label>${label}
      <select name=${name} required>
        ${values.map((value) => html`<option value=${value} ?selected=${value === current}>${value}</option>`)}
      </select>
    </label>
    <button class="quiet">Save</button>
  </form>`;
  return html`<div class="labels">
    <fieldset>
      <legend>Rating</legend>
      <div class="row">
        <button class="quiet" @click=${() => send({ thumb: "up" })}>Good</button>
        <button class="quiet" @click=${() => send({ thumb: "down" })}>Bad</button>
      </div>
    </fieldset>
    <form class="pair" @submit=${form("score", Number)}>
      <label>Score from 0 to 1
        <input type="number" name="score" min="0" max="1" step="0.05" value="0.5" required />
      </label>
      <button class="quiet">Save</button>
    </form>
    ${select("category", "Correct category", choices.category, category)}
    ${select("preferred", "Preferred expert", choices.expert, expert)}
  </div>`;
}
