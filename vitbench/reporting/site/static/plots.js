"use strict";
// Draws every plot of the page in the colours of the theme, and again when the theme or the width changes.
document.addEventListener("DOMContentLoaded", () => {
  const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const shortened = (text, most) => {
    // Names differ at their ends: checkpoint, representation, task.
    return escaped(text.length <= most ? text : `…${text.slice(1 - most)}`);
  };

  const themed = (given, width) => {
    const style = getComputedStyle(document.documentElement);
    // A custom property holds light-dark(…) as it was written; a colour that is in use is resolved.
    const probe = document.createElement("span");
    document.body.append(probe);
    const colour = (name) => { probe.style.color = `var(${name})`; return getComputedStyle(probe).color; };
    const [ink, grid, panel] = ["--muted", "--line", "--panel"].map(colour);
    const strong = colour("--ink");
    probe.remove();
    const layout = structuredClone(given);
    const narrow = width < 560;
    for (const key of Object.keys(layout).filter((name) => /^[xy]axis/.test(name))) {
      const axis = layout[key];
      Object.assign(axis, { gridcolor: grid, zerolinecolor: ink, linecolor: grid, tickcolor: grid, fixedrange: true });
      if (axis.ticktext) axis.ticktext = axis.ticktext.map((text) => shortened(text, narrow ? 20 : 56));
    }
    for (const line of layout.shapes ?? []) line.line.color = ink;
    if (narrow && layout.legend) layout.legend.font = { size: 11 };
    return {
      ...layout,
      font: { family: style.fontFamily, size: narrow ? 11 : 13, color: ink },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      hoverlabel: { bgcolor: panel, bordercolor: grid, font: { color: strong } },
      dragmode: false,
    };
  };

  const plots = [...document.querySelectorAll("figure.plot")].map((figure) => {
    const area = figure.querySelector(".canvas");
    const spec = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
    return { area, spec, height: parseInt(area.style.minHeight, 10) };
  });
  const draw = ({ area, spec, height }) => {
    if (!area.clientWidth) return;
    const size = { width: area.clientWidth, height };
    const data = structuredClone(spec.data);
    if (size.width < 560) for (const trace of data) trace.mode = trace.mode?.replace("+text", "");
    Plotly.react(area, data, { ...themed(spec.layout, size.width), ...size }, { displayModeBar: false });
    area.dataset.drawn = "true";
  };
  const drawAll = () => plots.forEach(draw);
  document.addEventListener("themechange", drawAll);
  const widths = new Map();
  const watcher = new ResizeObserver((entries) => {
    for (const { target, contentRect } of entries) {
      if (widths.get(target) === contentRect.width) continue;
      widths.set(target, contentRect.width);
      draw(plots.find((plot) => plot.area === target));
    }
  });
  plots.forEach((plot) => watcher.observe(plot.area));
});
