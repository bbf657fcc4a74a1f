// The stream of snapshots: pauses on request and in a hidden tab, and reconnects after a failure.

import { api } from "../../api.js";

const PATH = "v1/stats/stream";
const SILENCE_MS = 10_000; // after which a connection without events is closed
const FIRST_RETRY_MS = 1000;
const MAX_RETRY_MS = 15_000;

/** Calls `onSnapshot` with every snapshot, and `onChange` when `state` (connecting, live, paused, unavailable or refused) changes. */
export class Stream {
  state = "connecting";
  error = null; // why it is unavailable or refused
  #onSnapshot;
  #onChange;
  #paused = false;
  #running = null; // the AbortController of the open connection
  #visibility = () => this.#update();

  constructor({ onSnapshot, onChange }) {
    this.#onSnapshot = onSnapshot;
    this.#onChange = onChange;
    document.addEventListener("visibilitychange", this.#visibility);
    this.#update();
  }

  get paused() {
    return this.#paused;
  }

  pause(paused) {
    this.#paused = paused;
    this.#update();
  }

  retry() {
    this.#stop();
    this.#update();
  }

  close() {
    document.removeEventListener("visibilitychange", this.#visibility);
    this.#stop();
  }

  #update() {
    if (this.#paused || document.hidden) {
      this.#stop();
      this.#setState(this.#paused ? "paused" : "connecting");
    } else if (!this.#running) {
      this.#running = new AbortController();
      this.#setState("connecting");
      this.#run(this.#running.signal);
    }
  }

  #stop() {
    this.#running?.abort();
    this.#running = null;
  }

  #setState(state, error = null) {
    if (this.state === state && this.error === error) return;
    Object.assign(this, { state, error });
    this.#onChange();
  }

  async #run(signal) {
    let wait = FIRST_RETRY_MS;
    while (!signal.aborted) {
      let error = null;
      try {
        for await (const data of this.#listen(signal)) {
          wait = FIRST_RETRY_MS;
          this.#setState("live");
          this.#onSnapshot(JSON.parse(data));
        }
      } catch (caught) {
        error = caught;
      }
      if (signal.aborted) return;
      if (error?.status === 401 || error?.status === 403) return this.#setState("refused", error);
      this.#setState("unavailable", error);
      await pause(wait, signal);
      wait = Math.min(2 * wait, MAX_RETRY_MS);
    }
  }

  async *#listen(signal) {
    const silence = new AbortController();
    let timer = setTimeout(() => silence.abort(), SILENCE_MS);
    try {
      for await (const data of api.events(PATH, { signal: AbortSignal.any([signal, silence.signal]) })) {
        clearTimeout(timer);
        timer = setTimeout(() => silence.abort(), SILENCE_MS);
        yield data;
      }
    } finally {
      clearTimeout(timer);
    }
  }
}

const pause = (milliseconds, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
