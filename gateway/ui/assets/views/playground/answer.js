// One answer: its text as it comes, how it ended, thumbs, and what can be done.

import { html, nothing } from "../../vendor/lit-html.js";
import { api } from "../../api.js";
import { unanswered } from "../../explained.js";
import { badge } from "../../parts.js";
import { again, busy, keep, room } from "./room.js";
import { why } from "./why.js";

const STATES = { asking: "Waiting for the first token…", stopped: "Stopped." };

const told = (headers) => ({
  fallback_from: headers["x-coe-fallback-from"],
  expert: headers["x-coe-expert"],
  cause: headers["x-coe-cause"],
});

/** `folded`: why is told below it; else by the panel beside, where `select` shows it. */
export function answerOf(turn, lane, { folded, selected, select }) {
  const answer = turn.answers[lane];
  if (!answer) return html`<div class="answer faint">Not sent.</div>`;
  const expert = answer.headers["x-coe-expert"];
  const unfold = (event) => {
    if (answer.unfolded === event.target.open) return;
    answer.unfolded = event.target.open;
    room.draw();
  };
  return html`<article class="answer ${selected ? "selected" : ""}" aria-busy=${answer.stop ? "true" : "false"} aria-label="Answer of ${expert ?? answer.model}">
    <header>
      <strong>${expert ?? answer.model}</strong>
      ${expert ? html`<span class="faint">${answer.headers["x-coe-category"]}, ${answer.headers["x-coe-reason"]}</span> ${unanswered(told(answer.headers))}` : nothing}
    </header>
    ${blocks(answer.text).map(block)}
    ${ending(answer)}
    <footer>
      ${answer.headers["x-request-id"] && answer.text ? thumbs(answer) : nothing}
      ${answer.state === "failed" || answer.state === "stopped" ? html`<button class="quiet small" ?disabled=${busy()} @click=${() => again(turn, lane)}>Retry</button>` : nothing}
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

/** Text and what stands between ``` fences, in turn; an open fence reaches to the end. */
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
  const say = async (thumb) => {
    try {
      await api.post("v1/feedback", { request_id: answer.headers["x-request-id"], thumb });
      Object.assign(answer, { said: thumb, refused: "" });
    } catch (error) {
      answer.refused = error.message;
    }
    keep();
    room.draw();
  };
  const button = (thumb, text) => html`<button class="quiet small" aria-pressed=${answer.said === thumb ? "true" : "false"} @click=${() => say(thumb)}>${text}</button>`;
  return html`${button("up", "Good")} ${button("down", "Bad")}
    <span role="status" class=${answer.refused ? "bad" : "unseen"}>${answer.refused || (answer.said ? "Feedback saved." : "")}</span>`;
}
