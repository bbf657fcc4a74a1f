// What the programs share: the environment, the tool, and the report of each feature as a line of JSON. As program.py.

export const URL_ = process.env.COE_URL;
export const KEY = process.env.COE_KEY;
export const PROMPTS = JSON.parse(process.env.COE_PROMPTS);
export const MAX_TURNS = 8; // a loop that goes on beyond its three steps ends here
export const TOOL_NAME = "next_code";
export const TOOL_TEXT = "Return the code of a step.";
export const SCHEMA = {
  type: "object",
  properties: { step: { type: "integer" } },
  required: ["step"],
  additionalProperties: false,
};

export function nextCode({ step }) {
  return `code-${step * 37}`;
}

// Run the features and print what each returned, or its error; then stay until standard input ends.
export async function report(features) {
  for (const [feature, run] of Object.entries(features)) {
    let found;
    try {
      found = await run();
    } catch (error) {
      console.error(error);
      found = { error: `${error?.name}: ${error?.message}` };
    }
    process.stdout.write(JSON.stringify({ feature, ...found }) + "\n");
  }
  process.stdin.resume();
  process.stdin.on("end", () => process.exit(0));
}

// Read the first text of a stream, then abort it. Resolves once the client has noticed.
export async function firstThenAbort(controller, texts) {
  const pieces = [];
  try {
    for await (const text of texts) {
      if (!text) continue;
      pieces.push(text);
      controller.abort();
      break;
    }
  } catch (error) {
    if (!pieces.length) throw error;
  }
  return { pieces };
}
