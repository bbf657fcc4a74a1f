// The steps of adding an expert, each checked by the gateway.

import { html, nothing } from "../../vendor/lit-html.js";
import { copyable } from "../../parts.js";

const DONE = { true: ["✓", "done", "good"], false: ["○", "to do", "faint"], null: ["?", "not known", "faint"] };

/** The steps of `name`; `progress` is the response of the gateway, undefined before it came. */
export function steps(name, progress, local) {
  const rows = progress ? [declared, served, reachable, scored, planned, receiving].map((one) => one(name, progress, local)) : [];
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
    ? `experts.yaml is invalid: ${problems[0].where}${problems[0].line ? `:${problems[0].line}` : ""}: ${problems[0].message}`
    : done
      ? "Declared in experts.yaml."
      : "Paste the entry under experts in experts.yaml, where the gateway reads it.",
  commands: ["coe check"],
});

function served(name, { served: done, declared, reload_error: error }, local) {
  const waiting = local ? "coe up starts local experts; restart it." : "The gateway loads it within a second or two.";
  return {
    done,
    title: "Served",
    note: done ? "The gateway serves it; requests can name it as their model." : declared && error ? error : waiting,
    commands: local ? ["coe up"] : [],
  };
}

const reachable = (name, { reachable: done, served }) => ({
  done: served ? done : false,
  title: "Reachable",
  note: done
    ? "Its server is healthy."
    : done === false
      ? "Its server failed several requests. Check that it runs and that base_url is right."
      : "Send one request.",
  commands: [`coe chat --model ${name} "Hello"`],
});

const scored = (name, { scored: done }) => ({
  done,
  title: "Scored",
  note: done
    ? "The plan in use includes its scores."
    : "Score it on the shipped probes and on yours; existing scores are reused. The step is done once a plan includes the scores.",
  commands: [`coe score --out quality --expert ${name}`],
});

const planned = (name, { assigned_categories: assigned, planned: plan }) => ({
  done: assigned.length > 0,
  title: "In the plan",
  note: assigned.length
    ? `Assigned to ${assigned.join(", ")}.`
    : plan
      ? "The plan assigns it no category. Review with --dry-run, then promote."
      : "Review a plan with --dry-run, then promote it; or name the expert under assignment.",
  commands: ["coe plan quality --dry-run", "coe plan quality", ...(plan ? ["coe promote assignment VERSION"] : [])],
});

const receiving = (name, { requests }) => ({
  done: requests > 0,
  title: "Receives traffic",
  note: requests ? `${requests.toLocaleString("en")} requests since start.` : "Requests are counted here and in the live view.",
  commands: [],
});
