// Playground: a conversation with the router, an expert or a recipe, optionally compared with a second one or with the
// recipe's members, and the decisions behind it.

import { html, nothing } from "../vendor/lit-html.js";
import { api, resource } from "../api.js";
import { shown } from "../parts.js";
import { membersOf } from "../recipes.js";
import { answerOf } from "./playground/answer.js";
import { MEMBERS, busy, clear, save, conversation, send, set, stop } from "./playground/conversation.js";
import { comparison } from "./playground/comparison.js";
import { why } from "./playground/why.js";

export const name = "playground";
export const title = "Playground";

const EXAMPLES = ["Write a haiku about rain", "Prove that the square root of 2 is irrational", "Why does my Python loop skip every other item?"];
const WIDE = matchMedia("(min-width: 64rem)");
const FOLLOW_PX = 200; // distance from the end within which the page scrolls with the response

export function open({ draw }) {
  const offered = resource(loadOffered, draw);
  const view = { chosen: null }; // the turn that the panel explains; null for the latest
  conversation.draw = () => following(draw);
  WIDE.addEventListener("change", draw);
  return {
    template: () => html`
      <div class="row playhead">
        <h1>Playground</h1>
        <button class="quiet" ?disabled=${!conversation.turns.length} @click=${() => (clear(), (view.chosen = null), draw())}>New conversation</button>
      </div>
      ${shown(offered, (found) => everything(found, view, draw))}
    `,
    close() {
      conversation.draw = () => {};
      WIDE.removeEventListener("change", draw);
      save();
    },
  };
}

/** The names of the experts, and the recipes. */
async function loadOffered() {
  const [experts, recipes] = await Promise.all([api.get("v1/experts"), api.get("v1/recipes")]);
  return { experts: experts.data.map(({ id }) => id), recipes: recipes.data };
}

/** The recipe that the settings compare with its members, undefined without one. */
function comparedRecipe({ recipes }) {
  const { model, second } = conversation.settings;
  return second === MEMBERS ? recipes.find(({ id }) => id === model) : undefined;
}

/** Sends a prompt to the models that the settings select. */
function sendTo(offered, prompt) {
  const { model, second } = conversation.settings;
  const recipe = comparedRecipe(offered);
  if (recipe) send(prompt, [model, ...membersOf(recipe)], recipe.id);
  else send(prompt, second && second !== MEMBERS ? [model, second] : [model]);
}

/** Renders, and keeps the page scrolled to its end where it was there before. */
function following(draw) {
  const page = document.documentElement;
  const near = page.scrollHeight - page.clientHeight - page.scrollTop < FOLLOW_PX;
  draw();
  if (near && busy()) queueMicrotask(() => queueMicrotask(() => (page.scrollTop = page.scrollHeight)));
}

function everything(offered, view, draw) {
  const beside = WIDE.matches && !isCompared(offered);
  const turn = conversation.turns.includes(view.chosen) ? view.chosen : conversation.turns.at(-1);
  return html`
    ${settings(offered, draw)}
    <div class="conversation ${beside ? "beside" : ""}">
      <div class="talk">
        ${conversation.turns.length ? turnList({ offered, beside, turn, view, draw }) : welcome(offered, draw)} ${composer(offered, draw)}
      </div>
      ${beside && turn ? html`<aside class="card reasons" aria-label="Why"><h2>Why ${turn === conversation.turns.at(-1) ? "" : "(earlier answer)"}</h2>${why(turn.answers.find(Boolean))}</aside>` : nothing}
    </div>
  `;
}

function isCompared(offered) {
  const { second } = conversation.settings;
  return second === MEMBERS ? comparedRecipe(offered) !== undefined : second !== "";
}

function turnList({ offered, beside, turn, view, draw }) {
  const least = isCompared(offered) || conversation.turns.some(({ answers }) => answers[1]) ? 2 : 1;
  const lanes = ({ answers }) => [...answers.keys()].filter((lane) => lane < least || answers[lane]);
  return html`<ol class="turns" aria-label="Conversation">
    ${conversation.turns.map(
      (one) => html`<li>
        <div class="prompt"><span class="unseen">You: </span><div class="text" dir="auto">${one.prompt}</div></div>
        ${one.recipe ? comparison(one) : nothing}
        <div class="answers ${["", "two", "many"][Math.min(lanes(one).length, 3) - 1]}">
          ${lanes(one).map((lane) =>
            answerOf(one, lane, {
              folded: !beside,
              selected: beside && one === turn,
              select: () => ((view.chosen = one), draw()),
            }),
          )}
        </div>
      </li>`,
    )}
  </ol>`;
}

