// Fills the page from its embedded data, and again when its width or colour scheme changes.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function fillHead() {
  byId("paper").textContent = data.paper;
  for (const tile of data.tiles) {
    byId("tiles").append(
      element(
        "div",
        { class: "tile" },
        element("div", { class: "label" }, tile.label),
        element("div", { class: "value" }, tile.value),
        element("div", { class: "note" }, tile.note),
      ),
    );
  }
  byId("notice").textContent = data.notices.join(" ");
  byId("notice").hidden = !data.notices.length;
  byId("footer").textContent = data.footer;
}

function fillTable() {
  byId("dead-card").hidden = !data.table.length;
  if (!data.table.length) return;
  const titles = ["Layer", "CV", "Effective experts", "Largest share", "Smallest share", "Dropped", "Dead", "Dead experts"];
  byId("dead").append(element("tr", {}, ...titles.map((title) => element("th", {}, title))));
  for (const row of data.table) {
    const cells = [row.layer, number(row.cv), number(row.effective), number(row.largest, "%"), number(row.smallest, "%")];
    cells.push(number(row.drop_rate, "%"), row.dead.length, row.dead.join(", ") || "none");
    const made = element("tr", {}, ...cells.map((cell) => element("td", {}, String(cell))));
    if (row.dead.length) made.children[6].className = "alarm";
    byId("dead").append(made);
  }
}

function fillScale() {
  const bar = element("span", { class: "bar" });
  bar.style.background = `linear-gradient(90deg, ${color("under")}, ${color("fair")}, ${color("over")})`;
  const dead = element("span", {}, element("span", { class: "dead" }), "dead: below 1/10");
  byId("scale").replaceChildren("1/4", bar, "4 times the fair share", dead);
}

function drawLoss() {
  const { train, validation } = data;
  byId("loss-card").hidden = !train.steps.length && !validation.steps.length;
  if (byId("loss-card").hidden) return;
  const series = [
    { name: "training", color: color("train"), steps: train.steps, values: train.loss },
    { name: "validation", color: color("validation"), steps: validation.steps, values: validation.loss, dots: true },
  ].filter((line) => line.steps.length);
  // A long run is told by its later steps; a short one has none to spare.
  const isLong = train.steps.length > 200;
  byId("loss-skip").hidden = !isLong;
  lineChart(byId("loss"), series, { height: 320, skip: isLong ? 0.02 : 0, events: data.events });
}

function addCards(figures, place) {
  for (const figure of figures) {
    const target = element("div", { class: "chart", id: `figure-${figure.key}` });
    const caption = element("p", { class: "caption" }, figure.caption);
    byId(place).append(element("section", { class: "card" }, element("h2", {}, figure.title), caption, target));
  }
}

function drawCurves() {
  for (const curve of data.curves) {
    const series = [{ name: curve.title, color: color("train"), steps: data.train.steps, values: curve.values }];
    lineChart(byId(`figure-${curve.key}`), series, { height: 160, low: 0, events: data.events });
  }
}

function drawFigures() {
  for (const figure of data.figures) {
    const series = data.layers.map((name, layer) => ({
      name,
      color: mix(color("first"), color("last"), layer / Math.max(1, data.layers.length - 1)),
      steps: data.train.steps,
      values: figure.values.map((row) => row[layer]),
    }));
    lineChart(byId(`figure-${figure.key}`), series, { height: 220, unit: figure.unit, low: 0, events: data.events });
  }
}

function drawExperts() {
  const none = !data.windows.steps.length;
  byId("experts-card").hidden = byId("history-card").hidden = none;
  if (none) return;
  const show = expertMap(byId("experts"), data);
  const slider = byId("window");
  const update = () => {
    byId("window-step").textContent = data.windows.steps[slider.value].toLocaleString("en");
    show(Number(slider.value));
  };
  slider.oninput = update;
  update();
  fillScale();
  const history = () => historyMap(byId("history"), data, Number(byId("layer").value), data.events);
  byId("layer").onchange = history;
  history();
}

// The layer to look at first: the one with the highest CV in the last window.
function mostUneven() {
  return data.table.reduce((worst, row, layer) => (row.cv > (data.table[worst].cv ?? -1) ? layer : worst), 0);
}

function draw() {
  drawLoss();
  drawCurves();
  drawExperts();
  drawFigures();
}

byId("window").max = Math.max(0, data.windows.steps.length - 1);
byId("window").value = byId("window").max;
data.layers.forEach((name, layer) => byId("layer").append(element("option", { value: layer }, name)));
byId("layer").value = mostUneven();
fillHead();
fillTable();
addCards(data.curves, "curves");
addCards(data.figures, "figures");
draw();
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
let width = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth !== width) draw();
  width = window.innerWidth;
});
