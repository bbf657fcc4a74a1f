// A recipe next to its members: tokens, cost, time, and why each answer ended.

import { html, nothing } from "../../vendor/lit-html.js";
import { dollars, milliseconds, number, table } from "../../parts.js";
import { stopText } from "../../recipes.js";

const FINISHES = {
  stop: "The answer is complete.",
  length: "Cut off at the token limit.",
  content_filter: "Filtered.",
  tool_calls: "It calls a tool.",
};
const STATES = { pending: "Waiting…", streaming: "Streaming…", stopped: "Stopped.", done: "The answer is complete." };

/** The comparison of the recipe's answer with its members' own answers in one turn. */
export function comparison({ recipe, answers }) {
  const sent = answers.filter(Boolean);
  const columns = [
    { title: "Answer of", cell: (answer) => html`<strong>${answer.model}</strong> ${answer.model === recipe ? returned(answer) : nothing}` },
    { title: "Input tokens", number: true, cell: ({ record }) => number(record?.input_tokens, 6) },
    { title: "Output tokens", number: true, cell: ({ record }) => number(record?.output_tokens, 6) },
    { title: "Cost", number: true, cell: ({ record }) => dollars(record?.cost) },
    { title: "First token", number: true, cell: ({ record, measured }) => milliseconds(record?.first_token_ms ?? measured.first) },
    { title: "Total", number: true, cell: ({ record, measured }) => milliseconds(record?.total_ms ?? measured.total) },
    { title: "Why it stopped", cell: ended },
  ];
  return html`<div class="comparison">
    ${table(`${recipe} and its members`, columns, sent)}
    <p class="faint">The recipe's row is the sum of its own calls. Each member was also called on its own, for the comparison.</p>
  </div>`;
}

const returned = ({ headers: found }) =>
  found["x-coe-expert"] ? html`<span class="faint">returned the answer of ${found["x-coe-expert"]}</span>` : nothing;

function ended({ state, error, finish, record }) {
  if (state === "failed") return html`<span class="bad">${error.message}</span>`;
  if (record?.recipe_stop) return stopText(record.recipe_stop);
  return state === "done" ? (FINISHES[finish] ?? STATES.done) : STATES[state];
}
