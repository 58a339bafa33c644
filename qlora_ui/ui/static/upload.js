/* Uploads show how far they are and can be stopped: Gradio's button says nothing until the last byte has come, minutes for a large file.
 *
 * `fetch` does not tell how much it has sent, so the upload goes by an XMLHttpRequest and its answer is handed on.
 */
"use strict";

(() => {
  const STOPPED = '<span class="q-toast-title">The upload was stopped</span><p>Nothing of it is kept.</p>';
  const plainFetch = window.fetch;

  window.fetch = function (input, init) {
    const files = init?.body instanceof FormData ? [...init.body.values()].filter((part) => part instanceof File) : [];
    const place = document.getElementById("q-uploading");
    const path = typeof input === "string" || input instanceof URL ? new URL(input, location.href).pathname : "";
    if (!files.length || !place || !path.endsWith("/gradio_api/upload")) return plainFetch.apply(this, arguments);
    return send(String(input), init, files, place);
  };

  function send(url, init, files, place) {
    return new Promise((answered, failed) => {
      const request = new XMLHttpRequest();
      const shown = show(place, files, () => request.abort());
      const over = (then) => () => { shown.remove(); then(); };
      request.upload.addEventListener("progress", (event) => shown.tell(event.loaded, event.total));
      request.addEventListener("load", over(() => answered(new Response(request.response, { status: request.status }))));
      request.addEventListener("error", over(() => failed(new TypeError("The app does not answer"))));
      request.addEventListener("abort", over(() => answered(new Response(STOPPED, { status: 499 }))));
      request.open("POST", url);
      new Headers(init.headers).forEach((value, name) => request.setRequestHeader(name, value));
      request.send(init.body);
    });
  }

  function show(place, files, stop) {
    const box = place.appendChild(document.createElement("div"));
    box.className = "q-getting";
    const words = box.appendChild(document.createElement("p"));
    words.className = "q-small q-num";
    const bar = box.appendChild(document.createElement("div"));
    bar.className = "q-progress";
    bar.setAttribute("role", "progressbar");
    bar.ariaLabel = "Upload";
    const fill = bar.appendChild(document.createElement("i"));
    const button = box.appendChild(document.createElement("button"));
    button.type = "button"; button.className = "q-button q-button-quiet"; button.textContent = "Cancel"; button.ariaLabel = "Cancel the upload";
    button.addEventListener("click", stop);
    const name = files.length > 1 ? `${files.length} files` : files[0].name;
    const began = performance.now();
    const tell = (sent, all) => {
      const share = all ? sent / all : 0;
      const left = (performance.now() - began) / 1000 * (1 - share) / (share || 1);
      words.textContent = `Uploading ${name} · ${Math.round(100 * share)} %${share > 0.02 && left > 1 ? ` · about ${inWords(left)} left` : ""}`;
      fill.style.width = `${100 * share}%`;
      bar.ariaValueNow = String(Math.round(100 * share));
    };
    tell(0, 0);
    return { tell, remove: () => box.remove() };
  }

  function inWords(seconds) {
    return seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`;
  }
})();
