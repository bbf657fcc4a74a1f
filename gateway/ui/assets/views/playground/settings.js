// The settings of the requests: models, cost weight, retrieval, system prompt, sampling.

import { html } from "../../vendor/lit-html.js";
import { membersOf } from "../../recipes.js";
import { MEMBERS, conversation, set } from "./conversation.js";

/** The recipe that the settings compare with its members, undefined without one. */
function comparedRecipe({ recipes }) {
  const { model, second } = conversation.settings;
  return second === MEMBERS ? recipes.find(({ id }) => id === model) : undefined;
}

/** The models that get the next prompt, each once, and the name of the recipe compared with its members, or empty. */
export function selectedModels(offered) {
  const { model, second, third } = conversation.settings;
  const recipe = comparedRecipe(offered);
  if (recipe) return { models: [model, ...membersOf(recipe)], recipe: recipe.id };
  return { models: [model, ...[second, third].filter((one) => one && one !== MEMBERS)], recipe: "" };
}

export const isCompared = (offered) => selectedModels(offered).models.length > 1;

export function settings(offered, draw) {
  const change = (event) => {
    if (!event.target.reportValidity()) return;
    set(event.target.name, event.target.value);
    draw();
  };
  const { model, second, third, system, cost_weight, temperature, max_tokens: tokens, retrieval } = conversation.settings;
  const models = ["auto", ...offered.experts, ...offered.recipes.map(({ id }) => id)];
  const isRecipe = offered.recipes.some(({ id }) => id === model);
  const seconds = ["", ...(isRecipe ? [MEMBERS] : []), ...models];
  const compared = second === MEMBERS && !isRecipe ? "" : second;
  const more = [system.trim() && "a system prompt", temperature !== "" && `temperature ${temperature}`, tokens !== "" && `at most ${tokens} tokens`].filter(Boolean);
  return html`<form class="card playset" aria-label="Settings" @change=${change} @submit=${(event) => event.preventDefault()}>
    <div class="fields">
      ${select("Model", "model", model, models)}
      ${select("Compare with", "second", compared, seconds, { "": "none", [MEMBERS]: "its members" })}
      ${compared && compared !== MEMBERS ? select("And with", "third", third, ["", ...models], { "": "none" }) : ""}
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
