// Charts in the page's colours, each with its numbers in a table for screen readers.

import { html, nothing } from "./vendor/lit-html.js";

const { Chart } = globalThis;
const SERIES = Array.from({ length: 8 }, (_, index) => `series-${index + 1}`);
const NAMES = ["ink", "faint", "line", "paper", "good", "warn", "bad"];

// Registered as colours, their computed values are plain colours and not light-dark(…), which a canvas may not support.
for (const name of [...NAMES, ...SERIES]) {
  CSS.registerProperty({ name: `--${name}`, syntax: "<color>", inherits: true, initialValue: "gray" });
}

/** The current colours of the page: ink, faint, line, paper, good, warn, bad, and `series` in order. */
export function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  return { ...Object.fromEntries(NAMES.map((name) => [name, of(name)])), series: SERIES.map(of) };
}

/** The colour of the series with this index; colours repeat after eight. */
export const colour = (index, palette = colours()) => palette.series[index % SERIES.length];

/**
 * A chart: `config(palette)` returns Chart.js's { type, data, options }, `label` is its accessible name, and `columns`
 * ([title, ...]) with `rows` ([[cell, ...], ...]) hold its numbers. `height` is a CSS class: low, middle or high.
 */
export function chart({ label, config, columns, rows, height = "middle" }) {
  return html`<figure class="chart">
    <coe-chart class=${height} .config=${config} .label=${label}></coe-chart>
    ${columns
      ? html`<details>
          <summary>Numbers<span class="unseen"> of ${label}</span></summary>
          <div class="scroll" tabindex="0" role="region" aria-label=${label}>
            <table>
              <caption class="unseen">${label}</caption>
              <thead><tr>${columns.map((title) => html`<th scope="col">${title}</th>`)}</tr></thead>
              <tbody>${rows.map((row) => html`<tr>${row.map((cell) => html`<td>${cell}</td>`)}</tr>`)}</tbody>
            </table>
          </div>
        </details>`
      : nothing}
  </figure>`;
}

class ChartElement extends HTMLElement {
  #chart;
  #config;
  #dark = matchMedia("(prefers-color-scheme: dark)");
  #redraw = () => this.#draw(true);

  set config(config) {
    this.#config = config;
    this.#draw(false);
  }

  set label(label) {
    this.setAttribute("role", "img");
    this.setAttribute("aria-label", label);
  }

  connectedCallback() {
    this.#dark.addEventListener("change", this.#redraw);
    this.#draw(true);
  }

  disconnectedCallback() {
    this.#dark.removeEventListener("change", this.#redraw);
    this.#chart?.destroy();
    this.#chart = undefined;
  }

  #draw(anew) {
    if (!this.isConnected || !this.#config || !Chart) return;
    const palette = colours();
    const { type, data, options = {} } = this.#config(palette);
    if (this.#chart && !anew && this.#chart.config.type === type) {
      this.#chart.data = data;
      this.#chart.options = withDefaults(options, palette);
      this.#chart.update("none");
      return;
    }
    this.#chart?.destroy();
    const canvas = document.createElement("canvas");
    this.replaceChildren(canvas);
    this.#chart = new Chart(canvas, { type, data, options: withDefaults(options, palette) });
  }
}

/** Options of all charts: no animation, responsive size, and the colours of the page. */
function withDefaults(options, { ink, faint, line }) {
  const scales = Object.entries(options.scales ?? {}).map(([name, scale]) => [
    name,
    {
      ...scale,
      grid: { color: line, ...scale.grid },
      ticks: { color: faint, ...scale.ticks },
      title: { color: faint, display: Boolean(scale.title?.text), ...scale.title },
    },
  ]);
  const legend = options.plugins?.legend ?? {};
  return {
    animation: false,
    responsive: true,
    maintainAspectRatio: false,
    color: ink,
    ...options,
    scales: Object.fromEntries(scales),
    plugins: {
      ...options.plugins,
      legend: { ...legend, labels: { color: ink, boxWidth: 12, boxHeight: 12, ...legend.labels } },
    },
  };
}

customElements.define("coe-chart", ChartElement);
