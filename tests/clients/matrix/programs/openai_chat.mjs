// openai-node: Chat Completions. The loop is the SDK's own tool runner.

import OpenAI from "openai";
import { firstThenAbort, KEY, nextCode, PROMPTS, report, SCHEMA, TOOL_NAME, TOOL_TEXT, URL_ } from "./program.mjs";

const client = new OpenAI({ baseURL: `${URL_}/v1`, apiKey: KEY, maxRetries: 0 });
const messages = (feature) => [{ role: "user", content: PROMPTS[feature] }];

await report({
  async chat() {
    const answer = await client.chat.completions.create({ model: "auto", messages: messages("chat") });
    return { text: answer.choices[0].message.content };
  },
  async stream() {
    const pieces = [];
    const stream = await client.chat.completions.create({ model: "auto", messages: messages("stream"), stream: true });
    for await (const chunk of stream) if (chunk.choices[0]?.delta.content) pieces.push(chunk.choices[0].delta.content);
    return { pieces };
  },
  async tools() {
    const tool = { name: TOOL_NAME, description: TOOL_TEXT, parameters: SCHEMA, parse: JSON.parse, function: nextCode };
    const runner = client.chat.completions.runTools({
      model: "auto",
      messages: messages("tools"),
      tools: [{ type: "function", function: tool }],
    });
    return { text: await runner.finalContent() };
  },
  async cancel() {
    const controller = new AbortController();
    const stream = await client.chat.completions.create(
      { model: "auto", messages: messages("cancel"), stream: true },
      { signal: controller.signal },
    );
    async function* texts() {
      for await (const chunk of stream) yield chunk.choices[0]?.delta.content;
    }
    return firstThenAbort(controller, texts());
  },
});
