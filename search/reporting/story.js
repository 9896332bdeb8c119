// The search: progress, sensitivity.
const KINDS = [
  ["complete", "complete", "circle", "front"], ["stopped", "stopped early", "triangle-down", "control"],
  ["infeasible", "rejected before training", "x-thin", "other"], ["failed", "failed", "square", "dense"],
];
function drawProgress() {
  if (!data.progress.length) return Promise.resolve(null);
  const c = colours(), rows = data.progress, status = new Map(data.trials.map((t) => [t.n, t]));
  const x = [data.reference.epochs_before, ...rows.map((r) => r.epochs)];
  const best = rows.filter((r) => known(r.best_accuracy));
  const heights = best.map((r) => r.best_accuracy).concat(data.dense.accuracy);
  const bottom = Math.min(...heights), top = Math.max(...heights), room = Math.max(0.15 * (top - bottom), 0.002);
  const traces = [
    { type: "scatter", mode: "lines", x, y: [0, ...rows.map((r) => r.hypervolume)], line: { shape: "hv", color: c.front, width: 2 }, hoverinfo: "skip", showlegend: false },
    { type: "scatter", mode: "lines", x: best.map((r) => r.epochs), y: best.map((r) => r.best_accuracy), yaxis: "y2", line: { shape: "hv", color: c.budget, width: 2 }, name: data.budget ? "best within budget" : "best accuracy", hovertemplate: "%{y:.2%} after %{x:.1f} epochs<extra></extra>", showlegend: false },
  ];
  for (const [kind, name, symbol, colour] of KINDS) {
    const some = rows.filter((r) => status.get(r.trial).status === kind);
    if (!some.length) continue;
    traces.push({
      type: "scatter", mode: "markers", name, x: some.map((r) => r.epochs), y: some.map((r) => r.hypervolume), customdata: some.map((r) => r.trial),
      marker: { symbol, size: 9, color: c[colour], line: { width: symbol === "x-thin" ? 2 : 1, color: symbol === "x-thin" ? c[colour] : c.card } },
      text: some.map((r) => `<b>trial ${r.trial}</b>: ${name}<br>${figure(r.epochs)} epochs, hypervolume ${fixed(r.hypervolume, 4)}`), hovertemplate: "%{text}<extra></extra>",
    });
  }
  return draw("plot-progress", traces, {
    xaxis: { title: { text: "training epochs spent" }, anchor: "y2" },
    yaxis: { title: { text: "hypervolume" }, domain: [0.46, 1], rangemode: "tozero" },
    yaxis2: { title: { text: data.budget ? "best in budget" : "best accuracy" }, domain: [0, 0.36], tickformat: ".1%", range: [bottom - room, top + room], nticks: 4 },
    shapes: [{ type: "line", x0: 0, x1: 1, xref: "paper", y0: data.dense.accuracy, y1: data.dense.accuracy, yref: "y2", line: { color: c.dense, width: 1.5, dash: "dash" } }],
    annotations: [{ x: 0, xref: "paper", xanchor: "left", y: data.dense.accuracy, yref: "y2", yanchor: "bottom", showarrow: false, text: "dense", font: { color: c.dense } }],
    legend: { y: -0.16 }, margin: { l: 66, r: 14, t: 10, b: 44 },
  });
}
function drawSensitivity() {
  const table = data.sensitivity;
  if (table === null) return Promise.resolve(null);
  const c = colours();
  const worstOf = (d) => Math.max(...d.loss.filter(known), 0);
  const ordered = [...table.dimensions].sort((a, b) => worstOf(b) - worstOf(a));
  const named = narrow.matches ? 5 : 8;
  const values = ordered.flatMap((d) => d.loss.filter((v) => known(v) && v > 0)).concat(table.loss > 0 ? [table.loss] : []);
  const traces = ordered.map((d, i) => ({
    type: "scatter", mode: "lines+markers", name: plain(d.name), x: [0, ...d.sparsity], y: [table.loss, ...d.loss],
    showlegend: i < named, opacity: i < named ? 1 : 0.4,
    line: { color: i < named ? c.series[i] : c.other, dash: i < named ? DASHES[i] : "solid", width: i < named ? 2 : 1 },
    marker: { symbol: i < named ? SYMBOLS[i] : "circle", size: i < named ? 6 : 3, color: i < named ? c.series[i] : c.other },
    hovertemplate: `${plain(d.name)}<br>%{x:.0%} removed: loss %{y:.3g}<extra></extra>`,
  }));
  const logarithmic = values.length > 1 && Math.max(...values) > 20 * Math.min(...values);
  return draw("plot-sensitivity", traces.reverse(), {
    xaxis: { title: { text: "sparsity" }, tickformat: ".0%" },
    yaxis: { title: { text: "loss" }, type: logarithmic ? "log" : "linear", exponentformat: "none", ...(logarithmic ? { dtick: 1 } : {}) },
    legend: { y: -0.26, traceorder: "reversed", font: { size: 11, color: c.soft } }, margin: { l: 58, r: 12, t: 6, b: 44 },
  });
}
