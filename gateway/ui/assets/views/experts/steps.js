// What is left to do for an expert, each ticked off from what the gateway can see.

import { html, nothing } from "../../vendor/lit-html.js";
import { copyable } from "../../parts.js";

const DONE = { true: ["✓", "done", "good"], false: ["○", "to do", "faint"], null: ["?", "not known", "faint"] };

/** The steps of `name`; `told` is what the gateway says of it, undefined before it did. */
export function steps(name, told, local) {
  const rows = told ? [declared, served, reachable, scored, planned, receiving].map((one) => one(name, told, local)) : [];
  return html`<ol class="todo">
    ${rows.map(({ done, title, note, commands = [] }) => {
      const [mark, word, kind] = DONE[done];
      return html`<li class=${done ? "done" : ""}>
        <span class="mark ${kind}" aria-hidden="true">${mark}</span>
        <div>
          <strong>${title}</strong><span class="unseen">: ${word}</span>
          ${note ? html`<p class="faint">${note}</p>` : nothing}
          ${done ? nothing : commands.map(copyable)}
        </div>
      </li>`;
    })}
  </ol>`;
}

const declared = (name, { declared: done, problems }) => ({
  done,
  title: "Declared",
  note: problems.length
    ? `experts.yaml is not right: ${problems[0].where}${problems[0].line ? `:${problems[0].line}` : ""}: ${problems[0].message}`
    : done
      ? "It stands in experts.yaml."
      : "Paste the entry under experts in experts.yaml, where the gateway reads it.",
  commands: ["coe check"],
});

function served(name, { served: done, declared, reload_error: error }, local) {
  const waiting = local ? "Local experts are started by coe up; stop it and start it again." : "The gateway takes it over within a second or two.";
  return {
    done,
    title: "Served",
    note: done ? "The gateway serves it: requests may name it as their model." : declared && error ? error : waiting,
    commands: local ? ["coe up"] : [],
  };
}

const reachable = (name, { reachable: done, served }) => ({
  done: served ? done : false,
  title: "Reachable",
  note: done
    ? "Its server answers."
    : done === false
      ? "Its server did not answer when it was last looked for. Is it running, and is its address right?"
      : "Ask it once.",
  commands: [`coe chat --model ${name} "Hello"`],
});

const scored = (name, { scored: done }) => ({
  done,
  title: "Scored",
  note: done
    ? "The plan in use was made of its scores."
    : "Measure it on your probes; experts that were measured before are not asked again. The gateway sees it once a plan was made of it.",
  commands: [`coe score probes.jsonl --out quality --expert ${name}`],
});

const planned = (name, { assigned_categories: assigned, planned: plan }) => ({
  done: assigned.length > 0,
  title: "In the plan",
  note: assigned.length
    ? `It answers ${assigned.join(", ")}.`
    : plan
      ? "The plan gives it nothing: what it would win is shown without changing anything, then put into use. An older plan comes back by its version."
      : "See what it would win, then put that into use; or name it under assignment.",
  commands: ["coe plan quality --dry-run", "coe plan quality", ...(plan ? ["coe promote assignment VERSION"] : [])],
});

const receiving = (name, { requests }) => ({
  done: requests > 0,
  title: "Receives traffic",
  note: requests ? `${requests.toLocaleString("en")} requests since the start.` : "It shows here, and in the live view.",
  commands: [],
});
