// One trial: figures, accuracy on its way, residuals, layers.
function tile(name, value, more) {
  const shown = element("dd", {}, value);
  if (more) shown.append(element("small", {}, more));
  return element("div", {}, element("dt", {}, name), shown);
}
const interval = (ends, unit) => (ends && known(ends[0]) ? `${figure(ends[0], 4)} to ${figure(ends[1], 4)}${unit}` : "");
function origin(t) {
  const parts = [];
  parts.push(t.source ? `Proposed by: ${t.source}.` : "");
  if (known(t.weights_of)) parts.push(`Its weights were trained by trial ${t.weights_of}, for the other precision.`);
  else if (known(t.from)) parts.push(`It began with the weights of trial ${t.from}.`);
  else parts.push("It began with the dense network's weights.");
  if (t.stretch !== 1) parts.push(`In all its plan was trained for ${t.stretch} times the schedule.`);
  if (t.tied.length) parts.push(`The noise does not tell it from trial ${t.tied.slice(0, 5).join(", ")}${t.tied.length > 5 ? " and others" : ""}.`);
  return parts.filter(Boolean).join(" ");
}
function choose(number, fromPerson) {
  const t = byNumber.get(number);
  if (t === undefined || t.status !== "complete") return;
  chosen = t;
  tell(t);
  if (fromPerson) history.replaceState(null, "", `#trial-${t.n}`);
  return Promise.all([drawFront(), drawAccuracy(t), drawResiduals(t)]);
}
function tell(t) {
  document.getElementById("choice").value = String(t.n);
  document.getElementById("trial-title").textContent = `Trial ${t.n}${t.front ? ", on the front" : ", behind the front"}`;
  document.getElementById("trial-origin").textContent = origin(t);
  const again = t.again ? `again: ${figure(t.again.latency)} ms, ${fixed(t.again.speedup)}x` : "";
  document.getElementById("trial-tiles").replaceChildren(
    tile("Accuracy", percent(t.accuracy), `drop ${known(t.drop) ? t.drop.toFixed(2) : "–"} pp · ± ${percent(t.stderr)}`),
    tile("Latency", `${figure(t.latency)} ms`, interval(t.interval, " ms")),
    tile("Speed-up", `${fixed(t.speedup)}x`, [interval(t.speedups, "x"), again].filter(Boolean).join(" · ")),
    tile("Compression", `${fixed(t.compression)}x`, `${count(t.params)} of ${count(data.dense.params)} parameters`),
    tile("MACs", count(t.macs), `of ${count(data.dense.macs)}`),
    ...(known(t.test) ? [tile("Test accuracy", percent(t.test), `dense ${percent(data.dense.test)}`)] : []),
    ...(data.budget ? [tile("Budget", t.within ? "kept" : "missed", data.budget.words)] : []),
  );
  document.getElementById("trial-notes").replaceChildren(...t.notes.map((note) => element("li", {}, note)));
  const folder = data.folder_typed;
  document.getElementById("again").textContent =
    `prunefront prune ${folder} --plan ${data.trials_typed[String(t.n)]} --out trial-${t.n}-again`;
  document.getElementById("export").textContent = `prunefront export ${folder} --trial ${t.n} --out trial-${t.n}`;
  for (const row of document.querySelectorAll("tr.chosen")) row.classList.remove("chosen");
  for (const row of document.querySelectorAll(`#row-${t.n}, [data-row="${t.n}"]`)) row.classList.add("chosen");
  document.getElementById("layers").replaceChildren(layerTable(t));
}
function drawAccuracy(t) {
  const c = colours();
  const stages = [["before the<br>hard prune", t.before], ["after it", t.after], ["retrained", t.retrained], ["shipped", t.accuracy]];
  const shown = stages.filter(([, value]) => known(value));
  const values = shown.map(([, value]) => value).concat(data.dense.accuracy);
  const low = Math.min(...values), high = Math.max(...values), room = Math.max(0.25 * (high - low), 0.002);
  return draw("plot-accuracy", [
    {
      type: "scatter", mode: "lines+markers+text", x: shown.map(([name]) => name), y: shown.map(([, value]) => value),
      text: shown.map(([, value]) => percent(value)), textposition: "top center", textfont: { size: 12 },
      line: { color: c.front, width: 2 }, marker: { size: 11, color: c.front, symbol: shown.map((_, i) => SYMBOLS[i]) },
      hovertemplate: "%{text}<extra></extra>", cliponaxis: false, showlegend: false,
    },
  ], {
    yaxis: { tickformat: ".1%", range: [low - room, high + 1.6 * room] }, xaxis: { fixedrange: true, range: [-0.75, shown.length - 0.6] },
    shapes: [{ type: "line", x0: 0, x1: 1, xref: "paper", y0: data.dense.accuracy, y1: data.dense.accuracy, line: { color: c.dense, width: 2, dash: "dash" } }],
    annotations: [{ x: 0, xref: "paper", xanchor: "left", y: data.dense.accuracy, yanchor: "bottom", showarrow: false, text: "dense", font: { color: c.dense } }],
    margin: { l: 62, r: 12, t: 10, b: 48 },
  });
}
function drawResiduals(t) {
  const c = colours(), words = document.getElementById("residual-words"), box = document.getElementById("plot-residuals");
  const trace = t.trace;
  const some = trace !== null && trace.primal.some((row) => row.some((value) => value > 0));
  box.hidden = !some;
  if (!some) {
    Plotly.purge(box);
    words.textContent = trace === null ? "No trace of this trial is in this page."
      : "All residuals are zero: the weights it began with obey its plan already, so that it only retrained.";
    return Promise.resolve(null);
  }
  words.textContent = "Solid: primal, ‖W−Z‖/‖W‖: how far the weights are from what the plan allows. Dashed: dual, how far that choice still moves.";
  const order = trace.layers.map((layer, row) => row).sort((a, b) => worst(trace.primal[b]) - worst(trace.primal[a]));
  const named = new Map(order.slice(0, narrow.matches ? 4 : 6).map((row, rank) => [row, rank]));
  const traces = [];
  order.forEach((row) => {
    const name = data.layers[trace.layers[row]].name, rank = named.get(row);
    const colour = rank === undefined ? c.other : c.series[rank], grey = rank === undefined;
    for (const [kind, values, dash] of [["primal", trace.primal[row], "solid"], ["dual", trace.dual[row], "dash"]]) {
      if (grey && kind === "dual") continue;
      traces.push({
        type: "scatter", mode: "lines+markers", x: trace.iterations, y: values.map((v) => (v > 0 ? v : null)), name: plain(name),
        legendgroup: grey ? "others" : String(row), showlegend: kind === "primal" && !grey, opacity: grey ? 0.45 : kind === "dual" ? 0.6 : 1,
        line: { color: colour, dash, width: grey ? 1 : kind === "dual" ? 1.4 : 2 },
        marker: { symbol: grey ? "circle" : SYMBOLS[rank], size: grey ? 3 : kind === "dual" ? 4 : 7, color: colour },
        hovertemplate: `${plain(name)}<br>${kind} %{y:.3g} at iteration %{x}<extra></extra>`,
      });
    }
  });
  return draw("plot-residuals", traces, {
    yaxis: { type: "log", title: { text: "relative residual" }, exponentformat: "none", dtick: 1 },
    xaxis: { title: { text: "ADMM iteration" }, dtick: Math.max(1, Math.ceil(trace.iterations.length / 10)) },
    legend: { y: -0.26, font: { size: 11, color: c.soft } }, margin: { l: 58, r: 12, t: 10, b: 44 },
  });
}
const worst = (row) => (row.length && known(row[row.length - 1]) ? row[row.length - 1] : 0);

