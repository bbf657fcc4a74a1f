// AI SDK: generateText and streamText. COE_PROVIDER names the provider's package.

import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { firstThenAbort, KEY, MAX_TURNS, nextCode, PROMPTS, report, TOOL_TEXT, URL_ } from "./program.mjs";

const MODELS = {
  async "openai-compatible"() {
    const { createOpenAICompatible } = await import("@ai-sdk/openai-compatible");
    return createOpenAICompatible({ name: "coe", baseURL: `${URL_}/v1`, apiKey: KEY })("auto");
  },
  async openai() {
    const { createOpenAI } = await import("@ai-sdk/openai");
    return createOpenAI({ baseURL: `${URL_}/v1`, apiKey: KEY })("auto"); // its default API is Responses
  },
  async anthropic() {
    const { createAnthropic } = await import("@ai-sdk/anthropic");
    return createAnthropic({ baseURL: `${URL_}/v1`, apiKey: KEY })("auto");
  },
};
const model = await MODELS[process.env.COE_PROVIDER]();
const call = (feature) => ({ model, prompt: PROMPTS[feature], maxRetries: 0 });
const throwing = ({ error }) => {
  throw error;
};

await report({
  async chat() {
    return { text: (await generateText(call("chat"))).text };
  },
  async stream() {
    return { pieces: await Array.fromAsync(streamText({ ...call("stream"), onError: throwing }).textStream) };
  },
  async tools() {
    const next_code = tool({
      description: TOOL_TEXT,
      inputSchema: z.object({ step: z.number().int() }),
      execute: async (given) => nextCode(given),
    });
    const answer = await generateText({ ...call("tools"), tools: { next_code }, stopWhen: stepCountIs(MAX_TURNS) });
    return { text: answer.text };
  },
  async cancel() {
    const controller = new AbortController();
    const { textStream } = streamText({ ...call("cancel"), abortSignal: controller.signal });
    return firstThenAbort(controller, textStream);
  },
});
