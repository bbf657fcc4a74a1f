// openai-node: Responses. The loop sends its whole history, as clients with `store: false` do.

import OpenAI from "openai";
import {
  firstThenAbort,
  KEY,
  MAX_TURNS,
  nextCode,
  PROMPTS,
  report,
  SCHEMA,
  TOOL_NAME,
  TOOL_TEXT,
  URL_,
} from "./program.mjs";

const client = new OpenAI({ baseURL: `${URL_}/v1`, apiKey: KEY, maxRetries: 0 });
const tool = { type: "function", name: TOOL_NAME, description: TOOL_TEXT, parameters: SCHEMA, strict: true };

async function* texts(stream) {
  for await (const event of stream) if (event.type === "response.output_text.delta") yield event.delta;
}

await report({
  async chat() {
    return { text: (await client.responses.create({ model: "auto", input: PROMPTS.chat })).output_text };
  },
  async stream() {
    const stream = await client.responses.create({ model: "auto", input: PROMPTS.stream, stream: true });
    return { pieces: await Array.fromAsync(texts(stream)) };
  },
  async tools() {
    const input = [{ role: "user", content: PROMPTS.tools }];
    for (let turn = 0; turn < MAX_TURNS; turn++) {
      const answer = await client.responses.create({ model: "auto", input, tools: [tool], store: false });
      const calls = answer.output.filter((item) => item.type === "function_call");
      if (!calls.length) return { text: answer.output_text };
      input.push(...answer.output);
      for (const call of calls) {
        const output = nextCode(JSON.parse(call.arguments));
        input.push({ type: "function_call_output", call_id: call.call_id, output });
      }
    }
    throw new Error("the loop does not end");
  },
  async cancel() {
    const controller = new AbortController();
    const stream = await client.responses.create(
      { model: "auto", input: PROMPTS.cancel, stream: true },
      { signal: controller.signal },
    );
    return firstThenAbort(controller, texts(stream));
  },
});
