// Requests to the gateway: JSON, streams of server-sent events, and the visitor's API key.

const KEY = "coe-key";
const BASE = new URL("../", import.meta.url);

export class ApiError extends Error {
  constructor(status, { message, code = "", param = null }, headers = new Headers()) {
    super(message);
    Object.assign(this, { status, code, param, headers });
  }
}

class Api extends EventTarget {
  get key() {
    return sessionStorage.getItem(KEY) ?? "";
  }

  use(key) {
    sessionStorage.setItem(KEY, key);
    this.dispatchEvent(new Event("key"));
  }

  forget() {
    sessionStorage.removeItem(KEY);
    this.dispatchEvent(new Event("key"));
  }

  /** The response of a successful request. Throws an ApiError, or an AbortError of `fetch`. */
  async fetch(path, { body, headers = {}, ...options } = {}) {
    const { key } = this;
    const sent = { ...headers };
    if (key) sent.authorization = `Bearer ${key}`;
    if (body !== undefined) {
      sent["content-type"] = "application/json";
      options = { method: "POST", body: JSON.stringify(body), ...options };
    }
    let response;
    try {
      response = await fetch(new URL(path, BASE), { ...options, headers: sent });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, { message: "The gateway does not answer." });
    }
    if (response.ok) return response;
    if (response.status === 401 && key === this.key) this.dispatchEvent(new Event("refused")); // not for a key that was replaced meanwhile
    const failure = await response.json().catch(() => ({}));
    throw new ApiError(response.status, failure.error ?? { message: `The gateway answered ${response.status}.` }, response.headers);
  }

  async get(path, options) {
    return (await this.fetch(path, options)).json();
  }

  async post(path, body = {}, options) {
    return (await this.fetch(path, { body, ...options })).json();
  }
}

/** The data of each server-sent event of a response, as text. */
export async function* dataOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const events = (rest + value).split(/\r?\n\r?\n/);
      rest = events.pop();
      for (const event of events) {
        const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * A value that `fetchValue` loads: `state` is loading, ready or failed, with `value` or `error`. `load` loads it again and
 * keeps the old value until then; a result that a later load has overtaken is dropped.
 */
export function resource(fetchValue, draw) {
  let latest = 0;
  const found = {
    state: "loading",
    value: undefined,
    error: undefined,
    async load() {
      const own = ++latest;
      try {
        const value = await fetchValue();
        if (own === latest) Object.assign(found, { state: "ready", value, error: undefined });
      } catch (error) {
        if (own === latest) Object.assign(found, { state: "failed", error });
      }
      if (own === latest) draw();
    },
  };
  found.load();
  return found;
}

export const api = new Api();
