// Promotion and rollback: a dialog requests it, and the page polls until the gateway serves the version.

import { html, nothing } from "../../vendor/lit-html.js";
import { api } from "../../api.js";
import { KINDS, isServed, versionOf } from "./kinds.js";

const POLL_MS = 700;
const MAX_POLLS = 40;

/** `list` is the resource of all kinds; `ask` opens the dialog. */
export function openMove(list, draw) {
  const self = { ask, template, result, close };
  let wanted = null; // { kind, was, version, back }
  let error = null;
  let busy = false;
  let done = null; // the finished promotion or rollback: { kind, in_use, polls }
  let timer = 0;

  function ask(move) {
    [wanted, error, done] = [move, null, null];
    draw();
    requestAnimationFrame(() => {
      const dialog = document.getElementById("move");
      dialog?.querySelector("form").reset();
      dialog?.showModal();
    });
  }

  async function submit(event) {
    event.preventDefault();
    const dialog = event.target.closest("dialog");
    const why = new FormData(event.target).get("why").trim();
    if (!why || busy) return;
    busy = true;
    draw();
    try {
      const made = await api.post(`v1/artifacts/${wanted.kind}/${wanted.back ? "rollback" : "promote"}`, body(wanted, why));
      done = { ...made, polls: 0 };
      dialog.close();
      poll();
    } catch (problem) {
      error = problem;
    } finally {
      busy = false;
      draw();
    }
  }

  async function poll() {
    await list.load();
    draw();
    if (done && !served() && done.polls++ < MAX_POLLS) timer = setTimeout(poll, POLL_MS);
  }

  const entry = () => list.value?.data.find(({ kind }) => kind === done.kind);
  const served = () => entry() && entry().in_use === done.in_use && isServed(entry());

  function result() {
    if (!done) return nothing;
    const version = versionOf(done.kind, done.in_use);
    const title = KINDS[done.kind].title;
    const text = served()
      ? `${title} in use: ${version}. The gateway serves it.`
      : done.polls > MAX_POLLS
        ? `${title} in use: ${version}. This gateway has not loaded it yet; see its log.`
        : `${title} in use: ${version}. The gateway is loading it…`;
    return html`<p class="card done" role="status">${text}</p>`;
  }

  function template() {
    return html`<dialog id="move" aria-labelledby="move-title" @close=${() => draw()}>${wanted ? form() : nothing}</dialog>`;
  }

  function form() {
    const { kind, was, version, back } = wanted;
    const { title, effect: more } = KINDS[kind];
    return html`<form @submit=${submit}>
      <h2 id="move-title">${back ? `Roll back the ${title.toLowerCase()}?` : `Promote this ${title.toLowerCase()}?`}</h2>
      <dl class="pairs">
        <dt>Current</dt>
        <dd class="code">${versionOf(kind, was)}</dd>
        <dt>New</dt>
        <dd class="code">${versionOf(kind, version)}</dd>
      </dl>
      <p>Gateways load it within a second or two; running requests are not affected. ${more}</p>
      <label>Reason <input name="why" required maxlength="500" autocomplete="off" /></label>
      ${error ? html`<p class="bad" role="alert">${error.message}</p>` : nothing}
      <div class="row ends">
        <button type="button" class="quiet" @click=${(event) => event.target.closest("dialog").close()}>Cancel</button>
        <button ?disabled=${busy}>${back ? "Roll back" : "Promote"}</button>
      </div>
    </form>`;
  }

  function close() {
    clearTimeout(timer);
    done = null;
  }

  return self;
}

/** States the version in use that the visitor saw: where it has changed since, the gateway refuses. */
function body({ was, version, back }, why) {
  return { why, ...(was ? { expected_version: was } : {}), ...(back ? {} : { version }) };
}
