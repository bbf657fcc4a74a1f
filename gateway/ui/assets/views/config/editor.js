// A text area with line numbers and marked lines, a list of problems that leads to their lines, and a unified diff.

import { html, nothing } from "../../vendor/lit-html.js";

/** `problems` are { line, message }; their lines are marked next to the text. */
export function editor(text, edited, { problems, readOnly }) {
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
      <textarea id="declaration" rows=${lines} wrap="off" spellcheck="false" autocapitalize="off" .value=${text} ?readonly=${readOnly} @input=${edited}></textarea>
    </div>`;
}

export const problems = (found) => html`<ul class="bare">
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

const KINDS = { "+": "good", "-": "bad", "@": "faint" };

export const diff = (text) =>
  text ? html`<pre class="diff code" tabindex="0" aria-label="Changes">${text.split("\n").map((line) => html`<span class=${KINDS[line[0]] ?? nothing}>${line}\n</span>`)}</pre>` : nothing;
