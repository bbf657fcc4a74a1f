// The form that issues an API key: its fields, and the body of the request that they make.

import { html, nothing } from "../../vendor/lit-html.js";

const SCOPES = { chat: true, route: true, feedback: true, admin: false };
const LIMITS = {
  requests_per_minute: ["Requests per minute", "1"],
  tokens_per_minute: ["Tokens per minute", "1"],
  concurrent_requests: ["Concurrent requests", "1"],
  dollars_per_day: ["Dollars per day", "any"],
  dollars_per_month: ["Dollars per month", "any"],
};
const NAME = "[A-Za-z0-9][A-Za-z0-9._\\-]{0,63}";

export function keyForm(issue, { busy, error }) {
  const text = (name, label, more = {}) => html`<label>${label}
    <input name=${name} autocomplete="off" spellcheck="false" ?required=${more.required} pattern=${more.pattern ?? nothing} placeholder=${more.placeholder ?? nothing} title=${more.title ?? nothing} />
  </label>`;
  return html`<section class="card" aria-labelledby="new-key">
    <div class="row">
      <h2 id="new-key">Issue a key</h2>
      <a href="#/keys">Close</a>
    </div>
    <p class="faint">The key is in use at once, without an entry in experts.yaml. It can have no more rights than your own key.</p>
    <form class="fields" @submit=${issue} autocomplete="off">
      ${text("name", "Name", { required: true, pattern: NAME, title: "Letters, digits, dots, dashes and underscores" })}
      ${text("tenant", "Tenant", { pattern: NAME, placeholder: "the name" })}
      ${text("experts", "Experts", { placeholder: "all; or coder, qwen-*" })}
      <label>Expires <input name="expires" type="date" /></label>
      ${Object.entries(LIMITS).map(
        ([name, [label, step]]) => html`<label>${label}<input name=${name} type="number" min=${step === "1" ? 1 : 0.01} step=${step} placeholder="no limit" /></label>`,
      )}
      <fieldset>
        <legend>Scopes</legend>
        ${Object.entries(SCOPES).map(
          ([name, on]) => html`<label><input type="checkbox" name="scopes" value=${name} ?checked=${on} />${name}</label>`,
        )}
      </fieldset>
      <fieldset>
        <legend>Requests</legend>
        <label><input type="checkbox" name="only_local" />only local experts</label>
        <label><input type="checkbox" name="cache" checked />use the answer cache</label>
      </fieldset>
      <div class="row">
        <button ?disabled=${busy}>Issue key</button>
        ${error ? html`<p class="bad" role="alert">${error.message}</p>` : nothing}
      </div>
    </form>
  </section>`;
}

/** The body of POST /v1/keys; what is left empty has its default. */
export function specOf(form) {
  const data = new FormData(form);
  const spec = { name: data.get("name"), scopes: data.getAll("scopes"), only_local: data.has("only_local"), cache: data.has("cache") };
  for (const name of ["tenant", "expires"]) if (data.get(name)) spec[name] = data.get(name);
  const experts = data.get("experts").split(/[\s,]+/).filter(Boolean);
  if (experts.length) spec.experts = experts;
  const limits = Object.keys(LIMITS).filter((name) => data.get(name));
  if (limits.length) spec.limits = Object.fromEntries(limits.map((name) => [name, Number(data.get(name))]));
  return spec;
}
