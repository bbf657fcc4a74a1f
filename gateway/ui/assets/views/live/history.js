// The history of one gateway: its snapshots, thinned with age, and a rate for every snapshot of the last minutes.

import { failures } from "./counters.js";

const HISTORY_SECONDS = 300;
const DENSE_SECONDS = 65; // within them every snapshot is kept; later about one in ten seconds
const MAX_GAP_SECONDS = 4; // between two snapshots beyond which the rate is unknown

export class History {
  snapshots = [];
  rates = []; // { time, all, failed } per second; null where unknown

  /** Add a snapshot. After a restart, or for another gateway, the history begins again. */
  add(snapshot) {
    const last = this.snapshots.at(-1);
    const continues = last?.workers.some(({ started }) => snapshot.workers.some((worker) => worker.started === started));
    if (!continues || snapshot.requests.total < last.requests.total) {
      this.snapshots = [];
      this.#rate(snapshot.time, null, null);
    } else {
      this.#since(last, snapshot);
    }
    this.snapshots.push(snapshot);
    this.#prune(snapshot.time);
  }

  get latest() {
    return this.snapshots.at(-1);
  }

  /** The snapshot closest to `seconds` ago; undefined where there is only the latest. */
  back(seconds) {
    const due = this.latest.time - seconds - 0.5;
    return this.snapshots.slice(0, -1).find(({ time }) => time >= due);
  }

  #since(last, snapshot) {
    const over = snapshot.time - last.time;
    if (over > MAX_GAP_SECONDS) return this.#rate(snapshot.time, null, null);
    if (over <= 0) return;
    const failed = failures(snapshot.requests.outcomes) - failures(last.requests.outcomes);
    this.#rate(snapshot.time, (snapshot.requests.total - last.requests.total) / over, failed / over);
  }

  #rate(time, all, failed) {
    this.rates.push({ time, all, failed });
  }

  #prune(now) {
    this.rates = this.rates.filter(({ time }) => time > now - HISTORY_SECONDS);
    let last = -Infinity;
    this.snapshots = this.snapshots.filter(({ time }, index) => {
      if (time < now - HISTORY_SECONDS - 10) return false;
      const keep = time > now - DENSE_SECONDS || time - last >= 9.5 || index === this.snapshots.length - 1;
      if (keep) last = time;
      return keep;
    });
  }
}
