// experts.yaml: its text with line numbers, the problems of a change next to their lines, the diff, and saving it.

import { html, nothing } from "../vendor/lit-html.js";
import { api, resource } from "../api.js";
import { badge, shown } from "../parts.js";
import { diff, editor, problems } from "./config/editor.js";

export const name = "config";
export const title = "experts.yaml";

const POLL_MS = 700;
const MAX_POLLS = 20;

// The edited text outlives the view, with the ETag of the text that it began with; null where nothing is edited.
const draft = { text: null, etag: "" };

const unsaved = (event) => event.preventDefault(); // the browser requests a confirmation before it leaves the page

function setDraft(text, etag) {
  Object.assign(draft, { text, etag });
  if (text === null) removeEventListener("beforeunload", unsaved);
  else addEventListener("beforeunload", unsaved);
}

api.addEventListener("key", () => {
  if (!api.key) setDraft(null, "");
});

export function open({ draw }) {
  const state = { checked: null, busy: false, error: null, saved: false, polls: 0, closed: false };
  let timer = 0;
  const file = resource(() => api.get("v1/config"), loaded);

  /** Loads the file again until the gateway serves it: it is saved here, or was changed elsewhere a moment ago. */
  function loaded() {
    draw();
    clearTimeout(timer);
    const waiting = file.value && !file.value.in_force;
    if (!state.closed && waiting && state.polls++ < MAX_POLLS) timer = setTimeout(file.load, POLL_MS);
  }

  const text = () => draft.text ?? file.value.text;
  const edited = ({ target }) => {
    setDraft(target.value === file.value.text ? null : target.value, draft.text === null ? file.value.etag : draft.etag);
    Object.assign(state, { checked: null, error: null, saved: false });
    draw();
  };

  /** Runs one request and shows its error. */
  async function run(work) {
    Object.assign(state, { busy: true, error: null });
    draw();
    try {
      await work();
    } catch (error) {
      state.error = error;
    }
    state.busy = false;
    draw();
  }
  const check = () =>
    run(async () => {
      const sent = text();
      const found = await api.post("v1/config/check", { text: sent });
      if (text() === sent) state.checked = found; // else the text was edited meanwhile
    });
  const save = () =>
    run(async () => {
      await api.fetch("v1/config", { method: "PUT", body: { text: text() }, headers: { "if-match": `"${draft.etag}"` } });
      setDraft(null, "");
      Object.assign(state, { checked: null, saved: true, polls: 0 });
      await file.load();
    });
  const discard = () => {
    setDraft(null, "");
    Object.assign(state, { checked: null, error: null, saved: false });
    file.load();
    draw();
  };

  return {
    template: () => html`
      <div class="row config-head">
        <h1>experts.yaml</h1>
        ${file.value ? serving(file.value) : nothing}
      </div>
      ${shown(file, (value) => html`
        ${notes(value, state)}
        <section class="card">
          ${editor(text(), edited, { problems: state.checked?.problems ?? [], readOnly: Boolean(value.read_only) })}
          <div class="row">
            <button ?disabled=${state.busy || text() === value.text} @click=${check}>Check</button>
            ${state.checked?.ok && state.checked.diff
              ? html`<button ?disabled=${state.busy || !value.in_force || Boolean(value.read_only)} @click=${save}>Save and reload</button>`
              : nothing}
            <button class="quiet" ?disabled=${state.busy || draft.text === null} @click=${discard}>Discard changes</button>
          </div>
          <div role="status">
            ${state.error ? html`<p class="bad">${state.error.message}</p>` : state.checked ? verdict(state.checked) : nothing}
          </div>
        </section>
      `)}
    `,
    close() {
      state.closed = true;
      clearTimeout(timer);
    },
  };
}

const serving = ({ in_force: inForce, reload_error: error }) =>
  inForce ? badge("in use", "good") : badge(error ? "not loaded" : "being loaded", error ? "bad" : "warn");

const notes = ({ read_only: readOnly, in_force: inForce, reload_error: error }, { saved }) => html`
  ${readOnly ? html`<p class="card warn">${readOnly}.</p>` : nothing}
  ${!inForce && error ? html`<p class="card bad" role="alert">The gateway serves an earlier text: ${error}</p>` : nothing}
  ${saved && inForce ? html`<p class="card good" role="status">Saved. This gateway serves the new text.</p>` : nothing}
`;

function verdict({ ok, problems: found, consequences, diff: text }) {
  if (!ok) return html`<p>${badge("invalid", "bad")}</p>${problems(found)}`;
  return html`<p>${badge("valid", "good")} ${text ? "The changes to be saved:" : "Nothing is changed."}</p>
    ${diff(text)}
    ${consequences.length ? html`<h3>With the router and the plan in use</h3><ul>${consequences.map((one) => html`<li>${one}</li>`)}</ul>` : nothing}`;
}
