// Playground: conversations with the router, an expert or a recipe, optionally side by side with others or with the
// recipe's members, and the decisions behind the answers.

import { html, nothing } from "../vendor/lit-html.js";
import { api, resource } from "../api.js";
import { loadRenderer } from "../markdown.js";
import { shown } from "../parts.js";
import { answerOf } from "./playground/answer.js";
import { comparison } from "./playground/comparison.js";
import { busy, conversation, resend, save, send, startNew, stop } from "./playground/conversation.js";
import { conversationsDialog, openConversations } from "./playground/conversations.js";
import { followEnd } from "./playground/following.js";
import { isCompared, selectedModels, settings } from "./playground/settings.js";
import { problem } from "./playground/store.js";
import { why } from "./playground/why.js";

export const name = "playground";
export const title = "Playground";

const EXAMPLES = ["Write a haiku about rain", "Prove that the square root of 2 is irrational", "Why does my Python loop skip every other item?"];
const WIDE = matchMedia("(min-width: 64rem)");

export function open({ draw }) {
  const offered = resource(loadOffered, draw);
  const view = { chosen: null, edited: null }; // the turns that the panel explains (null: the latest) and that is edited
  const end = followEnd(busy);
  const reset = () => {
    Object.assign(view, { chosen: null, edited: null });
    end.follow();
    draw();
    focusSoon(".composer textarea");
  };
  conversation.draw = draw;
  loadRenderer();
  WIDE.addEventListener("change", draw);
  end.follow();
  return {
    template: () => html`
      <div class="row playhead">
        <h1>Playground</h1>
        <button class="quiet" @click=${openConversations}>Conversations</button>
        <button class="quiet" ?disabled=${!conversation.turns.length} @click=${() => (startNew(), reset())}>New conversation</button>
      </div>
      ${problem.text ? html`<p class="warn" role="status">${problem.text}</p>` : nothing}
      ${shown(offered, (found) => everything(found, { view, end, draw }))} ${conversationsDialog(reset)}
    `,
    close() {
      conversation.draw = () => {};
      WIDE.removeEventListener("change", draw);
      end.close();
      save();
    },
  };
}

/** Moves the focus to a field of the view, after rendering; without effect while a dialog is open. */
function focusSoon(selector) {
  setTimeout(() => document.querySelector(selector)?.focus());
}

/** The names of the experts, and the recipes. */
async function loadOffered() {
  const [experts, recipes] = await Promise.all([api.get("v1/experts"), api.get("v1/recipes")]);
  return { experts: experts.data.map(({ id }) => id), recipes: recipes.data };
}

function everything(offered, { view, end, draw }) {
  const beside = WIDE.matches && !isCompared(offered);
  const latest = conversation.turns.at(-1);
  const turn = conversation.turns.includes(view.chosen) ? view.chosen : latest;
  const ask = (deliver) => (prompt) => {
    const { models, recipe } = selectedModels(offered);
    deliver(prompt, models, recipe);
    view.edited = null;
    end.follow();
    draw();
  };
  const list = () => html`<ol class="turns" aria-label="Conversation">
    ${conversation.turns.map((one) => turnItem(one, { offered, view, beside, chosen: turn, ask, draw }))}
  </ol>`;
  return html`
    ${settings(offered, draw)}
    <div class="conversation ${beside ? "beside" : ""}">
      <div class="talk">${latest ? list() : welcome(ask(send))} ${composer(ask(send))}</div>
      ${beside && turn ? html`<aside class="reasons" aria-label="Why"><div class="card"><h2>Why ${turn === latest ? "" : "(earlier answer)"}</h2>${why(turn.answers.find(Boolean))}</div></aside>` : nothing}
    </div>
  `;
}

function turnItem(turn, { offered, view, beside, chosen, ask, draw }) {
  const least = isCompared(offered) ? 2 : 1;
  const lanes = [...turn.answers.keys()].filter((lane) => lane < least || turn.answers[lane]);
  const edit = (edited) => () => {
    view.edited = edited;
    draw();
    focusSoon(edited ? ".editor textarea" : `.turns > li:nth-child(${conversation.turns.indexOf(turn) + 1}) .prompted button`);
  };
  return html`<li>
    ${view.edited === turn
      ? editor(turn, ask((prompt, ...selected) => resend(turn, prompt, ...selected)), edit(null))
      : html`<div class="prompt"><span class="unseen">You: </span><div class="text" dir="auto">${turn.prompt}</div></div>
          <div class="prompted"><button class="quiet small" ?disabled=${busy()} @click=${edit(turn)}>Edit</button></div>`}
    ${turn.recipe ? comparison(turn) : nothing}
    <div class="answers ${["", "two", "many"][Math.min(lanes.length, 3) - 1]}">
      ${lanes.map((lane) =>
        answerOf(turn, lane, {
          folded: !beside,
          selected: beside && turn === chosen,
          select: () => ((view.chosen = turn), draw()),
          last: turn === conversation.turns.at(-1),
        }),
      )}
    </div>
  </li>`;
}

function welcome(ask) {
  return html`<div class="note">
    <p>Send a message. The router chooses an expert, and the page explains why.</p>
    <p class="examples">${EXAMPLES.map((text) => html`<button class="quiet small" @click=${() => ask(text)}>${text}</button>`)}</p>
  </div>`;
}

/** Enter sends the form, Shift+Enter is a new line. */
function enter(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  event.target.form.requestSubmit();
}

const submitted = (use) => (event) => {
  event.preventDefault();
  const field = event.currentTarget.elements.prompt;
  if (!field.value.trim() || busy()) return;
  use(field.value);
  field.value = "";
};

function composer(ask) {
  const submit = submitted((prompt) => {
    conversation.draft = "";
    ask(prompt);
  });
  const typed = (event) => (conversation.draft = event.target.value);
  return html`<form class="composer" @submit=${submit}>
    <textarea name="prompt" rows="2" aria-label="Your message" placeholder="Your message (Shift+Enter for a new line)" .value=${conversation.draft} @input=${typed} @keydown=${enter}></textarea>
    ${busy() ? html`<button type="button" class="danger" @click=${() => (stop(), focusSoon(".composer textarea"))}>Stop</button>` : html`<button>Send</button>`}
    <span class="unseen" role="status">${busy() ? "Responding" : conversation.turns.length ? "The response is complete" : ""}</span>
  </form>`;
}

function editor(turn, ask, cancel) {
  const keys = (event) => (event.key === "Escape" ? cancel() : enter(event));
  return html`<form class="editor" @submit=${submitted(ask)}>
    <textarea name="prompt" rows="3" aria-label="Edited message" .defaultValue=${turn.prompt} @keydown=${keys}></textarea>
    <div class="row">
      <button class="small">Send again</button>
      <button type="button" class="quiet small" @click=${cancel}>Cancel</button>
      <span class="faint">The messages after it are removed.</span>
    </div>
  </form>`;
}
