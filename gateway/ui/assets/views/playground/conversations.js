// The list of kept conversations: open, rename, delete, export.

import { html, nothing } from "../../vendor/lit-html.js";
import { moment } from "../../parts.js";
import { conversation, remove, removeAll, reopen, save } from "./conversation.js";
import { MAX_CONVERSATIONS, kept, load, problem, rename } from "./store.js";

const dialog = () => document.querySelector("dialog#conversations");
const items = () => [...document.querySelectorAll(".kept > li")];
const closing = () => dialog().querySelector("button");
let listed = false; // whether the dialog is open
let renamed = ""; // the id of the conversation that is being renamed

export function openConversations() {
  save();
  [listed, renamed] = [true, ""];
  conversation.draw();
  queueMicrotask(() => queueMicrotask(() => dialog().showModal())); // after rendering
}

/** The dialog; `opened` is called when another conversation is open. */
export function conversationsDialog(opened) {
  const all = listed ? kept() : [];
  const closed = () => ((listed = false), conversation.draw());
  const removeEvery = () => {
    if (!confirm(`Delete all ${all.length} conversations?`)) return;
    removeAll();
    opened();
    focusSoon(closing);
  };
  return html`<dialog id="conversations" aria-labelledby="conversations-title" @close=${closed}>
    <div class="row">
      <h2 id="conversations-title">Conversations</h2>
      <button class="quiet" @click=${() => dialog().close()}>Close</button>
    </div>
    <p class="faint">
      They are kept in this browser, for everyone who uses it, and sent nowhere. At most ${MAX_CONVERSATIONS} conversations and 4 million characters are kept; the oldest
      go first. “Forget key” deletes them all.
    </p>
    ${problem.text ? html`<p class="warn" role="status">${problem.text}</p>` : nothing}
    ${all.length ? html`<ul class="kept">${all.map((one) => entry(one, opened))}</ul>` : html`<p class="note">No conversations yet.</p>`}
    ${all.length
      ? html`<div class="row">
          <button class="quiet" @click=${() => download(all.map(({ id }) => id))}>Export all as JSON</button>
          <button class="danger" @click=${removeEvery}>Delete all</button>
        </div>`
      : nothing}
  </dialog>`;
}

function entry({ id, title, turns, changed }, opened) {
  const choose = () => {
    if (!reopen(id)) return conversation.draw(), focusSoon(closing);
    opened();
    dialog().close();
  };
  const dropOne = (event) => {
    const place = items().indexOf(event.target.closest("li"));
    remove(id);
    opened();
    focusSoon(() => items()[Math.min(place, items().length - 1)]?.querySelector("button.danger") ?? closing());
  };
  const edit = () => {
    renamed = id;
    conversation.draw();
    focusSoon(() => document.querySelector(".kept input"));
  };
  return html`<li>
    ${renamed === id ? renaming(id, title) : html`<button class="quiet title" aria-current=${id === conversation.id ? "true" : nothing} @click=${choose}>${title}</button>`}
    <span class="faint">${turns} ${turns === 1 ? "turn" : "turns"}, ${moment(changed / 1000)}</span>
    <span class="row">
      <button class="quiet small" aria-label="Rename ${title}" @click=${edit}>Rename</button>
      <button class="quiet small" aria-label="Export ${title}" @click=${() => download([id])}>Export</button>
      <button class="danger small" aria-label="Delete ${title}" @click=${dropOne}>Delete</button>
    </span>
  </li>`;
}

function renaming(id, title) {
  const use = (event) => {
    event.preventDefault();
    const place = items().indexOf(event.target.closest("li"));
    rename(id, new FormData(event.target).get("title"));
    renamed = "";
    conversation.draw();
    focusSoon(() => items()[place].querySelector("button"));
  };
  return html`<form class="row" @submit=${use}>
    <input name="title" aria-label="New title" maxlength="80" .defaultValue=${title} required />
    <button class="small">Save</button>
  </form>`;
}

/** Moves the focus to an element that exists after rendering. */
function focusSoon(element) {
  setTimeout(() => element()?.focus());
}

/** Downloads conversations as one JSON file. */
function download(ids) {
  const entries = kept().filter(({ id }) => ids.includes(id));
  const conversations = entries.map(({ size: _, turns: __, ...one }) => ({ ...one, ...load(one.id) }));
  const file = new Blob([JSON.stringify({ conversations }, null, 2)], { type: "application/json" });
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: "coe-conversations.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