function welcome(offered, draw) {
  return html`<div class="note">
    <p>Send a message. The router chooses an expert, and the page explains why.</p>
    <p class="examples">${EXAMPLES.map((text) => html`<button class="quiet small" @click=${() => (sendTo(offered, text), draw())}>${text}</button>`)}</p>
  </div>`;
}

function composer(offered, draw) {
  const submit = (event) => {
    event.preventDefault();
    const field = event.currentTarget.elements.prompt;
    if (!field.value.trim() || busy()) return;
    sendTo(offered, field.value);
    field.value = "";
    draw();
  };
  const typed = (event) => (conversation.draft = event.target.value);
  const enter = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    event.target.form.requestSubmit();
  };
  return html`<form class="composer" @submit=${submit}>
    <textarea name="prompt" rows="3" aria-label="Your message" placeholder="Your message (Shift+Enter for a new line)" .value=${conversation.draft} @input=${typed} @keydown=${enter}></textarea>
    ${busy() ? html`<button type="button" class="danger" @click=${() => stop()}>Stop</button>` : html`<button>Send</button>`}
    <span class="unseen" role="status">${busy() ? "Responding" : conversation.turns.length ? "The response is complete" : ""}</span>
  </form>`;
}

function settings(offered, draw) {
  const change = (event) => {
    if (!event.target.reportValidity()) return;
    set(event.target.name, event.target.value);
    draw();
  };
  const { model, second, system, cost_weight, temperature, max_tokens: tokens, retrieval } = conversation.settings;
  const models = ["auto", ...offered.experts, ...offered.recipes.map(({ id }) => id)];
  const isRecipe = offered.recipes.some(({ id }) => id === model);
  const seconds = ["", ...(isRecipe ? [MEMBERS] : []), ...models];
  const compared = second === MEMBERS && !isRecipe ? "" : second;
  const more = [system.trim() && "a system prompt", temperature !== "" && `temperature ${temperature}`, tokens !== "" && `at most ${tokens} tokens`].filter(Boolean);
  return html`<form class="card playset" aria-label="Settings" @change=${change} @submit=${(event) => event.preventDefault()}>
    <div class="fields">
      ${select("Model", "model", model, models)}
      ${select("Compare with", "second", compared, seconds, { "": "none", [MEMBERS]: "its members" })}
      ${select("Retrieval", "retrieval", retrieval, ["auto", "on", "off"])}
      ${field("Cost weight (0–1)", "cost_weight", cost_weight, { min: 0, max: 1, step: 0.05, placeholder: "default" })}
    </div>
    <details>
      <summary>More${more.length ? `: ${more.join(", ")}` : ""}</summary>
      <div class="fields more">
        <label class="system">System prompt<textarea name="system" rows="2" .value=${system}></textarea></label>
        ${field("Temperature", "temperature", temperature, { min: 0, max: 2, step: 0.1, placeholder: "default" })}
        ${field("Max tokens", "max_tokens", tokens, { min: 1, max: 1000000, step: 1, placeholder: "default" })}
      </div>
      <p class="faint">Session <span class="code">${conversation.session}</span>: a follow-up stays with its expert unless another is clearly better.</p>
    </details>
  </form>`;
}

/** A select; a value that is no longer offered stays selected until another is chosen. */
function select(label, name, value, offered, names = {}) {
  const all = offered.includes(value) ? offered : [...offered, value];
  return html`<label>${label}
    <select name=${name}>${all.map((one) => html`<option value=${one} .selected=${one === value}>${names[one] ?? one}</option>`)}</select>
  </label>`;
}

const field = (label, name, value, { min, max, step, placeholder }) =>
  html`<label>${label}<input type="number" name=${name} .value=${value} min=${min} max=${max} step=${step} placeholder=${placeholder} /></label>`;
