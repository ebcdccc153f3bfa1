// Keeps a part of a page fresh while what it shows is under way. Without this script the page
// is as good as when it was loaded, and a reload renews it.
"use strict";

const SLOWEST_MS = 15000;

async function freshen(root) {
  const response = await fetch(root.dataset.liveUrl, { credentials: "same-origin" });
  if (!response.ok || response.redirected) throw new Error(`status ${response.status}`);
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const part of page.querySelectorAll("[data-part]")) {
    const old = root.querySelector(`[data-part="${part.dataset.part}"]`);
    if (!old || old.innerHTML === part.innerHTML) continue;
    const log = old.querySelector(".nf-log");
    const wasAtEnd = log && log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    const position = log ? log.scrollTop : 0;
    old.innerHTML = part.innerHTML;
    const fresh = old.querySelector(".nf-log");
    if (fresh) fresh.scrollTop = wasAtEnd ? fresh.scrollHeight : position;
  }
  return page.querySelector("[data-live-active]")?.dataset.liveActive === "true";
}

async function watch(root) {
  const state = document.querySelector("[data-live-state]");
  const usual = Number(root.dataset.liveEveryMs || 1000);
  let pause = usual;
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, pause));
    if (document.hidden) continue;
    try {
      const isActive = await freshen(root);
      pause = usual;
      if (state) state.textContent = isActive ? "Live" : "";
      if (!isActive) return;
    } catch {
      pause = Math.min(pause * 2, SLOWEST_MS);
      if (state) state.textContent = "Connection lost, trying again";
    }
  }
}

document.addEventListener("DOMContentLoaded", () => {
  for (const log of document.querySelectorAll(".nf-log")) log.scrollTop = log.scrollHeight;
  for (const root of document.querySelectorAll("[data-live-url]")) {
    if (root.dataset.liveActive === "true") watch(root);
  }
});
