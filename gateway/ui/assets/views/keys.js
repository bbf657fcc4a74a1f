// Keys: all API keys, issuing one, and revoking an issued one.

import { html, nothing } from "../vendor/lit-html.js";
import { api, resource } from "../api.js";
import { badge, copyable, moment, shown, table } from "../parts.js";
import { keyForm, specOf } from "./keys/form.js";

export const name = "keys";
export const title = "Keys";

// "#/keys" lists the keys, "#/keys?new" opens the form.
export function open({ draw, query }) {
  const list = resource(() => api.get("v1/keys"), draw);
  const state = { adding: query.has("new"), busy: false, error: null, made: null, revoking: null };

  /** Runs one change, shows its error, and loads the list again. */
  async function change(work) {
    Object.assign(state, { busy: true, error: null });
    draw();
    try {
      await work();
    } catch (error) {
      state.error = error;
    }
    state.busy = false;
    await list.load();
    draw();
  }
  const issue = (event) => {
    event.preventDefault();
    const spec = specOf(event.target);
    change(async () => {
      state.made = await api.post("v1/keys", spec);
      location.hash = "#/keys";
    });
  };
  const hide = () => {
    state.made = null;
    draw();
  };
  const ask = (key) => {
    Object.assign(state, { revoking: key, error: null });
    draw();
    requestAnimationFrame(() => document.getElementById("revoke")?.showModal());
  };
  const revoke = (event) => {
    event.preventDefault();
    const dialog = event.target.closest("dialog");
    change(async () => {
      await api.fetch(`v1/keys/${encodeURIComponent(state.revoking.name)}`, { method: "DELETE" });
      dialog.close();
    });
  };

  return {
    template: () => html`
      <div class="row keys-head">
        <h1>Keys</h1>
        ${state.adding ? nothing : html`<a class="button" href="#/keys?new">Issue a key</a>`}
      </div>
      ${state.made ? secret(state.made, hide) : nothing}
      ${state.adding ? keyForm(issue, state) : nothing}
      ${shown(list, ({ data }) => keys(data, ask), {
        isEmpty: ({ data }) => !data.length,
        empty: "No API keys are declared, so everyone who reaches this gateway may use it.",
      })}
      <dialog id="revoke" aria-labelledby="revoke-title">${state.revoking ? question(state, revoke) : nothing}</dialog>
    `,
    moved({ query }) {
      Object.assign(state, { adding: query.has("new"), error: null });
      if (state.adding) state.made = null;
      draw();
    },
  };
}

const secret = ({ secret, key }, hide) => html`<section class="card made" role="status">
  <h2>The key ${key.name} is in use</h2>
  <p>Pass it to its user now. It is shown only this once, and not stored.</p>
  ${copyable(secret)}
  <button class="quiet" @click=${hide}>Hide the key</button>
</section>`;

const question = ({ revoking: key, error, busy }, revoke) => html`<form @submit=${revoke}>
  <h2 id="revoke-title">Revoke ${key.name}?</h2>
  <p>All gateways refuse the key within about a second. It cannot be restored.</p>
  ${error ? html`<p class="bad" role="alert">${error.message}</p>` : nothing}
  <div class="row ends">
    <button type="button" class="quiet" @click=${(event) => event.target.closest("dialog").close()}>Cancel</button>
    <button class="danger" ?disabled=${busy}>Revoke</button>
  </div>
</form>`;

const keys = (data, ask) => html`<section class="card">
  ${table(
    "API keys",
    [
      { title: "Name", cell: ({ name }) => html`<strong>${name}</strong>` },
      { title: "State", cell: state },
      {
        title: "Change",
        cell: (key) =>
          key.declared
            ? nothing
            : html`<button class="danger" @click=${() => ask(key)}>Revoke<span class="unseen"> ${key.name}</span></button>`,
      },
      { title: "Tenant", cell: ({ tenant }) => tenant },
      { title: "Scopes", cell: ({ scopes }) => scopes.join(", ") || "none" },
      { title: "Restrictions", cell: restrictions },
      { title: "Issued", cell: origin },
    ],
    data,
  )}
</section>`;

function state({ declared, in_use: used, expires }) {
  if (!used) return badge(Date.parse(expires) <= Date.now() ? "expired" : "replaced by a declared key", "bad");
  return badge(declared ? "declared" : "issued", declared ? "plain" : "good");
}

function restrictions({ experts, only_local: local, limits, cache, expires }) {
  const facts = [
    experts ? `experts: ${experts.join(", ")}` : "",
    local ? "local experts only" : "",
    ...Object.entries(limits).map(([name, limit]) => (limit === null ? "" : `${limit} ${name.replaceAll("_", " ")}`)),
    cache ? "" : "no answer cache",
  ].filter(Boolean);
  const until = expires ? html`<li>expires ${moment(Date.parse(expires) / 1000)}</li>` : nothing;
  return facts.length || expires ? html`<ul class="bare">${facts.map((fact) => html`<li>${fact}</li>`)}${until}</ul>` : "none";
}

function origin({ declared, created, created_by: by }) {
  if (declared) return html`<span class="faint">experts.yaml or the administrator's file</span>`;
  return html`${moment(created)} by ${by}`;
}
