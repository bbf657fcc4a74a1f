// @anthropic-ai/sdk: Messages. The loop is the SDK's own tool runner.

import Anthropic from "@anthropic-ai/sdk";
import { firstThenAbort, KEY, MAX_TURNS, nextCode, PROMPTS, report, SCHEMA, TOOL_NAME, TOOL_TEXT, URL_ } from "./program.mjs";

const client = new Anthropic({ baseURL: URL_, apiKey: KEY, maxRetries: 0 });
const request = (feature) => ({
  model: "auto",
  max_tokens: 400,
  messages: [{ role: "user", content: PROMPTS[feature] }],
});

async function* texts(stream) {
  for await (const event of stream) if (event.type === "content_block_delta") yield event.delta.text;
}

await report({
  async chat() {
    return { text: (await client.messages.create(request("chat"))).content[0].text };
  },
  async stream() {
    return { pieces: await Array.fromAsync(texts(client.messages.stream(request("stream")))) };
  },
  async tools() {
    const tool = { name: TOOL_NAME, description: TOOL_TEXT, input_schema: SCHEMA, run: nextCode, parse: (input) => input };
    const runner = client.beta.messages.toolRunner({ ...request("tools"), tools: [tool], max_iterations: MAX_TURNS });
    return { text: (await runner.runUntilDone()).content[0].text };
  },
  async cancel() {
    const controller = new AbortController();
    const stream = await client.messages.create(
      { ...request("cancel"), stream: true },
      { signal: controller.signal },
    );
    return firstThenAbort(controller, texts(stream));
  },
});
