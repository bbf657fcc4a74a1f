// One response: its text while it streams, its end state, thumbs, and actions.

import { html, nothing } from "../../vendor/lit-html.js";
import { api } from "../../api.js";
import "../../markdown.js";
import { unanswered } from "../../explained.js";
import { badge, dollars, milliseconds, number } from "../../parts.js";
import { busy, continueWith, conversation, retry, save } from "./conversation.js";
import { why } from "./why.js";

const STATES = { pending: "Waiting for the first token…", stopped: "Stopped." };

const decisionOf = (headers) => ({
  fallback_from: headers["x-coe-fallback-from"],
  expert: headers["x-coe-expert"],
  cause: headers["x-coe-cause"],
});

/**
 * With `folded` the explanation is below the response, else in the panel, where `select` shows it. `last` is true for the
 * answers of the last turn.
 */
export function answerOf(turn, lane, { folded, selected, select, last }) {
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
    <coe-markdown .text=${answer.text} .complete=${!answer.stop}></coe-markdown>
    ${ending(answer)}
    ${figures(answer)}
    <footer>
      ${answer.headers["x-request-id"] && answer.text ? thumbs(answer) : nothing} ${again(turn, lane, last)}
      ${answer.text ? continuing(turn, lane, last) : nothing}
      ${folded ? nothing : html`<button class="quiet small" aria-pressed=${selected ? "true" : "false"} @click=${select}>Why?</button>`}
    </footer>
    ${folded ? html`<details class="folded" ?open=${answer.unfolded} @toggle=${unfold}><summary>Why?</summary>${answer.unfolded ? why(answer) : nothing}</details>` : nothing}
  </article>`;
}

/** Time to first token, tokens and cost: the record's where it exists. */
function figures({ measured, record }) {
  const first = record?.first_token_ms ?? measured.first;
  if (first == null) return nothing;
  const tokens = record?.output_tokens == null ? [] : [`${number(record.input_tokens, 6)} + ${number(record.output_tokens, 6)} tokens`, dollars(record.cost)];
  return html`<p class="faint measured">${[`First token ${milliseconds(first)}`, ...tokens].join(" · ")}</p>`;
}

function again(turn, lane, last) {
  const { state } = turn.answers[lane];
  const failed = state === "failed" || state === "stopped";
  if (!failed && !(last && state === "done")) return nothing;
  return html`<button class="quiet small" ?disabled=${busy()} @click=${() => (retry(turn, lane), conversation.draw())}>${failed ? "Retry" : "Regenerate"}</button>`;
}

function continuing(turn, lane, last) {
  if (turn.kept === lane) return html`<span class="faint">The conversation continues with this answer.</span>`;
  if (!last || turn.kept != null || turn.answers.filter((one) => one?.text).length < 2) return nothing;
  const use = () => (continueWith(turn, lane), conversation.draw());
  return html`<button class="quiet small" ?disabled=${busy()} @click=${use}>Continue with this</button>`;
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
