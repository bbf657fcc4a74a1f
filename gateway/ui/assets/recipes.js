// Recipes: their members in words, and the calls in a record: who gave which answer, and why the recipe stopped.

import { html, nothing } from "./vendor/lit-html.js";
import { milliseconds, number, percent } from "./parts.js";

/** The members of each step in words: "small_a + small_b, then large". */
export const stepsText = ({ steps }) => steps.map((members) => members.join(" + ")).join(", then ");

/** The members of a recipe, each once, in the order of their calls. */
export const membersOf = ({ steps }) => [...new Set(steps.flat())];

const STOPS = {
  accepted: "An answer was accepted before the last step.",
  last_step: "All steps were called.",
  stream_hold: "The stream was held as long as allowed; the answer is unverified.",
  deadline: "The deadline was near; the answer is unverified.",
  unavailable: "No member of the last step answered; the answer is unverified.",
  failed: "No member answered, or not the one that writes.",
  cancelled: "The request ended first.",
};

/** Why a recipe stopped, as a sentence. */
export const stopText = (stop) => STOPS[stop] ?? stop;

/** The calls of the recipe in a record, as a table. */
export function recipeCalls({ recipe, recipe_stop: stop, steps }) {
  const classes = [...new Set(steps.map((call) => call.answer_class).filter((one) => one != null))];
  const letter = (call) => (call.answer_class == null ? "–" : String.fromCharCode(65 + classes.indexOf(call.answer_class)));
  return html`<p>${recipe}: ${stopText(stop)}</p>
    <div class="scroll" tabindex="0" role="region" aria-label="Calls of the recipe">
      <table class="considered">
        <caption class="unseen">Calls of the recipe, in their order</caption>
        <thead>
          <tr>
            <th scope="col">Member</th>
            <th scope="col" class="number">Step</th>
            <th scope="col">Outcome</th>
            <th scope="col">Answer</th>
            <th scope="col" class="number">Confidence</th>
            <th scope="col" class="number">Tokens</th>
            <th scope="col" class="number">Time</th>
          </tr>
        </thead>
        <tbody>
          ${steps.map(
            (call) => html`<tr class=${call.accepted ? "chosen" : nothing}>
              <th scope="row">${call.expert}${call.accepted ? html`<span class="unseen"> (returned)</span>` : nothing}</th>
              <td class="number">${call.step + 1}</td>
              <td>${call.outcome}${call.drafts ? ` (read ${call.drafts} earlier)` : nothing}</td>
              <td>${letter(call)}</td>
              <td class="number">${percent(call.confidence)}</td>
              <td class="number">${number(call.input_tokens, 6)} + ${number(call.output_tokens, 6)}</td>
              <td class="number">${milliseconds(call.ms)}</td>
            </tr>`,
          )}
        </tbody>
      </table>
    </div>`;
}
