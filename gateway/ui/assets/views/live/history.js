// What the page has seen of one gateway: its looks, thinned with age, and a rate for every look of the last minutes.

import { failures } from "./sums.js";

const MEMORY = 300; // seconds
const DENSE = 65; // seconds within which every look is kept; of older ones about one in ten seconds
const GAP = 4; // seconds between two looks from which on nothing is said of what was in between

export class History {
  looks = [];
  rates = []; // { time, all, failed }, a second; nulls where nothing is known
  #gateway = "";

  /** Take up a look. Of another gateway, or of one that began anew, nothing is compared with what was before. */
  add(look) {
    const last = this.looks.at(-1);
    if (look.gateway.id !== this.#gateway || (last && look.requests.total < last.requests.total)) {
      this.#gateway = look.gateway.id;
      this.looks = [];
      this.#rate(look.time, null, null);
    } else if (last) {
      this.#since(last, look);
    }
    this.looks.push(look);
    this.#forget(look.time);
  }

  get latest() {
    return this.looks.at(-1);
  }

  /** The look that is `seconds` old or as near to it as there is one; undefined where there is only the latest. */
  back(seconds) {
    const due = this.latest.time - seconds - 0.5;
    return this.looks.slice(0, -1).find(({ time }) => time >= due);
  }

  #since(last, look) {
    const over = look.time - last.time;
    if (over > GAP) return this.#rate(look.time, null, null);
    if (over <= 0) return;
    const failed = failures(look.requests.outcomes) - failures(last.requests.outcomes);
    this.#rate(look.time, (look.requests.total - last.requests.total) / over, failed / over);
  }

  #rate(time, all, failed) {
    this.rates.push({ time, all, failed });
  }

  #forget(now) {
    this.rates = this.rates.filter(({ time }) => time > now - MEMORY);
    let kept = -Infinity;
    this.looks = this.looks.filter(({ time }, index) => {
      if (time < now - MEMORY - 10) return false;
      const keep = time > now - DENSE || time - kept >= 9.5 || index === this.looks.length - 1;
      if (keep) kept = time;
      return keep;
    });
  }
}
