/* gradio 6.31: whatever waits counts its seconds in every frame, unseen too, and the sign of the page's own loading goes on counting after
 * it is gone: 60 frames a second for as long as a page is open, 0.05 of a slow processor. Here it counts once a second. Gradio takes hold
 * of requestAnimationFrame while it is loaded, so this stands before it. Remove when a page at rest draws no frames without it
 * (tests/ui/test_idle.py). */
"use strict";

(() => {
  const counts = /performance\.now\(\)-[\w$]+\([\w$]+\)\)\/1e3/;
  const inNextFrame = window.requestAnimationFrame.bind(window);
  window.requestAnimationFrame = (draw) => (counts.test(String(draw)) ? setTimeout(draw, 1000) : inNextFrame(draw));
})();
