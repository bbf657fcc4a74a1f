// "Add an expert": a form that writes the entry for experts.yaml, checks it, and lists the next steps.

import { html, nothing } from "../../vendor/lit-html.js";
import { api, resource } from "../../api.js";
import { badge, failure } from "../../parts.js";
import { entry, isLocal } from "./entry.js";
import { steps } from "./steps.js";

const CAPABILITIES = ["tools", "json_schema", "images", "audio"];
const RUNTIMES = {
  external: "an OpenAI-compatible server that runs elsewhere",
  vllm: "started here by coe up, with vLLM",
  transformers: "started here by coe up, with transformers",
  litellm: "another provider, through litellm",
};
const POLL_MS = 3000;

export function openAdding(draw) {
  const state = { fields: { runtime: "external", capabilities: [] }, text: "", own: false, checking: false, checked: null, error: null, copied: false };
  let progress = null; // the resource of the steps of a valid entry
  let timer = null;
  state.text = entry(state.fields);

  const changed = (event) => {
    const data = new FormData(event.currentTarget);
    state.fields = { ...Object.fromEntries(data), capabilities: data.getAll("capabilities") };
    state.text = entry(state.fields);
    Object.assign(state, { own: false, checked: null, copied: false });
    draw();
  };
  const edited = (event) => {
    Object.assign(state, { text: event.target.value, own: true, checked: null, copied: false });
    draw();
  };
  const check = async (event) => {
    event.preventDefault();
    Object.assign(state, { checking: true, error: null });
    draw();
    const { text } = state;
    try {
      const checked = await api.post("v1/experts/check", { entry: text });
      if (state.text === text) state.checked = checked; // else the entry was edited meanwhile
      if (state.checked?.ok) watch(checked.name);
    } catch (error) {
      Object.assign(state, { checked: null, error });
    }
    state.checking = false;
    draw();
  };
  const watch = (name) => {
    clearInterval(timer);
    progress = resource(() => api.get(`v1/experts/${encodeURIComponent(name)}/steps`), draw);
    timer = setInterval(() => document.hidden || progress.load(), POLL_MS);
  };
  const copy = async () => {
    await navigator.clipboard.writeText(state.text);
    state.copied = true;
    draw();
  };

  return {
    template: () => html`
      <section class="card adding" aria-labelledby="adding">
        <div class="row">
          <h2 id="adding">Add an expert</h2>
          <a href="#/experts">Close</a>
        </div>
        <p class="faint">Fill in the form, check the entry, and paste it into experts.yaml. The page writes nothing.</p>
        <div class="columns">
          ${form(state.fields, changed)}
          <form class="entry" @submit=${check}>
            <label for="entry">Entry for experts.yaml</label>
            <textarea id="entry" class="code" rows="12" spellcheck="false" .value=${state.text} @input=${edited} required maxlength="16000" aria-describedby="found"></textarea>
            <div class="row">
              <button ?disabled=${state.checking}>${state.checking ? "Checking…" : "Check entry"}</button>
              ${navigator.clipboard ? html`<button type="button" class="quiet" @click=${copy}>${state.copied ? "Copied" : "Copy"}</button>` : nothing}
            </div>
            <div id="found" role="status">${state.error ? failure(state.error) : state.checked ? verdict(state.checked) : nothing}</div>
          </form>
        </div>
        ${progress ? next(progress, state) : nothing}
      </section>
    `,
    close: () => clearInterval(timer),
  };
}

function next(progress, { fields }) {
  if (progress.state === "failed") return failure(progress.error, () => progress.load());
  return html`<h3>Next steps${progress.value ? ` for ${progress.value.id}` : ""}</h3>
    ${progress.value ? steps(progress.value.id, progress.value, isLocal(progress.value.runtime ?? fields.runtime)) : html`<p class="note">Loading…</p>`}`;
}

function verdict({ ok, problems, unset }) {
  if (!ok) {
    return html`<p>${badge("invalid", "bad")}</p>
      <ul class="bare">
        ${problems.map(({ where, line, message }) => html`<li><strong>${where === "entry" ? `Line ${line}` : line ? `${where}, line ${line}` : where}</strong> ${message}</li>`)}
      </ul>`;
  }
  return html`<p>${badge("valid", "good")} The entry fits the current experts.yaml.</p>
    ${unset.map((name) => html`<p class="warn">The environment variable ${name} is not set where the gateway runs. Export it before the gateway starts.</p>`)}`;
}

function form(fields, changed) {
  const local = isLocal(fields.runtime);
  const text = (name, label, more = {}) => html`<label>${label}
    <input name=${name} autocomplete="off" spellcheck="false" placeholder=${more.placeholder ?? nothing} pattern=${more.pattern ?? nothing} title=${more.title ?? nothing} />
  </label>`;
  const amount = (name, label, step) => html`<label>${label}<input name=${name} type="number" min="0" step=${step} inputmode="decimal" /></label>`;
  return html`<form class="fields" @input=${changed} @submit=${(event) => event.preventDefault()} autocomplete="off">
    ${text("name", "Name", { placeholder: "law-7b", pattern: "[A-Za-z0-9][A-Za-z0-9._\\-]{0,63}", title: "Letters, digits, dots, dashes and underscores" })}
    ${text("model", "Model", { placeholder: local ? "a folder, or a hub name" : "the name on its server" })}
    <label>Runtime
      <select name="runtime">
        ${Object.entries(RUNTIMES).map(([name, what]) => html`<option value=${name} ?selected=${name === fields.runtime}>${name}: ${what}</option>`)}
      </select>
    </label>
    ${local ? nothing : html`${text("base_url", "Base URL", { placeholder: "https://host/v1" })} ${text("api_key", "API key variable", { placeholder: "LAW_API_KEY", pattern: "[A-Za-z_][A-Za-z0-9_]*", title: "The name of an environment variable" })}`}
    ${amount("context_length", "Context, tokens", "1")}
    ${amount("active_parameters_b", "Active parameters, billions", "any")}
    ${local ? amount("memory_gb", "Memory, GB", "any") : nothing}
    ${amount("input", "Price in, $ per million", "any")} ${amount("output", "Price out, $ per million", "any")}
    <fieldset>
      <legend>Capabilities</legend>
      ${CAPABILITIES.map((name) => html`<label><input type="checkbox" name="capabilities" value=${name} />${name}</label>`)}
    </fieldset>
  </form>`;
}
