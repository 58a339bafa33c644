/* The page's clock: raises "tick" every `everyMs` while the page is in sight, every `unseenMs` while it is not, and at once when it is
 * looked at again. (see ui/pulse.py) */
"use strict";

function mountPulse(element, trigger, everyMs, unseenMs) {
  let last = performance.now();

  function beat() {
    last = performance.now();
    trigger("tick");
  }

  function lookedAt() {
    if (!element.isConnected) document.removeEventListener("visibilitychange", lookedAt);
    else if (!document.hidden) beat();
  }

  document.addEventListener("visibilitychange", lookedAt);
  const clock = setInterval(() => {
    if (!element.isConnected) clearInterval(clock);
    else if (!document.hidden || performance.now() - last > unseenMs - everyMs / 2) beat();
  }, everyMs);
}
