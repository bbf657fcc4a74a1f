// Writes the entry for experts.yaml from the fields of the form. Pure.

const PLAIN = /^[A-Za-z][A-Za-z0-9._/-]*$/;
const WORDS = new Set(["true", "false", "null", "yes", "no", "on", "off", "y", "n"]);

/** A value as YAML: plain where that is safe, else quoted as in JSON. */
export const scalar = (text) => (PLAIN.test(text) && !WORDS.has(text.toLowerCase()) ? text : JSON.stringify(text));

const LOCAL = ["transformers", "vllm"];
export const isLocal = (runtime) => LOCAL.includes(runtime);

/** The entry of `fields` (texts by name; empty ones are left out, so that their defaults hold). */
export function entry(fields) {
  const { name, model, runtime, base_url: url, api_key: key } = fields;
  const lines = [`name: ${scalar(name || "new-expert")}`, `model: ${scalar(model || "MODEL")}`, `runtime: ${runtime}`];
  if (!isLocal(runtime) && url) lines.push(`base_url: ${url}`);
  if (!isLocal(runtime) && key) lines.push(`api_key: \${${key}}`);
  for (const field of ["context_length", "active_parameters_b", "memory_gb"]) {
    if (fields[field] && (field !== "memory_gb" || isLocal(runtime))) lines.push(`${field}: ${fields[field]}`);
  }
  if (fields.capabilities?.length) lines.push(`capabilities: [${fields.capabilities.join(", ")}]`);
  const prices = ["input", "output"].filter((side) => fields[side]).map((side) => `${side}: ${fields[side]}`);
  if (prices.length) lines.push(`prices: {${prices.join(", ")}}`);
  return `  - ${lines.join("\n    ")}\n`;
}
