// Log: the routing records, newest first, filtered by the address; each record has its own page.

import { html, nothing } from "../vendor/lit-html.js";
import { api, resource } from "../api.js";
import { dollars, milliseconds, number, percent, shown } from "../parts.js";
import { outcome, unanswered } from "../explained.js";
import { openRecord } from "./log/record.js";

export const name = "log";
export const title = "Log";

const PAGE = 50;
const MAX_REQUESTS = 50; // of one search, for rare values in a log without indexes
const FIELDS = ["category", "expert", "reason", "outcome", "session", "tenant", "id"];
const SPANS = { "15m": 900, "1h": 3600, "1d": 86400, "7d": 604800 };
const SPAN_NAMES = { "15m": "Last 15 minutes", "1h": "Last hour", "1d": "Last day", "7d": "Last 7 days" };

export function open({ draw, path, query }) {
  let at = null;
  at = place({ path, query });
  function place(address) {
    return address.path.length ? openRecord(address.path.join("/"), draw) : openList(address.query, draw, at?.choices);
  }
  return {
    template: () => at.template(),
    moved(address) {
      at.close?.();
      at = place(address);
    },
    close: () => at.close?.(),
  };
}

function openList(query, draw, known) {
  let latest = 0; // number of the latest search; an earlier one stops
  const progress = (found) => {
    records.value = { ...found, searching: true };
    draw();
  };
  const ask = () => {
    const own = ++latest;
    return search(parametersOf(query), progress, () => own !== latest);
  };
  const records = resource(ask, draw);
  const list = {
    choices: known,
    close: () => (latest += 1),
    template() {
      list.choices = records.value?.choices ?? list.choices;
      return html`
        <div class="row">
          <h1>Log</h1>
          <button class="quiet" @click=${() => records.load()}>Refresh</button>
        </div>
        ${filters(query, list.choices)}
        ${shown(records, (found) => page(found, query), {
          isEmpty: ({ data, cursor, searching }) => !data.length && !cursor && !searching,
          empty: nothingFound(query),
        })}
      `;
    },
  };
  return list;
}

/**
 * A full page, or all there is. A request searches a limited part of the log, so requests are repeated until the page is
 * full or `over()`; `progress` is called with the results so far.
 */
async function search(parameters, progress, over) {
  let found = await api.get(`v1/records?${parameters}`);
  for (let requests = 1; requests < MAX_REQUESTS && found.cursor && found.data.length < PAGE && !over(); requests += 1) {
    progress(found);
    parameters.set("before", found.cursor);
    parameters.set("limit", PAGE - found.data.length);
    const more = await api.get(`v1/records?${parameters}`);
    found = { ...more, data: [...found.data, ...more.data], damaged: found.damaged + more.damaged };
  }
  return found;
}

/** The query of the endpoint for the query of the address. */
function parametersOf(query) {
  const parameters = new URLSearchParams();
  for (const field of [...FIELDS, "before"]) if (query.get(field)) parameters.set(field, query.get(field));
  const span = SPANS[query.get("within")];
  if (span) parameters.set("since", Date.now() / 1000 - span);
  for (const end of ["since", "until"]) {
    const seconds = Date.parse(query.get(end) ?? "") / 1000;
    if (seconds > 0) parameters.set(end, seconds);
  }
  return parameters;
}

function filters(query, choices = {}) {
  const change = (event) => {
    const form = new FormData(event.currentTarget);
    const next = new URLSearchParams([...form].filter(([, value]) => value.trim()).map(([key, value]) => [key, value.trim()]));
    if (next.get("within") !== "between") ["since", "until"].forEach((end) => next.delete(end));
    location.hash = `#/log${next.size ? `?${next}` : ""}`;
  };
  const filtered = [...FIELDS, "within", "since", "until"].some((field) => query.get(field));
  const between = query.get("within") === "between";
  return html`<form class="fields filters" role="search" aria-label="Filter the log" @change=${change} @submit=${stay}>
    ${choice("Category", "category", query, choices.category)} ${choice("Expert", "expert", query, choices.expert)}
    ${choice("Reason", "reason", query, choices.reason)} ${choice("Outcome", "outcome", query, choices.outcome)}
    <label>Time
      <select name="within">
        <option value="">All time</option>
        ${Object.entries(SPAN_NAMES).map(([span, text]) => html`<option value=${span} .selected=${query.get("within") === span}>${text}</option>`)}
        <option value="between" .selected=${between}>From … until …</option>
      </select>
    </label>
    ${between ? html`${when("From", "since", query)} ${when("Until", "until", query)}` : nothing}
    ${text("Session", "session", query)} ${text("Tenant", "tenant", query)} ${text("Request id", "id", query, "req_…")}
    ${filtered ? html`<a class="clear" href="#/log">Clear</a>` : nothing}
  </form>`;
}

