"use strict";

const charts = JSON.parse(document.getElementById("charts").textContent);
const config = { displayModeBar: false, responsive: true };

// Colours and font of the page, which knows light from dark.
function themed() {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: color("--grid"), linecolor: color("--line"), zeroline: false };
  return {
    font: { color: color("--text"), family: getComputedStyle(document.body).fontFamily, size: 12 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { bgcolor: color("--paper"), bordercolor: color("--line"), font: { color: color("--text") }, align: "left" },
    axis,
  };
}

function dressed(layout) {
  const { axis, ...rest } = themed();
  const dressed = { ...layout, ...rest };
  for (const key of Object.keys(layout).filter((k) => /^[xy]axis\d*$/.test(k)).concat("xaxis", "yaxis"))
    dressed[key] = { ...(layout[key] ?? {}), ...axis };
  return dressed;
}

for (const { data, names } of Object.values(charts))
  for (const trace of names ? data : [])
    trace.customdata = trace.z.map((row, i) => row.map(() => names[i]));

function draw() {
  return Promise.all(
    Object.entries(charts).map(([id, chart]) => Plotly.react(id, chart.data, dressed(chart.layout), config)),
  );
}

function checked(name) {
  return document.querySelector(`input[name="${name}"]:checked`).value;
}

for (const input of document.querySelectorAll(".switches input"))
  input.addEventListener("change", () => {
    const shown = `${checked("tensor")} ${checked("view")}`;
    for (const trace of charts.qsnr.data) trace.visible = trace.name === shown;
    Plotly.react("qsnr", charts.qsnr.data, dressed(charts.qsnr.layout), config);
  });

document.getElementById("filter").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  for (const row of document.querySelectorAll("#layer-table tbody tr"))
    row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
});

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

draw().then(() => {
  document.documentElement.dataset.ready = "true";
});
