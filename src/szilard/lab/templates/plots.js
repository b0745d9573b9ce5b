"use strict";
// Every .plot element holds its figure as JSON in the script element inside it. They are drawn one
// after the other without blocking the page, and again when the theme changes.
function theme(small) {
  const css = getComputedStyle(document.documentElement);
  const get = (name) => css.getPropertyValue(name).trim();
  const axis = {
    gridcolor: get("--grid"), linecolor: get("--rule"), zerolinecolor: get("--rule"),
    tickcolor: get("--rule"), automargin: true, title: { standoff: 12 },
  };
  return {
    layout: {
      colorway: PALETTE,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: small ? 11 : 13, color: get("--ink") },
      xaxis: axis, yaxis: axis,
      polar: { bgcolor: "rgba(0,0,0,0)", radialaxis: axis, angularaxis: axis },
      margin: small ? { l: 48, r: 8, t: 8, b: 40 } : { l: 64, r: 16, t: 28, b: 56 },
      hoverlabel: { bgcolor: get("--raised"), bordercolor: get("--rule"), font: { color: get("--ink") } },
      legend: { orientation: "h", yanchor: "bottom", y: 1.02, x: 0, bgcolor: "rgba(0,0,0,0)" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: get("--soft"), activecolor: get("--link") },
      colorscale: { sequential: "Viridis", diverging: "RdBu" },
    },
    data: { heatmap: [{ colorbar: { outlinewidth: 0 } }] },
  };
}
function draw(element) {
  const figure = JSON.parse(element.querySelector("script").textContent);
  const small = element.classList.contains("small");
  const layout = { ...figure.layout, template: theme(small), autosize: true };
  if (small) {
    layout.height = Math.min(layout.height || 340, 460);
    delete layout.title;
    delete layout.margin;
    layout.annotations = layout.annotations?.map((note) => ({ ...note, font: { ...note.font, size: 11 } }));
  }
  if (layout.height) element.style.height = layout.height + "px";
  // Titles of subplots stand where the legend would: it goes above them.
  const titled = layout.annotations?.some((note) => note.yref === "paper" && note.yanchor === "bottom" && note.y > 0.98);
  if (titled) layout.template.layout.legend.y = 1 + 30 / (element.clientHeight - 110);
  const options = { responsive: true, displaylogo: false, displayModeBar: small ? false : "hover",
    // A page that promises to need no network offers no button that sends the plot away.
    modeBarButtonsToRemove: ["sendChartToCloud", "lasso2d", "select2d", "autoScale2d"] };
  let target = element.querySelector(".canvas");
  if (!target) {
    target = document.createElement("div");
    target.className = "canvas";
    target.style.height = "100%";
    element.append(target);
    element.style.height = element.style.height || getComputedStyle(element).minHeight;
  }
  Plotly.react(target, figure.data, layout, options);
  element.dataset.drawn = "yes";
}
function drawNext() {
  const element = document.querySelector(".plot:not([data-drawn])");
  if (!element) return;
  draw(element);
  setTimeout(drawNext);
}
addEventListener("DOMContentLoaded", () => setTimeout(drawNext));
document.addEventListener("themechange", () => {
  document.querySelectorAll(".plot[data-drawn]").forEach(draw);
});
addEventListener("beforeprint", () => document.querySelectorAll(".plot").forEach(draw));
