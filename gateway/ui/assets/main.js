// The frame around the views: selects the view by the address after #, requests the API key, and schedules rendering.

import { html, nothing, render } from "./vendor/lit-html.js";
import { api } from "./api.js";
import * as experts from "./views/experts.js";
import * as keys from "./views/keys.js";
import * as live from "./views/live.js";
import * as log from "./views/log.js";
import * as map from "./views/map.js";
import * as playground from "./views/playground.js";
import * as router from "./views/router.js";

const VIEWS = [playground, live, log, map, router, experts, keys];
const root = document.getElementById("app");

let open = null; // { name, view }: the current view and its state
let keyRequired = false;
let due = false;

function draw() {
  if (due) return;
  due = true;
  queueMicrotask(() => {
    due = false;
    render(frame(), root);
  });
}

function frame() {
  return html`
    <a class="skip" href="#main" @click=${skip}>Skip to the content</a>
    <header>
      <a class="brand" href="#/${VIEWS[0].name}"><img src="icon.svg" alt="" width="24" height="24" />CoE</a>
      <nav aria-label="Views">
        ${VIEWS.map(
          ({ name, title }) =>
            html`<a href="#/${name}" aria-current=${open?.name === name ? "page" : nothing}>${title}</a>`,
        )}
      </nav>
      ${api.key ? html`<button class="quiet" title="Deletes the conversations in this browser, too" @click=${() => api.forget()}>Forget key</button>` : nothing}
    </header>
    <main id="main" tabindex="-1" class=${keyRequired || !open ? nothing : open.name}>${keyRequired ? keyForm() : open?.view.template()}</main>
  `;
}

function keyForm() {
  const use = (event) => {
    event.preventDefault();
    api.use(new FormData(event.target).get("key").trim());
  };
  return html`
    <section class="card narrow">
      <h1>API key required</h1>
      <p>A key with the scope <code>admin</code> shows everything. It is stored in this tab only, until you close it.</p>
      <form @submit=${use}>
        <label>API key <input name="key" type="password" autocomplete="off" required autofocus /></label>
        <button>Save key</button>
      </form>
      ${api.key ? html`<p role="alert" class="bad">The key was not accepted.</p>` : nothing}
    </section>
  `;
}

function skip(event) {
  event.preventDefault();
  document.getElementById("main").focus();
}

// "#/log/req_1?expert=code" is the view "log" with path ["req_1"] and query expert=code.
function address() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/").map(decodeURIComponent);
  return { name, path: rest, query: new URLSearchParams(query) };
}

function go() {
  const { name, path, query } = address();
  const view = VIEWS.find((one) => one.name === name) ?? VIEWS[0];
  const same = open?.name === view.name;
  if (same && open.view.moved) {
    open.view.moved({ path, query });
  } else {
    open?.view.close?.();
    document.title = `${view.title} · CoE`;
    open = { name: view.name, view: view.open({ draw, path, query }) };
    if (!keyRequired && document.activeElement !== document.body) document.getElementById("main")?.focus();
  }
  draw();
  queueMicrotask(showLink); // after rendering
}

// On a phone the links do not fit: scrolls the link of the current view to the middle, but not the page.
function showLink() {
  const link = document.querySelector("nav [aria-current]");
  if (!link) return;
  const nav = link.parentElement;
  nav.scrollLeft = link.offsetLeft - nav.offsetLeft - (nav.clientWidth - link.offsetWidth) / 2;
}

api.addEventListener("refused", () => {
  keyRequired = true;
  draw();
});
api.addEventListener("key", () => {
  keyRequired = false;
  open?.view.close?.();
  open = null;
  go();
});
addEventListener("hashchange", go);
root.replaceChildren();
go();
