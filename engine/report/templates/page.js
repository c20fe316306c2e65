"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#3b82f6", "#e4572e", "#0d9f88", "#b7791f", "#9a5cf0", "#db4a8c", "#6f9a1f", "#64748b"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const form = document.querySelector(".controls");
const logs = data.charts.map((chart) => Boolean(chart.log));

// Pictures, sounds and films stand in the page once, and are shown wherever they are named.
for (const element of document.querySelectorAll("[data-media]")) element.src = data.media[element.dataset.media];

for (const figure of document.querySelectorAll(".through")) {
  const image = figure.querySelector("img"), slider = figure.querySelector("input"), said = figure.querySelector("output");
  const steps = image.dataset.steps.split(" "), pictures = image.dataset.pictures.split(" ");
  const show = () => {
    const place = slider ? Number(slider.value) : 0;
    image.src = data.media[pictures[place]];
    said.textContent = "step " + Number(steps[place]).toLocaleString("en");
  };
  if (slider) slider.addEventListener("input", show);
  show();
}

function theme() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(name).trim();
  return { text: get("--text"), soft: get("--soft"), line: get("--line"), back: get("--back"), warn: get("--warn") };
}

function smooth(values, weight) {
  // An exponential mean that begins at the first value, less the weight of what came before it.
  let mean = 0, count = 0;
  return values.map((value) => {
    mean = weight * mean + (1 - weight) * value;
    count += 1;
    return mean / (1 - Math.pow(weight, count));
  });
}

function traces(chart, axis, weight) {
  const found = [];
  chart.series.forEach((series, i) => {
    const place = series.colour === undefined ? i : series.colour;
    const colour = series.chance ? theme().soft : COLOURS[place % COLOURS.length];
    const line = { color: colour, width: 1.8, dash: series.chance ? "dot" : DASHES[Math.floor(place / COLOURS.length) % DASHES.length] };
    const base = { x: series.x[axis], name: series.name, legendgroup: series.name + i, type: "scatter", hovertemplate: "%{y:.5g}" };
    const mode = (series.points && !series.chance) || series.y.length === 1 ? "lines+markers" : "lines";
    const smoothed = weight > 0 && !series.points && !series.chance && series.y.length > 2;
    if (smoothed) found.push({ ...base, y: series.y, mode: "lines", line: { ...line, width: 1 }, opacity: 0.3, hoverinfo: "skip", hovertemplate: null, showlegend: false });
    found.push({ ...base, y: smoothed ? smooth(series.y, weight) : series.y, mode, line, marker: { size: 5, color: colour } });
  });
  return found;
}

function marked(chart, axis, log) {
  // Vertical lines, and what they mean while there is room for it. On a logarithmic axis text stands at the logarithm.
  const marks = (chart.marks || []).filter((mark) => !log || mark.x[axis] > 0), colours = theme();
  const colour = (mark) => (mark.text === "skipped" ? colours.warn : colours.soft);
  const shapes = marks.map((mark) => ({
    type: "line", xref: "x", yref: "paper", x0: mark.x[axis], x1: mark.x[axis], y0: 0, y1: 1, layer: "below", line: { width: 1, dash: "dot", color: colour(mark) },
  }));
  const annotations = (marks.length > 8 ? [] : marks).map((mark) => ({
    text: mark.text, x: log ? Math.log10(mark.x[axis]) : mark.x[axis], xref: "x", y: 1, yref: "paper", xanchor: "right", yanchor: "top", textangle: -90, showarrow: false, font: { size: 10, color: colour(mark) },
  }));
  return { shapes, annotations };
}

function layout(extra) {
  const colours = theme();
  const axis = { gridcolor: colours.line, zeroline: false, linecolor: colours.line, tickcolor: colours.line, automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colours.text, size: 12, family: "system-ui, sans-serif" },
    margin: { l: 48, r: 12, t: 8, b: 40 }, hovermode: "x unified", hoverlabel: { bgcolor: colours.back, bordercolor: colours.line, font: { color: colours.text } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 11 } }, autosize: true,
    ...extra, xaxis: { ...axis, ...extra.xaxis }, yaxis: { ...axis, ...extra.yaxis },
  };
}

