// Snapshots of the gateway every second: pauses on request and in a hidden tab, and retries after a failure.

import { readSnapshot } from "./metrics.js";

const INTERVAL_MS = 1000;
const TIMEOUT_MS = 10_000;
const MAX_RETRY_MS = 15_000;

/** Calls `onSnapshot` with every snapshot, and `onChange` when `state` (connecting, live, paused, unavailable or refused) changes. */
export class Polling {
  state = "connecting";
  error = null; // why it is unavailable or refused
  paused = false;
  #onSnapshot;
  #onChange;
  #running = null; // the AbortController of the loop
  #visibility = () => this.#update();

  constructor({ onSnapshot, onChange }) {
    this.#onSnapshot = onSnapshot;
    this.#onChange = onChange;
    document.addEventListener("visibilitychange", this.#visibility);
    this.#update();
  }

  pause(paused) {
    this.paused = paused;
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
    if (this.paused || document.hidden) {
      this.#stop();
      this.#setState(this.paused ? "paused" : "connecting");
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
    let wait = INTERVAL_MS;
    while (!signal.aborted) {
      try {
        const snapshot = await readSnapshot({ signal: AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT_MS)]) });
        if (signal.aborted) return;
        wait = INTERVAL_MS;
        this.#setState("live");
        this.#onSnapshot(snapshot);
      } catch (error) {
        if (signal.aborted) return;
        if (error.status === 401 || error.status === 403) return this.#setState("refused", error);
        this.#setState("unavailable", error);
        wait = Math.min(2 * wait, MAX_RETRY_MS);
      }
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }
}
