// One response: its text while it streams, its end state, thumbs, and actions.

import { html, nothing } from "../../vendor/lit-html.js";
import { api } from "../../api.js";
import { unanswered } from "../../explained.js";
import { badge } from "../../parts.js";
import { retry, busy, save, conversation } from "./conversation.js";
import { why } from "./why.js";

const STATES = { pending: "Waiting for the first token…", stopped: "Stopped." };

const decisionOf = (headers) => ({
  fallback_from: headers["x-coe-fallback-from"],
  expert: headers["x-coe-expert"],
  cause: headers["x-coe-cause"],
});

/** With `folded` the explanation is below the response, else in the panel, where `select` shows it. */
export function answerOf(turn, lane, { folded, selected, select }) {
  const answer = turn.answers[lane];
  if (!answer) return html`<div class="answer faint">Not sent.</div>`;
  const expert = answer.headers["x-coe-expert"];
  const recipe = answer.headers["x-coe-recipe"];
  const author = recipe ? `${recipe}, by ${expert}` : (expert ?? answer.model);
  const unfold = (event) => {
    if (answer.unfolded === event.target.open) return;
    answer.unfolded = event.target.open;
    conversation.draw();
  };
  return html`<article class="answer ${selected ? "selected" : ""}" aria-busy=${answer.stop ? "true" : "false"} aria-label="Answer of ${author}">
    <header>
      <strong>${author}</strong>
      ${expert ? html`<span class="faint">${answer.headers["x-coe-category"]}, ${answer.headers["x-coe-reason"]}</span> ${unanswered(decisionOf(answer.headers))}` : nothing}
    </header>
    ${blocks(answer.text).map(block)}
    ${ending(answer)}
    <footer>
      ${answer.headers["x-request-id"] && answer.text ? thumbs(answer) : nothing}
      ${answer.state === "failed" || answer.state === "stopped" ? html`<button class="quiet small" ?disabled=${busy()} @click=${() => retry(turn, lane)}>Retry</button>` : nothing}
      ${folded ? nothing : html`<button class="quiet small" aria-pressed=${selected ? "true" : "false"} @click=${select}>Why?</button>`}
    </footer>
    ${folded ? html`<details class="folded" ?open=${answer.unfolded} @toggle=${unfold}><summary>Why?</summary>${answer.unfolded ? why(answer) : nothing}</details>` : nothing}
  </article>`;
}

function ending({ state, error, text }) {
  if (state === "failed") {
    return html`<div class="failed" role="alert">
      <p>${badge(error.status > 200 ? error.status : text ? "interrupted" : "failed", "bad")} ${error.message}</p>
      ${error.retry ? html`<p class="faint">Try again in ${error.retry} s.</p>` : nothing}
    </div>`;
  }
  if (state === "done" && !text) return html`<p class="faint">The answer is empty.</p>`;
  return STATES[state] ? html`<p class="faint">${STATES[state]}</p>` : nothing;
}

/** Splits text at ``` fences into blocks; an open fence reaches to the end. */
export function blocks(text) {
  const found = [];
  let rest = text;
  for (;;) {
    const fence = /(^|\n)[ \t]*```([^\n`]*)\n/.exec(rest);
    if (!fence) break;
    const from = fence.index + fence[0].length;
    const end = /(^|\n)[ \t]*```[ \t]*(?=\n|$)/.exec(rest.slice(from));
    found.push({ text: rest.slice(0, fence.index) }, { code: true, language: fence[2].trim(), text: end ? rest.slice(from, from + end.index) : rest.slice(from) });
    rest = end ? rest.slice(from + end.index + end[0].length).replace(/^\n/, "") : "";
  }
  const trimmed = ({ text, ...one }) => (one.code ? { ...one, text } : { text: text.replace(/^\n+|\n+$/g, "") });
  return [...found, { text: rest }].map(trimmed).filter((one) => one.code || one.text);
}

const block = ({ code, language, text }) =>
  code
    ? html`<figure class="fenced">${language ? html`<figcaption>${language}</figcaption>` : nothing}<pre tabindex="0"><code>${text}</code></pre></figure>`
    : html`<div class="text" dir="auto">${text}</div>`;

function thumbs(answer) {
  const rate = async (thumb) => {
    try {
      await api.post("v1/feedback", { request_id: answer.headers["x-request-id"], thumb });
      Object.assign(answer, { rated: thumb, rateError: "" });
    } catch (error) {
      answer.rateError = error.message;
    }
    save();
    conversation.draw();
  };
  const button = (thumb, text) => html`<button class="quiet small" aria-pressed=${answer.rated === thumb ? "true" : "false"} @click=${() => rate(thumb)}>${text}</button>`;
  return html`${button("up", "Good")} ${button("down", "Bad")}
    <span role="status" class=${answer.rateError ? "bad" : "unseen"}>${answer.rateError || (answer.rated ? "Feedback saved." : "")}</span>`;
}
