// The rows of a budget: their titles, units and number formats.

import { dollars, milliseconds, number, percent } from "../../parts.js";

export const ROWS = {
  memory_gb: { title: "Memory", unit: "of all hosted experts", text: (value) => `${number(value)} GB`, use: "memory_gb" },
  mean_active_b: {
    title: "Active parameters",
    unit: "per request, mean",
    text: (value) => `${number(value)} B`,
    use: "active_b",
  },
  mean_cost: { title: "Cost", unit: "per thousand requests, mean", text: dollars, use: "cost" },
  mean_latency_ms: { title: "Latency", unit: "per request, mean", text: milliseconds, use: "latency_ms" },
  max_share: { title: "Largest share", unit: "of requests to one expert", text: percent },
};

/** A quality, from 0 to 1. */
export const points = (value, digits = 2) => (value == null ? "–" : value.toFixed(digits));

/** A share of the requests, however small. */
export const share = (value) => (value > 0 && value < 0.0005 ? "< 0.1 %" : percent(value));

/** A difference of qualities, with its sign. */
export const difference = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;
