// Router: versions of all artifacts with their reports, promotion and rollback, and the traffic report.

import { html, nothing } from "../vendor/lit-html.js";
import { api, resource } from "../api.js";
import { shown } from "../parts.js";
import { spot } from "../heat.js";
import { card, versions } from "./router/versions.js";
import { openMove } from "./router/promotion.js";
import { KINDS } from "./router/kinds.js";
import { report } from "./router/report.js";
import { traffic } from "./router/traffic.js";

export const name = "router";
export const title = "Router";

export function open({ draw, path, query }) {
  const list = resource(() => api.get("v1/artifacts"), draw);
  const found = resource(() => api.get("v1/report"), draw);
  const move = openMove(list, draw);
  const reports = new Map();
  const at = spot(draw);
  let address = addressOf(path, query);

  /** The report of a version, loaded once, since published versions do not change. */
  function reportOf(kind, version) {
    const key = `${kind}/${version}`;
    if (!reports.has(key)) reports.set(key, resource(() => api.get(`v1/artifacts/${key}`), draw));
    return reports.get(key);
  }

  function chosen({ data }) {
    const kind = data.find((one) => one.kind === address.kind) ?? data[0];
    const version = address.version ?? kind.in_use ?? kind.versions[0]?.version;
    return { kind, version, other: address.other };
  }

  return {
    template: () => html`
      <div class="row">
        <h1>Router</h1>
        <button class="quiet" @click=${() => refresh(list, found)}>Refresh</button>
      </div>
      ${shown(list, (found) => whole(found, chosen(found), { reportOf, move, at }))}
      <section class="card">
        <h2>Traffic report</h2>
        ${shown(found, traffic)}
      </section>
      ${move.template()}
    `,
    moved: ({ path: to, query }) => {
      address = addressOf(to, query);
      draw();
    },
    close: () => move.close(),
  };
}

const addressOf = ([kind = "router", version], query) => ({ kind, version, other: query.get("with") });

function refresh(...resources) {
  for (const one of resources) one.load();
}

function whole(found, { kind, version, other }, { reportOf, move, at }) {
  return html`
    ${found.reload_error ? html`<p class="card bad" role="alert">The artifacts in use could not be loaded; the last good state stays in service: ${found.reload_error}</p>` : nothing}
    ${move.result()}
    <div class="cards">${found.data.map((one) => card(one, move))}</div>
    <nav class="kinds" aria-label="Kinds of artifacts">
      ${found.data.map(
        (one) => html`<a href="#/router/${one.kind}" aria-current=${one === kind ? "true" : nothing}>${KINDS[one.kind].title}</a>`,
      )}
    </nav>
    ${versions(kind, version, move)}
    ${version
      ? shown(reportOf(kind.kind, version), (whole) =>
          report(kind, whole, other ? reportOf(kind.kind, other) : null, at),
        )
      : nothing}
  `;
}
