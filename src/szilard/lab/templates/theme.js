"use strict";
// The theme is the reader's own unless the button says otherwise; the choice is kept where it can be.
const root = document.documentElement;
const systemDark = matchMedia("(prefers-color-scheme: dark)");
let chosen = null;
try { chosen = localStorage.getItem("szilard-theme"); } catch { /* pages opened from disk may have none */ }
function applyTheme() {
  root.dataset.theme = chosen || (systemDark.matches ? "dark" : "light");
  const button = document.querySelector("button.theme");
  if (button) button.textContent = root.dataset.theme === "dark" ? "Light" : "Dark";
  document.dispatchEvent(new Event("themechange"));
}
systemDark.addEventListener("change", applyTheme);
applyTheme();
addEventListener("DOMContentLoaded", () => {
  applyTheme();
  document.querySelector("button.theme")?.addEventListener("click", () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("szilard-theme", chosen); } catch { /* as above */ }
    applyTheme();
  });
});
addEventListener("beforeprint", () => { root.dataset.theme = "light"; document.dispatchEvent(new Event("themechange")); });
addEventListener("afterprint", applyTheme);
