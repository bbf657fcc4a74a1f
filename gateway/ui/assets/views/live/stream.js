// The connection to the gateway's numbers: paused by hand or by a hidden tab, made again by itself when it is lost.

import { api } from "../../api.js";

const PATH = "v1/stats/stream";
const SILENT = 10_000; // milliseconds after which a connection that says nothing is given up
const FIRST_WAIT = 1000;
const LONGEST_WAIT = 15_000;

/** `heard(look)` is called with every look, `changed()` when `state` (connecting, live, paused, away or refused) did. */
export class Stream {
  state = "connecting";
  error = null; // why it is away or refused
  #heard;
  #changed;
  #paused = false;
  #running = null; // the AbortController of the connection there is
  #visibility = () => this.#follow();

  constructor({ heard, changed }) {
    this.#heard = heard;
    this.#changed = changed;
    document.addEventListener("visibilitychange", this.#visibility);
    this.#follow();
  }

  get paused() {
    return this.#paused;
  }

  pause(paused) {
    this.#paused = paused;
    this.#follow();
  }

  retry() {
    this.#stop();
    this.#follow();
  }

  close() {
    document.removeEventListener("visibilitychange", this.#visibility);
    this.#stop();
  }

  #follow() {
    if (this.#paused || document.hidden) {
      this.#stop();
      this.#be(this.#paused ? "paused" : "connecting");
    } else if (!this.#running) {
      this.#running = new AbortController();
      this.#be("connecting");
      this.#run(this.#running.signal);
    }
  }

  #stop() {
    this.#running?.abort();
    this.#running = null;
  }

  #be(state, error = null) {
    if (this.state === state && this.error === error) return;
    Object.assign(this, { state, error });
    this.#changed();
  }

  async #run(signal) {
    let wait = FIRST_WAIT;
    while (!signal.aborted) {
      let error = null;
      try {
        for await (const data of this.#listen(signal)) {
          wait = FIRST_WAIT;
          this.#be("live");
          this.#heard(JSON.parse(data));
        }
      } catch (caught) {
        error = caught;
      }
      if (signal.aborted) return;
      if (error?.status === 401 || error?.status === 403) return this.#be("refused", error);
      this.#be("away", error);
      await pause(wait, signal);
      wait = Math.min(2 * wait, LONGEST_WAIT);
    }
  }

  async *#listen(signal) {
    const silence = new AbortController();
    let timer = setTimeout(() => silence.abort(), SILENT);
    try {
      for await (const data of api.events(PATH, { signal: AbortSignal.any([signal, silence.signal]) })) {
        clearTimeout(timer);
        timer = setTimeout(() => silence.abort(), SILENT);
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
