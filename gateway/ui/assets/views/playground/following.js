// Keeps the page scrolled to its end while answers stream, unless the visitor has scrolled away from it.

const NEAR_PX = 60;
const AFTER_MS = 1500; // after the last answer its end state, record and last blocks still appear

/** `busy` reports whether answers stream. `follow` scrolls to the end from now on; `close` ends everything. */
export function followEnd(busy) {
  const page = document.documentElement;
  let atEnd = true;
  let last = page.scrollTop;
  let until = 0;
  const scrolled = () => {
    if (page.scrollHeight - page.clientHeight - page.scrollTop < NEAR_PX) atEnd = true;
    else if (page.scrollTop < last) atEnd = false;
    last = page.scrollTop;
  };
  const grown = () => {
    if (busy()) until = performance.now() + AFTER_MS;
    if (atEnd && performance.now() < until) page.scrollTop = page.scrollHeight;
  };
  const observer = new ResizeObserver(grown);
  observer.observe(document.getElementById("app"));
  addEventListener("scroll", scrolled, { passive: true });
  return {
    follow() {
      atEnd = true;
      last = page.scrollTop; // the event of an earlier scroll may still arrive
      until = performance.now() + AFTER_MS;
      setTimeout(grown); // after rendering
    },
    close() {
      observer.disconnect();
      removeEventListener("scroll", scrolled);
    },
  };
}