// its layers
function bar(share, kind) {
  const fill = element("i");
  fill.style.width = `${Math.max(0, Math.min(100, 100 * share))}%`;
  return element("div", { class: `bar ${kind || ""}`.trim(), "aria-hidden": "true" }, fill);
}
function widths(layer, kept, plan) {
  const box = element("div", { class: "kept" });
  const rows = [["filters", kept[0], layer.filters, ""], ["inputs", kept[1] * layer.groups, layer.channels * layer.groups, "second"]];
  if (layer.groups > 1) rows.pop();
  let columns = kept[1] * layer.kernel;
  if (plan && known(plan.shape)) {
    const all = layer.channels * layer.kernel;
    columns = Math.min(columns, Math.round((1 - plan.shape) * all));
    rows.push(["columns", columns, all, "third"]);
  }
  // single weights that are zero inside what is left
  if (kept[2] < kept[0] * columns) {
    rows.push(["weights", kept[2], layer.filters * layer.channels * layer.kernel, "fourth"]);
  }
  for (const [name, now, was, kind] of rows) {
    box.append(element("span", {}, name), bar(now / was, kind), element("span", {}, now > 9999 ? `${count(now)} of ${count(was)}` : `${now}/${was}`));
  }
  return box;
}
function cost(was, now, most, words, what) {
  const cell = element("td", { class: "cost", "data-what": what }, words);
  if (most > 0) cell.append(bar(was / most, "was"), bar(now / most));
  return cell;
}
function layerTable(t) {
  if (t.kept === null || !data.layers.length) {
    return element("p", { class: "soft" }, "The plan.json of this trial, or the dense network's layers, cannot be read: its plan is not shown.");
  }
  const timed = data.layer_ms !== null && t.layer_ms !== null, counted = data.layers.some((l) => l.macs > 0);
  const macs = (layer, kept) => Math.round((layer.macs * kept[2]) / (layer.filters * layer.channels * layer.kernel));
  const mostMacs = Math.max(...data.layers.map((l) => l.macs));
  const mostMs = timed ? Math.max(...data.layer_ms.concat(t.layer_ms).filter(known)) : 0;
  const head = element("tr", {}, element("th", { scope: "col" }, "layer"), element("th", { scope: "col", class: "words" }, "kept width"));
  if (counted) head.append(element("th", { scope: "col" }, "MACs, zeros left out"));
  if (timed) head.append(element("th", { scope: "col" }, "latency, ms"));
  const body = element("tbody");
  data.layers.forEach((layer, i) => {
    const row = element("tr", {}, element("th", { scope: "row" }, layer.name));
    row.append(element("td", { class: "width" }, widths(layer, t.kept[i], t.plan[layer.name])));
    const now = macs(layer, t.kept[i]);
    if (counted) row.append(cost(layer.macs, now, mostMacs, `${count(layer.macs)} → ${count(now)}`, "MACs"));
    if (timed) {
      const was = data.layer_ms[i], is = t.layer_ms[i];
      row.append(known(was) && known(is) ? cost(was, is, mostMs, `${figure(was, 3)} → ${figure(is, 3)}`, "ms") : element("td", { class: "cost", "data-what": "ms" }, "–"));
    }
    body.append(row);
  });
  if (timed) {
    const was = data.layer_ms[data.layers.length], is = t.layer_ms[data.layers.length];
    const row = element("tr", {}, element("th", { scope: "row" }, "everything else"), element("td", { class: "words soft" }, "activations, additions, layout"));
    if (counted) row.append(element("td", {}, ""));
    row.append(cost(was, is, mostMs, `${figure(was, 3)} → ${figure(is, 3)}`, "ms"));
    body.append(row);
  }
  const total = element("tr", { class: "total" }, element("th", { scope: "row" }, "whole network"), element("td", { class: "width" }, ""));
  const sum = (list) => list.reduce((a, b) => a + b, 0);
  if (counted) total.append(element("td", { "data-what": "MACs" }, `${count(sum(data.layers.map((l) => l.macs)))} → ${count(sum(data.layers.map((l, i) => macs(l, t.kept[i]))))}`));
  if (timed) total.append(element("td", { "data-what": "ms" }, `${figure(data.dense.latency, 4)} → ${figure(t.latency, 4)}`));
  body.append(total);
  const table = element("table", { class: "layers" }, element("thead", {}, head), body);
  const box = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Plan layer by layer" }, table);
  if (!timed) {
    const why = data.layer_ms === null ? "Latency layer by layer was not timed (see below why)." : "Latency layer by layer is timed for trials of the front.";
    box.append(element("p", { class: "soft" }, why));
  } else {
    box.append(element("p", { class: "soft" }, "Latency: each layer's share of the time that ONNX Runtime's profiler saw, of the latency that was measured."));
  }
  return box;
}
