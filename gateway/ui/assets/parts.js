// Elements that several views share: loading states, tables, bars, numbers.

import { html, nothing, svg } from "./vendor/lit-html.js";
import { api } from "./api.js";

/** A resource in its current state; `empty` (text or template) is shown where `isEmpty` is true of the value. */
export function shown(found, template, { isEmpty = () => false, empty = "Nothing here yet." } = {}) {
  if (found.state === "failed") return failure(found.error, () => found.load());
  if (found.value === undefined) return html`<p class="note" role="status">Loading…</p>`;
  if (isEmpty(found.value)) return html`<div class="note">${empty}</div>`;
  return template(found.value);
}

/** An error and its remedy. */
export function failure(error, retry) {
  if (error.status === 403) {
    return html`<section class="note" role="alert">
      <h2>Permission denied</h2>
      <p>${error.message}</p>
      ${api.key ? html`<p>Choose “Forget key” above to enter another.</p>` : nothing}
    </section>`;
  }
  return html`<section class="note" role="alert">
    <h2>Request failed</h2>
    <p>${error.message}</p>
    ${retry ? html`<button @click=${retry}>Try again</button>` : nothing}
  </section>`;
}

/** A table; `columns` are { title, cell(row), number? }, and `caption` is its name for screen readers. */
export function table(caption, columns, rows) {
  return html`<div class="scroll" tabindex="0" role="region" aria-label=${caption}>
    <table>
      <caption class="unseen">${caption}</caption>
      <thead>
        <tr>${columns.map(({ title, number }) => html`<th scope="col" class=${number ? "number" : nothing}>${title}</th>`)}</tr>
      </thead>
      <tbody>
        ${rows.map(
          (row) =>
            html`<tr>${columns.map(({ cell, number }) => html`<td class=${number ? "number" : nothing}>${cell(row)}</td>`)}</tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

/** A bar of `share` (0 to 1) of the available width; hidden from screen readers, which read the number next to it. */
export function bar(share, series = 1) {
  const width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return html`<svg class="bar" aria-hidden="true">${svg`<rect width=${width} height="100%" rx="2" class="series-${series}"></rect>`}</svg>`;
}

/** Named shares as rows of bars, the largest first; `chosen` is marked. */
export function bars(caption, shares, { chosen, limit = Infinity, text = percent } = {}) {
  const rows = Object.entries(shares).sort((a, b) => b[1] - a[1]).slice(0, limit);
  return html`<table class="bars">
    <caption class="unseen">${caption}</caption>
    ${rows.map(
      ([name, share]) => html`<tr class=${name === chosen ? "chosen" : nothing}>
        <th scope="row">${name}</th>
        <td>${bar(share, name === chosen ? 1 : 8)}</td>
        <td class="number">${text(share)}</td>
      </tr>`,
    )}
  </table>`;
}

/** A word in a coloured box; `kind` is good, warn, bad or plain. */
export const badge = (text, kind = "plain") => html`<span class="badge ${kind}">${text}</span>`;

/** Text with a copy button where the browser supports it. */
export function copyable(text) {
  const copy = async (event) => {
    const button = event.currentTarget;
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  };
  return html`<div class="copyable">
    <pre class="code" tabindex="0">${text}</pre>
    ${navigator.clipboard ? html`<button class="quiet" @click=${copy}>Copy</button>` : nothing}
  </div>`;
}

/** A named key figure. */
export const figure = (name, value, note = nothing) =>
  html`<div class="figure"><dt>${name}</dt><dd>${value}</dd>${note === nothing ? nothing : html`<dd class="faint">${note}</dd>`}</div>`;

export const percent = (share) => (share == null ? "–" : `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`);

/** With three significant digits: 0.0123, 1.23, 12.3, 1,230. */
export function number(value, digits = 3) {
  if (value == null || !Number.isFinite(value)) return "–";
  return value.toLocaleString("en", { maximumSignificantDigits: Math.max(digits, `${Math.trunc(Math.abs(value))}`.length) });
}

export const milliseconds = (value) =>
  value == null ? "–" : value < 1000 ? `${number(value)} ms` : `${number(value / 1000)} s`;

export const dollars = (value) => (value == null ? "–" : `$${number(value)}`);

/** Unix seconds in the visitor's time zone. */
export const moment = (seconds) =>
  html`<time datetime=${new Date(seconds * 1000).toISOString()}>${new Date(seconds * 1000).toLocaleString()}</time>`;
