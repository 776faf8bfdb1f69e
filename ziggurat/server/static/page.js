// Starts the chat and the map; remembers the theme.
import { Chat } from "./chat.js";
import { MemoryMap } from "./map.js";

const THEMES = ["auto", "light", "dark"];
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const button = document.getElementById("theme");

function applyTheme() {
  const choice = localStorage.getItem("theme") ?? "auto";
  document.documentElement.dataset.theme = choice === "auto" ? (dark.matches ? "dark" : "light") : choice;
  button.textContent = choice[0].toUpperCase() + choice.slice(1);
  button.setAttribute("aria-label", `Colour theme: ${choice}. Press for the next one.`);
}

button.addEventListener("click", () => {
  const now = localStorage.getItem("theme") ?? "auto";
  localStorage.setItem("theme", THEMES[(THEMES.indexOf(now) + 1) % THEMES.length]);
  applyTheme();
});
dark.addEventListener("change", applyTheme);
applyTheme();

for (const tab of document.querySelectorAll("[data-show]")) {
  tab.addEventListener("click", () => {
    document.body.dataset.view = tab.dataset.show;
    for (const other of document.querySelectorAll("[data-show]")) other.setAttribute("aria-pressed", String(other === tab));
  });
}

new Chat();
const map = new MemoryMap();

// One question at a time, a second apart; none while nobody looks.
async function poll() {
  if (!document.hidden) await map.refresh();
  window.setTimeout(poll, 1000);
}
poll();