const stay = (event) => event.preventDefault(); // Enter changes the field, which filters already

/** A select of known values, and of the value in the address where it is another. */
function choice(label, field, query, values = []) {
  const chosen = query.get(field) ?? "";
  const offered = !chosen || values.includes(chosen) ? values : [...values, chosen];
  return html`<label>${label}
    <select name=${field}>
      <option value="">Any</option>
      ${offered.map((value) => html`<option value=${value} .selected=${value === chosen}>${value}</option>`)}
    </select>
  </label>`;
}

const text = (label, field, query, placeholder = "") =>
  html`<label>${label}<input name=${field} .value=${query.get(field) ?? ""} placeholder=${placeholder} maxlength="128" autocomplete="off" spellcheck="false" /></label>`;

const when = (label, field, query) =>
  html`<label>${label}<input type="datetime-local" name=${field} .value=${query.get(field) ?? ""} /></label>`;

function page({ data, cursor, damaged, searching }, query) {
  return html`
    <p class="faint" role="status">${searching ? "Searching older records…" : summary(data, cursor)}${damaged ? ` ${damaged} damaged entries are skipped.` : ""}</p>
    ${data.length ? rows(data) : nothing}
    <nav class="pages" aria-label="Pages of the log">
      ${query.get("before") ? html`<a href=${address(query, "")}>Newest</a>` : html`<span></span>`}
      ${cursor && !searching ? html`<a href=${address(query, cursor)}>${data.length ? "Older" : "Search older"}</a>` : nothing}
    </nav>
  `;
}

function summary(data, cursor) {
  if (!data.length) return "No matches in the scanned part of the log.";
  const many = data.length === 1 ? "1 record" : `${data.length} records`;
  return `${many}, from ${clock(data.at(-1).time)} to ${clock(data[0].time)}${cursor ? "" : "; end of log"}.`;
}

const clock = (seconds) => new Date(seconds * 1000).toLocaleString();

/** The time of day, with the date unless it is today. */
function shortTime(seconds) {
  const then = new Date(seconds * 1000);
  const time = then.toLocaleTimeString();
  const date = then.toLocaleDateString([], { month: "short", day: "numeric" });
  const text = then.toDateString() === new Date().toDateString() ? time : `${date}, ${time}`;
  return html`<time datetime=${then.toISOString()} title=${then.toLocaleString()}>${text}</time>`;
}

function address(query, before) {
  const next = new URLSearchParams(query);
  next.delete("before");
  if (before) next.set("before", before);
  return `#/log${next.size ? `?${next}` : ""}`;
}

function rows(records) {
  return html`<div class="scroll card flush" tabindex="0" role="region" aria-label="Records">
    <table class="records">
      <caption class="unseen">Records, the newest first</caption>
      <thead>
        <tr>
          <th scope="col">Time</th>
          <th scope="col">Category</th>
          <th scope="col" class="number wide">Confidence</th>
          <th scope="col">Expert</th>
          <th scope="col" class="wide">Reason</th>
          <th scope="col">Outcome</th>
          <th scope="col" class="number wide">Tokens in</th>
          <th scope="col" class="number wide">out</th>
          <th scope="col" class="number wide">Cost</th>
          <th scope="col" class="number wide">First token</th>
          <th scope="col" class="number">Total</th>
        </tr>
      </thead>
      <tbody>
        ${records.map(
          (one) => html`<tr @click=${(event) => follow(event)}>
            <th scope="row"><a href="#/log/${encodeURIComponent(one.request_id)}">${shortTime(one.time)}</a></th>
            <td>${one.category || "–"}</td>
            <td class="number wide">${one.category ? percent(one.confidence) : "–"}</td>
            <td>${one.expert || "–"}</td>
            <td class="wide">${one.reason || "–"} ${unanswered(one)}</td>
            <td>${outcome(one.outcome)}</td>
            <td class="number wide">${number(one.input_tokens, 6)}</td>
            <td class="number wide">${number(one.output_tokens, 6)}</td>
            <td class="number wide">${dollars(one.cost)}</td>
            <td class="number wide">${milliseconds(one.first_token_ms)}</td>
            <td class="number">${milliseconds(one.total_ms)}</td>
          </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

/** A click in a row follows its link, unless text is being selected. */
function follow(event) {
  if (event.target.closest("a") || getSelection().toString()) return;
  event.currentTarget.querySelector("a").click();
}

function nothingFound(query) {
  if ([...query.keys()].length) return html`<p>No matching records.</p><p><a href="#/log">Show all</a></p>`;
  return html`<p>No requests yet.</p>
    <p>Send one from the <a href="#/playground">playground</a>, or with any OpenAI client. Its record appears shortly after the response.</p>`;
}
