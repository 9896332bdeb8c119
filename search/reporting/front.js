// The front: marks, intervals, budget.
const CONTROLS = new Set(["uniform"]);
// All marks of one moment: the dense latency over the paired speed-up.
const place = (trial) => (known(trial.speedup) ? data.dense.latency / trial.speedup : trial.latency);
function accuracyFloor(points) {
  const main = points.filter((point) => point.front || point.n === null).map((point) => point.accuracy);
  const low = Math.min(...main), high = Math.max(...main), span = Math.max(high - low, 0.01);
  const floor = Math.min(low, ...points.map((p) => p.accuracy).filter((a) => a >= low - span));
  const height = Math.max(high - floor, 0.01);
  return [floor - 0.08 * height, high + 0.12 * height];
}
function logTicks(low, high) {
  const steps = high < 4 * low ? [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8] : high < 20 * low && !narrow.matches ? [1, 1.5, 2, 3, 4, 5, 7] : [1, 2, 5];
  const ticks = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
    for (const step of steps) {
      const tick = Number((step * 10 ** e).toPrecision(3));
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  }
  return ticks;
}
function hover(trial) {
  const lines = [
    `<b>trial ${trial.n}</b>${trial.front ? ", on the front" : ""}`,
    `accuracy ${percent(trial.accuracy)} (drop ${known(trial.drop) ? trial.drop.toFixed(2) : "–"} pp)`,
    `${figure(trial.latency)} ms, ${fixed(trial.speedup)}x` +
      (trial.speedups ? ` (${fixed(trial.speedups[0])} to ${fixed(trial.speedups[1])})` : ""),
    `${fixed(trial.compression)}x smaller, ${count(trial.macs)} MACs`,
  ];
  if (trial.precision !== "fp32") lines.push(plain(trial.precision));
  if (trial.source) lines.push(`proposed by ${plain(trial.source)}`);
  return lines.join("<br>");
}
function drawFront() {
  const c = colours();
  const points = complete.map((t) => ({ n: t.n, accuracy: t.accuracy, front: t.front, x: place(t) }));
  points.push({ n: null, accuracy: data.dense.accuracy, front: false, x: data.dense.latency });
  const range = accuracyFloor(points);
  const budgetMs = data.budget && known(data.budget.latency_ms) ? data.budget.latency_ms : null;
  const all = points.map((p) => p.x).concat(budgetMs !== null ? [budgetMs] : []);
  for (const t of complete) if (t.front && t.speedups) all.push(data.dense.latency / t.speedups[1], data.dense.latency / t.speedups[0]);
  if (data.dense.interval) all.push(...data.dense.interval);
  const low = Math.min(...all), high = Math.max(...all), logarithmic = low > 0 && high > 3 * low;
  const edge = logarithmic ? (high / low) ** 0.06 : 0.06 * (high - low) || 0.05 * high;
  const span = logarithmic ? [low / edge, high * edge] : [low - edge, high + edge];

  function marks(name, trials, marker, more) {
    const x = trials.map(place);
    const trace = {
      type: "scatter", mode: "markers", name, x, y: trials.map((t) => Math.max(t.accuracy, range[0])),
      customdata: trials.map((t) => t.n), text: trials.map(hover), hovertemplate: "%{text}<extra></extra>",
      marker: { ...marker, symbol: trials.map((t) => (t.accuracy < range[0] ? "triangle-down" : marker.symbol)) },
      cliponaxis: false,
    };
    if (trials.every((t) => t.speedups)) {
      trace.error_x = {
        type: "data", symmetric: false, thickness: 1.4, width: 4, color: (more || {}).bars || marker.color,
        array: trials.map((t, i) => Math.max(0, data.dense.latency / t.speedups[0] - x[i])),
        arrayminus: trials.map((t, i) => Math.max(0, x[i] - data.dense.latency / t.speedups[1])),
      };
    }
    return trace;
  }
  const members = complete.filter((t) => t.front).sort((a, b) => place(a) - place(b));
  const behind = complete.filter((t) => !t.front && !CONTROLS.has(t.source));
  const controls = complete.filter((t) => !t.front && CONTROLS.has(t.source));
  const traces = [];
  const steps = [];
  const offered = [...points].filter((p) => p.front || p.n === null).sort((a, b) => a.x - b.x || b.accuracy - a.accuracy);
  for (const p of offered) if (!steps.length || p.accuracy > steps[steps.length - 1].accuracy) steps.push(p);
  if (steps.length) {
    const last = steps[steps.length - 1];
    traces.push({
      type: "scatter", mode: "lines", x: [...steps.map((p) => p.x), span[1]], y: [...steps.map((p) => p.accuracy), last.accuracy],
      line: { shape: "hv", color: c.front, width: 2 }, hoverinfo: "skip", showlegend: false,
    });
  }
  if (behind.length) traces.push(marks("dominated", behind, { symbol: "circle-open", color: c.other, size: 8, line: { width: 1.6 } }, { bars: c.faint }));
  if (controls.length) traces.push(marks(narrow.matches ? "control" : "control, one sparsity everywhere", controls, { symbol: "square-open", color: c.control, size: 10, line: { width: 2 } }));
  if (members.length) {
    traces.push({
      ...marks("front", members, { symbol: "circle", color: c.front, size: 12, line: { color: c.card, width: 1.5 } }),
      mode: members.length > 25 ? "markers" : "markers+text", textposition: "top left", textfont: { color: c.ink, size: 12 },
      text: members.map((t) => String(t.n) + (t.precision === "fp32" ? "" : " " + plain(t.precision))),
      hovertext: members.map(hover), hovertemplate: "%{hovertext}<extra></extra>",
    });
  }
  const dense = {
    type: "scatter", mode: "markers", name: "dense", x: [data.dense.latency], y: [data.dense.accuracy],
    marker: { symbol: "diamond", color: c.dense, size: 15, line: { color: c.card, width: 1.5 } }, customdata: [null],
    hovertemplate: `<b>dense network</b><br>accuracy ${percent(data.dense.accuracy)}<br>${figure(data.dense.latency)} ms, ${count(data.dense.macs)} MACs<extra></extra>`,
  };
  if (data.dense.interval) {
    const [from, to] = data.dense.interval;
    dense.error_x = {
      type: "data", symmetric: false, thickness: 1.4, width: 4, color: c.dense,
      array: [Math.max(0, to - data.dense.latency)], arrayminus: [Math.max(0, data.dense.latency - from)],
    };
  }
  traces.push(dense);
  if (chosen !== null) {
    traces.push({
      type: "scatter", mode: "markers", x: [place(chosen)], y: [Math.max(chosen.accuracy, range[0])], hoverinfo: "skip",
      marker: { symbol: "circle-open", size: 24, color: c.ring, line: { width: 3 } }, name: "chosen", cliponaxis: false,
    });
  }
  const shapes = [], annotations = [];
  if (budgetMs !== null) {
    const at = budgetMs, right = at > Math.sqrt(span[0] * span[1]);
    shapes.push({ type: "line", x0: at, x1: at, y0: 0, y1: 1, yref: "paper", line: { color: c.budget, width: 2, dash: "dash" } });
    shapes.push({ type: "rect", x0: span[0], x1: at, y0: 0, y1: 1, yref: "paper", fillcolor: c.shade, line: { width: 0 }, layer: "below" });
    annotations.push({
      x: logarithmic ? Math.log10(at) : at, y: 0, yref: "paper", yanchor: "bottom", xanchor: right ? "right" : "left", showarrow: false,
      xshift: right ? -6 : 6, text: `budget ${figure(at)} ms`, font: { color: c.budget },
    });
  }
  const xaxis = { title: { text: title(`latency [ms], ${plain(data.clock)}`) }, range: logarithmic ? span.map(Math.log10) : span };
  if (logarithmic) Object.assign(xaxis, { type: "log", tickvals: logTicks(span[0], span[1]), minor: { ticks: "" } });
  if (xaxis.tickvals) xaxis.ticktext = xaxis.tickvals.map(String);
  return draw("plot-front", traces, {
    xaxis, yaxis: { title: { text: "validation accuracy" }, range, tickformat: ".1%" }, shapes, annotations,
    legend: { y: narrow.matches ? -0.22 : -0.16 }, margin: { l: 66, r: 18, t: 30, b: 44 },
  });
}
