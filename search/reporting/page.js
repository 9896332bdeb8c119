"use strict";
(function () {
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

  // ---- the front ----
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
    const all = points.map((p) => p.x).concat(data.budget ? [data.budget.latency_ms] : []);
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
    if (data.budget) {
      const at = data.budget.latency_ms, right = at > Math.sqrt(span[0] * span[1]);
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

  // ---- one trial ----
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

  // ---- its layers ----
  function bar(share, kind) {
    const fill = element("i");
    fill.style.width = `${Math.max(0, Math.min(100, 100 * share))}%`;
    return element("div", { class: `bar ${kind || ""}`.trim(), "aria-hidden": "true" }, fill);
  }
  function widths(layer, kept, plan) {
    const box = element("div", { class: "kept" });
    const rows = [["filters", kept[0], layer.filters, ""], ["inputs", kept[1] * layer.groups, layer.channels * layer.groups, "second"]];
    if (layer.groups > 1) rows.pop();
    const columns = kept[1] * layer.kernel, room = kept[0] * columns;
    if (plan && known(plan.shape)) {
      const all = layer.channels * layer.kernel;
      rows.push(["columns", Math.min(columns, Math.round((1 - plan.shape) * all)), all, "third"]);
    } else if (room > 0 && kept[2] < room) {
      rows.push(["weights", kept[2], layer.filters * layer.channels * layer.kernel, "third"]);
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

  // ---- the search ----
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
        text: some.map((r) => `<b>trial ${r.trial}</b>: ${name}<br>${r.epochs.toFixed(1)} epochs, hypervolume ${fixed(r.hypervolume, 4)}`), hovertemplate: "%{text}<extra></extra>",
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

  // ---- what a person does ----
  function drawAll() {
    const parts = [drawProgress(), drawSensitivity()];
    if (complete.length) parts.push(chosen === null ? drawFront() : choose(chosen.n, false));
    return Promise.all(parts);
  }
  const pause = () => new Promise((done) => setTimeout(done, 0));
  // What is seen first is drawn first, the rest while nothing else is to be done.
  async function begin() {
    const first = firstChoice();
    chosen = first === null ? null : byNumber.get(first);
    if (complete.length) {
      tell(chosen);
      await drawFront();
      document.getElementById("plot-front").on("plotly_click", (event) => {
        const number = event.points[0].customdata;
        if (known(number)) choose(number, true);
      });
    }
    document.documentElement.dataset.ready = "yes";
    for (const part of [() => drawAccuracy(chosen), () => drawResiduals(chosen), drawProgress, drawSensitivity]) {
      await pause();
      if (chosen !== null || part === drawProgress || part === drawSensitivity) await part();
    }
    document.documentElement.dataset.ready = "all";
  }
  function copy(button) {
    const source = document.getElementById(button.dataset.copy);
    const told = () => {
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    };
    const marked = () => {
      window.getSelection().selectAllChildren(source);
      if (document.execCommand("copy")) told();
    };
    if (navigator.clipboard) navigator.clipboard.writeText(source.textContent).then(told, marked);
    else marked();
  }
  function fromAddress() {
    const match = /^#trial-(\d+)$/.exec(location.hash);
    return match !== null && byNumber.has(Number(match[1])) ? Number(match[1]) : null;
  }
  function firstChoice() {
    const asked = fromAddress();
    if (asked !== null) return asked;
    const able = complete.filter((t) => !data.budget || t.within);
    const best = [...(able.length ? able : complete)].sort((a, b) => b.accuracy - a.accuracy || b.speedup - a.speedup);
    return best.length ? best[0].n : null;
  }
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-trial]"), button = event.target.closest("[data-copy]");
    if (link) {
      choose(Number(link.dataset.trial), true);
      document.getElementById("trial").scrollIntoView({ block: "start" });
    }
    if (button) copy(button);
  });
  const box = document.getElementById("choice");
  if (box !== null) box.addEventListener("change", () => choose(Number(box.value), true));
  window.addEventListener("hashchange", () => {
    const asked = fromAddress();
    if (asked !== null) choose(asked, false);
  });
  dark.addEventListener("change", drawAll);
  narrow.addEventListener("change", drawAll);
  window.addEventListener("beforeprint", () => {
    printing = true;
    for (const part of document.querySelectorAll("details")) part.open = true;
    drawAll();
  });
  window.addEventListener("afterprint", () => {
    printing = false;
    drawAll();
  });

  begin();
})();
