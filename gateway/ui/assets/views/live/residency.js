// Devices that experts share: who is awake, waits and loads, and why.

import { html, nothing } from "../../vendor/lit-html.js";
import { api } from "../../api.js";
import { badge, bar, number, table } from "../../parts.js";

const INTERVAL_MS = 2000;
const TIERS = { awake: "good", asleep: "plain", stopped: "plain" };

/** The panel. Call `update` with every snapshot: where it has experts with a tier, the report is loaded at intervals. A
 * snapshot without any clears it: no devices are shared any more. */
export function openResidency(draw) {
  let devices = [];
  let loaded = null;
  let shared = false;
  let error = null;
  let due = 0;
  let loading = false;
  const load = async () => {
    loading = true;
    try {
      ({ devices } = await api.get("v1/residency"));
      loaded = new Date();
      error = null;
    } catch (caught) {
      error = caught;
    }
    loading = false;
    due = performance.now() + INTERVAL_MS;
    draw();
  };
  return {
    update(snapshot) {
      shared = snapshot.experts.some(({ tier }) => tier);
      if (shared && !loading && performance.now() >= due) load();
    },
    template() {
      if (!shared) return nothing;
      if (error) return html`<p class="card warning" role="status">The devices cannot be read: ${error.message}</p>`;
      return devices.map((found) => device(found, loaded));
    },
  };
}

const device = (found, loaded) => html`<section class="card" aria-label="Device ${found.device}">
  <h2>Device ${found.device} <small>at ${loaded.toLocaleTimeString()}</small></h2>
  <p class="share">${bar(found.occupied_gb / found.memory_gb)}<span class="number">${number(found.occupied_gb)} of ${number(found.memory_gb)} GB</span></p>
  ${found.host_memory_gb ? html`<p>${number(found.host_occupied_gb)} of ${number(found.host_memory_gb)} GB of RAM for experts asleep</p>` : nothing}
  ${table(`Servers on ${found.device}`, COLUMNS, found.servers)}
</section>`;

const COLUMNS = [
  { title: "Expert", cell: ({ experts }) => experts.join(", ") },
  { title: "Tier", cell: ({ tier }) => badge(tier, TIERS[tier] ?? "warn") },
  { title: "GB", number: true, cell: ({ memory_gb }) => number(memory_gb) },
  { title: "In flight", number: true, cell: ({ in_flight }) => number(in_flight) },
  { title: "Waiting", number: true, cell: ({ waiting }) => number(waiting) },
  { title: "Oldest wait", number: true, cell: ({ oldest_wait_s }) => seconds(oldest_wait_s) },
  { title: "Load took", number: true, cell: ({ load_s }) => seconds(load_s) },
  { title: "Loads", number: true, cell: ({ switches }) => number(switches) },
  { title: "Why", cell: ({ reason }) => reason },
];

const seconds = (value) => (value == null ? "–" : `${number(value)} s`);
