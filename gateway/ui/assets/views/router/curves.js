// Reliability diagram and risk–coverage curve of one or two routers.

import { html, nothing } from "../../vendor/lit-html.js";
import { chart } from "../../charts.js";
import { percent } from "../../parts.js";

const cache = new WeakMap(); // chart configurations by their metrics, since a new one redraws the chart

/** Both curves of `metrics` and, unless null, of `other`. */
export function curves(metrics, other, version, beside) {
  if (!metrics.reliability || !metrics.risk_coverage) return nothing;
  const sides = [{ metrics, version }, ...(other?.reliability ? [{ metrics: other, version: beside }] : [])];
  const { reliability, risk } = configured(metrics, sides);
  return html`<div class="columns">
    <section>
      <h3>Reliability</h3>
      <p class="faint">Accuracy of the prompts at each confidence. Points on the line are perfectly calibrated; larger points are more prompts.</p>
      ${chart({
        label: "Accuracy by confidence",
        config: reliability,
        columns: ["Version", "Confidence", "Accuracy", "Prompts"],
        rows: sides.flatMap((side) =>
          side.metrics.reliability.map(({ confidence, accuracy, count }) => [side.version, confidence.toFixed(2), percent(accuracy), count]),
        ),
      })}
    </section>
    <section>
      <h3>Risk–coverage curve</h3>
      <p class="faint">
        Error rate where only the most confident prompts are answered. Below a confidence of ${metrics.confidence_threshold?.toFixed(2)} (vertical line), training
        suggests the general expert; <code>policy.confidence_threshold</code> overrides it.
      </p>
      ${chart({
        label: "Error rate by coverage",
        config: risk,
        columns: ["Version", "Coverage", "Error rate", "From confidence"],
        rows: sides.flatMap((side) =>
          side.metrics.risk_coverage.map((one) => [side.version, percent(one.coverage), percent(one.risk), one.confidence?.toFixed(2) ?? "–"]),
        ),
      })}
    </section>
  </div>`;
}

function configured(metrics, sides) {
  const known = cache.get(metrics);
  if (known && known.beside === sides[1]?.metrics) return known;
  const made = { beside: sides[1]?.metrics, reliability: reliable(sides), risk: risky(sides) };
  cache.set(metrics, made);
  return made;
}

const legend = { position: "bottom", labels: { usePointStyle: true, boxWidth: 10, boxHeight: 8 } };
const shares = { min: 0, max: 1, ticks: { callback: (value) => `${Math.round(100 * value)} %` } };

function reliable(sides) {
  const most = Math.max(...sides.flatMap(({ metrics }) => metrics.reliability.map(({ count }) => count)));
  return (palette) => ({
    type: "scatter",
    data: {
      datasets: [
        ...sides.map(({ metrics, version }, index) => ({
          label: version,
          data: metrics.reliability.map(({ confidence, accuracy, count }) => ({ x: confidence, y: accuracy, count })),
          pointRadius: metrics.reliability.map(({ count }) => 2.5 + 8 * Math.sqrt(count / most)),
          ...line(palette.series[index]),
        })),
        { label: "perfectly calibrated", data: [{ x: 0, y: 0 }, { x: 1, y: 1 }], ...dashed(palette.faint) },
      ],
    },
    options: {
      scales: {
        x: { ...shares, title: { text: "Confidence" } },
        y: { ...shares, title: { text: "Accuracy" } },
      },
      plugins: {
        legend,
        tooltip: { callbacks: { label: ({ raw }) => `accuracy ${percent(raw.y)} at confidence ${percent(raw.x)}${raw.count ? `, ${raw.count} prompts` : ""}` } },
      },
    },
  });
}

function risky(sides) {
  const [{ metrics }] = sides;
  const top = Math.max(...sides.flatMap((side) => side.metrics.risk_coverage.map(({ risk }) => risk)));
  const threshold = metrics.rejected == null ? [] : [{ x: 1 - metrics.rejected, y: 0 }, { x: 1 - metrics.rejected, y: top }];
  return (palette) => ({
    type: "scatter",
    data: {
      datasets: [
        ...sides.map((side, index) => ({
          label: side.version,
          data: side.metrics.risk_coverage.map(({ coverage, risk, confidence }) => ({ x: coverage, y: risk, confidence })),
          pointRadius: 2.5,
          ...line(palette.series[index]),
        })),
        { label: "confidence threshold", data: threshold, ...dashed(palette.faint) },
      ],
    },
    options: {
      scales: {
        x: { ...shares, title: { text: "Coverage" } },
        y: { ...shares, max: undefined, title: { text: "Error rate" } },
      },
      plugins: {
        legend,
        tooltip: {
          callbacks: {
            label: ({ raw }) => `error rate ${percent(raw.y)} at coverage ${percent(raw.x)}${raw.confidence ? `, from confidence ${raw.confidence.toFixed(2)}` : ""}`,
          },
        },
      },
    },
  });
}

const line = (shade) => ({ clip: 12, showLine: true, borderColor: shade, backgroundColor: shade, borderWidth: 2 });
const dashed = (shade) => ({ ...line(shade), borderDash: [4, 4], pointRadius: 0, pointStyle: "line" });
