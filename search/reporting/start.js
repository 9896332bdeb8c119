// What a person does, and what is drawn first.
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
