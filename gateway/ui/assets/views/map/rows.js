// What requests use: titles and number formats of the budget's rows.

import { dollars, milliseconds, number, percent } from "../../parts.js";

export const ROWS = {
  memory_gb: { title: "Memory", text: (value) => `${number(value)} GB`, use: "memory_gb" },
  mean_active_b: { title: "Active parameters", text: (value) => `${number(value)} B`, use: "active_b" },
  mean_cost: { title: "Cost", text: dollars, use: "cost" },
  mean_latency_ms: { title: "Latency", text: milliseconds, use: "latency_ms" },
};

/** A quality, from 0 to 1. */
export const points = (value, digits = 2) => (value == null ? "–" : value.toFixed(digits));

/** A share of the requests, however small. */
export const share = (value) => (value > 0 && value < 0.0005 ? "< 0.1 %" : percent(value));
