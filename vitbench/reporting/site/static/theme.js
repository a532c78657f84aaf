"use strict";
// Before anything is painted: the theme that was chosen last time. Where nothing can be remembered, the system's theme is used.
(() => {
  const root = document.documentElement;
  const remembered = () => { try { return localStorage.getItem("vitbench-theme"); } catch { return null; } };
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const theme = () => root.dataset.theme ?? (systemDark.matches ? "dark" : "light");
  const saved = remembered();
  if (saved === "dark" || saved === "light") root.dataset.theme = saved;
  root.classList.add("js");

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.querySelector("button.theme");
    const name = button.querySelector(".theme-name");
    const show = () => {
      const other = theme() === "dark" ? "light" : "dark";
      name.textContent = `${other[0].toUpperCase()}${other.slice(1)} theme`;
      button.setAttribute("aria-label", `Switch to the ${other} theme`);
      document.dispatchEvent(new Event("themechange"));
    };
    button.hidden = false;
    button.addEventListener("click", () => {
      root.dataset.theme = theme() === "dark" ? "light" : "dark";
      try { localStorage.setItem("vitbench-theme", root.dataset.theme); } catch { /* a private window: for this page only */ }
      show();
    });
    systemDark.addEventListener("change", show);
    show();
  });
})();