function figureOf(chart, number) {
  const colours = theme();
  if (chart.kind === "bars") {
    const bars = {
      type: "bar", orientation: "h", y: chart.names, x: chart.values, marker: { color: COLOURS[0] }, hovertemplate: "%{y}: %{x:.3f}<extra></extra>",
      error_x: { type: "data", symmetric: false, array: chart.high.map((x, i) => x - chart.values[i]), arrayminus: chart.low.map((x, i) => chart.values[i] - x), color: colours.soft, thickness: 1.2, width: 3 },
    };
    return [[bars], layout({ hovermode: "closest", yaxis: { autorange: "reversed", type: "category", dtick: 1 }, xaxis: { range: [0, 1.02] }, margin: { l: 10, r: 12, t: 8, b: 30 } })];
  }
  if (chart.kind === "heatmap") {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const cells = {
      type: "heatmap", z: chart.matrix, x: chart.names, y: chart.names, zmin: 0, zmax: 1, showscale: false,
      colorscale: [[0, dark ? "#1d2126" : "#f6f7f9"], [1, "#2563eb"]], xgap: 1, ygap: 1, hovertemplate: "is %{y}, said %{x}: %{z:.0%}<extra></extra>",
      ...(chart.names.length <= 20 ? { texttemplate: "%{z:.0%}", textfont: { size: 10 } } : {}),
    };
    return [[cells], layout({ hovermode: "closest", yaxis: { autorange: "reversed", type: "category" }, xaxis: { type: "category", tickangle: -45 }, margin: { l: 10, r: 12, t: 8, b: 10 } })];
  }
  const axis = form ? form.axis.value : "steps", weight = form ? Number(form.smoothing.value) : 0;
  const titles = { steps: "step", samples: "samples", hours: "training hours" };
  const y = { type: logs[number] ? "log" : "linear", exponentformat: "power" };
  if (chart.percent && !logs[number]) y.tickformat = ",.3~%";
  return [traces(chart, axis, weight), layout({
    ...marked(chart, axis, form && form.logx.checked), showlegend: chart.series.length > 1 || chart.series[0].colour !== undefined, yaxis: y,
    xaxis: { title: { text: titles[axis], font: { size: 11, color: colours.soft }, standoff: 6 }, type: form && form.logx.checked ? "log" : "linear" },
  })];
}

function draw(element) {
  const number = Number(element.dataset.chart), chart = data.charts[number];
  if (chart.kind === "bars") element.style.height = Math.max(200, 60 + 20 * chart.names.length) + "px";
  if (chart.kind === "heatmap") element.style.height = Math.max(320, 140 + Math.min(26, 900 / chart.names.length) * chart.names.length) + "px";
  const [drawn, arranged] = figureOf(chart, number);
  return Plotly.react(element, drawn, arranged, { responsive: true, displaylogo: false, displayModeBar: false });
}

function caption(element) {
  const number = Number(element.dataset.chart), chart = data.charts[number];
  const place = element.parentElement.querySelector("figcaption"), title = document.createElement("span");
  title.textContent = chart.title;
  if (chart.note) { const note = document.createElement("small"); note.textContent = " " + chart.note; title.append(note); }
  place.append(title);
  if (chart.kind !== "lines") return;
  const button = document.createElement("button");
  button.type = "button"; button.textContent = "log y"; button.setAttribute("aria-pressed", logs[number]);
  button.addEventListener("click", () => { logs[number] = !logs[number]; button.setAttribute("aria-pressed", logs[number]); draw(element); });
  place.append(button);
}

async function start() {
  const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (letter) => letter.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);
  const plots = [...document.querySelectorAll(".plot")];
  plots.forEach(caption);
  const all = () => Promise.all(plots.map(draw));
  await all();
  if (form) form.addEventListener("input", () => { form.querySelector("output").textContent = form.smoothing.value; all(); });
  if (form) form.addEventListener("submit", (event) => event.preventDefault());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
  document.documentElement.dataset.ready = String(plots.length);
}
start();
