// experts.yaml: its text with line numbers, and a check of a changed text: the problems next to their lines, or the diff.

import { html, nothing } from "../vendor/lit-html.js";
import { api, resource } from "../api.js";
import { badge, copyable, shown } from "../parts.js";

export const name = "config";
export const title = "experts.yaml";

export function open({ draw }) {
  const state = { text: null, checked: null, busy: false, error: null };
  const file = resource(() => api.get("v1/config"), draw);
  const set = (changes) => {
    Object.assign(state, changes);
    draw();
  };

  const text = () => state.text ?? file.value.text;
  const edited = ({ target }) => set({ text: target.value, checked: null, error: null });
  const check = async () => {
    const sent = text();
    set({ busy: true, error: null });
    try {
      const found = await api.post("v1/config/check", { text: sent });
      if (text() === sent) state.checked = found; // else the text was edited meanwhile
    } catch (error) {
      state.error = error;
    }
    set({ busy: false });
  };
  const reload = () => {
    set({ text: null, checked: null, error: null });
    file.load();
  };

  return {
    template: () => html`
      <div class="row config-head">
        <h1>experts.yaml</h1>
        ${file.value ? serving(file.value) : nothing}
      </div>
      ${shown(file, (value) => html`
        ${value.reload_error
          ? html`<p class="card bad" role="alert">The gateway serves an earlier text: ${value.reload_error}</p>`
          : nothing}
        <section class="card">
          <p class="faint">Try a change here, and write it to the file where the gateway runs. The page writes nothing.</p>
          ${editor(text(), edited, { problems: state.checked?.problems ?? [] })}
          <div class="row">
            <button ?disabled=${state.busy} @click=${check}>Check</button>
            <button class="quiet" ?disabled=${state.busy} @click=${reload}>Load the file again</button>
          </div>
          <div role="status">
            ${state.error ? html`<p class="bad">${state.error.message}</p>` : state.checked ? verdict(state.checked) : nothing}
          </div>
        </section>
      `)}
    `,
  };
}

const serving = ({ reload_error: error }) => (error ? badge("not loaded", "bad") : badge("in use", "good"));

function verdict({ ok, problems: found, consequences, diff }) {
  if (!ok) return html`<p>${badge("invalid", "bad")}</p>${problems(found)}`;
  return html`<p>${badge("valid", "good")} ${diff ? "The changed lines:" : "Nothing is changed."}</p>
    ${diff ? copyable(diff) : nothing}
    ${consequences.length ? html`<h3>With the router and the plan in use</h3><ul>${consequences.map((one) => html`<li>${one}</li>`)}</ul>` : nothing}`;
}

/** `problems` are { line, message }; their lines are marked next to the text. */
function editor(text, edited, { problems }) {
  const lines = text.split("\n").length;
  const marked = new Map(problems.map(({ line, message }) => [line, message]));
  return html`<label for="declaration" class="unseen">Text of experts.yaml</label>
    <div class="editor code">
      <div class="gutter" aria-hidden="true">
        ${Array.from({ length: lines }, (_, at) => {
          const message = marked.get(at + 1);
          return html`<span class=${message ? "wrong" : nothing} title=${message ?? nothing}>${at + 1}</span>`;
        })}
      </div>
      <textarea id="declaration" rows=${lines} wrap="off" spellcheck="false" autocapitalize="off" .value=${text} @input=${edited}></textarea>
    </div>`;
}

const problems = (found) => html`<ul class="bare">
  ${found.map(
    ({ line, message }) => html`<li>
      ${line ? html`<button class="quiet" @click=${() => select(line)}>Line ${line}</button>` : nothing} ${message}
    </li>`,
  )}
</ul>`;

/** Selects a line of the text and scrolls to it. */
function select(line) {
  const area = document.getElementById("declaration");
  const lines = area.value.split("\n");
  const start = lines.slice(0, line - 1).reduce((sum, one) => sum + one.length + 1, 0);
  area.focus({ preventScroll: true });
  area.setSelectionRange(start, start + (lines[line - 1]?.length ?? 0));
  document.querySelector(`.gutter span:nth-of-type(${line})`)?.scrollIntoView({ block: "center" });
}
