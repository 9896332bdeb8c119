// What all plots share: data, colours, figures as text, layout.
const data = JSON.parse(document.getElementById("data").textContent);
const byNumber = new Map(data.trials.map((trial) => [trial.n, trial]));
const complete = data.trials.filter((trial) => trial.status === "complete");
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const narrow = window.matchMedia("(max-width: 600px)");
const coarse = window.matchMedia("(pointer: coarse)");
let printing = false;
let chosen = null;

// Okabe and Ito's colours, the lighter of a pair where the page is dark; shapes and dashes differ as well.
const LIGHT = {
  ink: "#1a1f26", soft: "#56606d", grid: "#e6eaee", card: "#ffffff", front: "#0072b2", dense: "#d55e00",
  budget: "#009e73", control: "#c98600", other: "#8d96a0", faint: "rgba(141,150,160,0.45)", ring: "#b0507f", shade: "rgba(0,158,115,0.05)",
  series: ["#0072b2", "#d55e00", "#009e73", "#b0507f", "#c98600", "#2f9fd8", "#000000", "#7a5c00"],
};
const DARK = {
  ink: "#e7ebf0", soft: "#a3aebb", grid: "#2a333e", card: "#181e26", front: "#56b4e9", dense: "#f08a4b",
  budget: "#2cc79c", control: "#e69f00", other: "#7d8894", faint: "rgba(125,136,148,0.5)", ring: "#e59ac3", shade: "rgba(44,199,156,0.06)",
  series: ["#56b4e9", "#f08a4b", "#2cc79c", "#e59ac3", "#e69f00", "#2f8fd0", "#ffffff", "#f0e442"],
};
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid", "dash"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "x", "star", "pentagon"];
const colours = () => (dark.matches && !printing ? DARK : LIGHT);

// Plotly reads a few HTML tags in its texts: names are shown as they are.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);
const percent = (value) => (known(value) ? (100 * value).toFixed(2) + " %" : "–");
const figure = (value, digits) => (known(value) ? String(Number(value.toPrecision(digits || 4))) : "–");
const fixed = (value, digits) => (known(value) ? value.toPrecision(digits || 3) : "–");
function count(value) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= size * 0.99995) return (value / size).toFixed(1) + " " + unit;
  }
  return String(value);
}
function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  for (const child of children) made.append(child);
  return made;
}
const title = (text) => (narrow.matches ? text.split(",")[0] : text);

function layout(more) {
  const c = colours();
  const axis = { title: { font: { size: 13, color: c.soft } }, gridcolor: c.grid, zeroline: false, linecolor: c.soft, tickcolor: c.soft, automargin: true };
  const base = {
    font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", size: 13, color: c.ink },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
    dragmode: coarse.matches ? false : "zoom", margin: { l: 56, r: 14, t: 10, b: 44 },
    hoverlabel: { bgcolor: c.card, bordercolor: c.soft, font: { color: c.ink }, align: "left", namelength: -1 },
    legend: { orientation: "h", y: -0.2, yanchor: "top", x: 0, font: { color: c.soft, size: 12 } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: c.soft, activecolor: c.ink },
  };
  for (const name of Object.keys(more)) {
    base[name] = /^[xy]axis/.test(name) ? { ...axis, ...more[name], title: { ...axis.title, ...more[name].title } } : { ...base[name], ...more[name] };
    if (typeof more[name] !== "object" || Array.isArray(more[name])) base[name] = more[name];
  }
  return base;
}
const config = {
  responsive: true, displaylogo: false, doubleClick: "reset",
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
};
function draw(id, traces, more) {
  const place = document.getElementById(id);
  if (place === null) return Promise.resolve(null);
  const set = { ...config, displayModeBar: coarse.matches ? false : "hover" };
  return Plotly.react(place, traces, layout(more), set).then(() => place);
}
