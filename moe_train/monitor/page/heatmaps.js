// The two heat maps: layers x experts in one window (SVG), and one layer's experts over time (canvas).
// A load is in percent of the fair share: 100 is fair, below 10 is dead, null is a window without assignments.
"use strict";

const DEAD = 10, STRONGEST = 2;

function loadColor(load) {
  if (load === null) return color("line");
  if (load < DEAD) return color("dead");
  const strength = Math.max(-1, Math.min(1, Math.log2(load / 100) / STRONGEST));
  return mix(color("fair"), color(strength < 0 ? "under" : "over"), Math.abs(strength));
}

// One colour per percent up to the strongest: a canvas has too many cells to ask the style sheet for each.
function loadColors() {
  const table = Array.from({ length: 100 * 2 ** STRONGEST + 1 }, (_, load) => loadColor(load));
  const none = loadColor(null);
  return (load) => (load === null ? none : table[Math.min(load, table.length - 1)]);
}

function loadText(load) {
  if (load === null) return "no assignments";
  return `${load.toLocaleString("en")}% of the fair share${load < DEAD ? " (dead)" : ""}`;
}

// data: {layers, windows: {steps, loads[window][layer][expert]}}; returns a function that shows a window.
function expertMap(target, data) {
  const width = target.clientWidth || 1000, left = 72, bottom = 24;
  const numExperts = Math.max(...data.windows.loads[0].map((loads) => loads.length));
  const cell = (width - left) / numExperts;
  const row = Math.max(10, Math.min(34, 420 / data.layers.length));
  const gap = cell > 8 ? 2 : 0;
  const height = row * data.layers.length + bottom;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
  svg.setAttribute("aria-label", "Load of every expert of every MoE layer");
  let shown = 0;
  const cells = data.layers.map((name, layer) => {
    const middle = row * (layer + 0.5);
    if (row >= 12 || layer % 2 === 0) svg.append(shape("text", { x: 0, y: middle + 4 }, name));
    return data.windows.loads[0][layer].map((_, expert) => {
      const place = { x: left + cell * expert, y: row * layer, width: cell - gap, height: row - gap };
      const rect = shape("rect", { ...place, rx: gap ? 3 : 0, "data-layer": layer, "data-expert": expert });
      svg.append(rect);
      return rect;
    });
  });
  const every = Math.max(1, Math.ceil(28 / cell));
  for (let expert = 0; expert < numExperts; expert += every) {
    const place = { x: left + cell * (expert + 0.5) - gap / 2, y: height - 6, "text-anchor": "middle" };
    svg.append(shape("text", place, expert));
  }
  svg.append(shape("text", { x: 0, y: height - 6 }, "expert"));
  svg.addEventListener("pointermove", (event) => {
    const { layer, expert } = event.target.dataset;
    if (expert === undefined) return tooltip(null, null);
    const load = data.windows.loads[shown][layer][expert];
    tooltip(event, `${data.layers[layer]}, expert ${expert}\n${loadText(load)}`);
  });
  svg.addEventListener("pointerleave", () => tooltip(null, null));
  target.replaceChildren(svg);
  return (window) => {
    shown = window;
    const colorOf = loadColors();
    data.windows.loads[window].forEach((loads, layer) =>
      loads.forEach((load, expert) => cells[layer][expert].setAttribute("fill", colorOf(load))),
    );
  };
}

function historyMap(target, data, layer, events) {
  const { steps, loads } = data.windows;
  const numExperts = loads[0][layer].length;
  const width = target.clientWidth || 1000, left = 72, bottom = 24;
  const row = Math.max(2, Math.min(22, 360 / numExperts));
  const height = row * numExperts + bottom;
  const ratio = window.devicePixelRatio || 1;
  const canvas = element("canvas", { width: width * ratio, height: height * ratio, role: "img" });
  canvas.setAttribute("aria-label", `Experts of ${data.layers[layer]} over ${steps.length} windows`);
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const column = (width - left) / steps.length;
  const gapX = column > 6 ? 1 : 0, gapY = row > 8 ? 1 : 0;
  const colorOf = loadColors();
  loads.forEach((layers, at) =>
    layers[layer].forEach((load, expert) => {
      pen.fillStyle = colorOf(load);
      // Cells without a gap overlap a little, or the ground would shine through between them.
      pen.fillRect(left + at * column, expert * row, column - gapX + (gapX ? 0 : 0.6), row - gapY + (gapY ? 0 : 0.6));
    }),
  );
  pen.strokeStyle = color("resume");
  pen.lineWidth = 1.5;
  pen.setLineDash([5, 4]);
  for (const mark of events.filter((mark) => mark.event === "resume")) {
    const after = steps.findIndex((step) => step > mark.step);
    if (after < 0) continue;
    pen.beginPath();
    pen.moveTo(left + after * column, 0);
    pen.lineTo(left + after * column, row * numExperts);
    pen.stroke();
  }
  labelHistory(pen, { left, row, column, height, steps, numExperts, width });
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const at = Math.floor((event.clientX - box.left - left) / column);
    const expert = Math.floor((event.clientY - box.top) / row);
    const load = loads[at]?.[layer]?.[expert];
    if (load === undefined) return tooltip(null, null);
    tooltip(event, `step ${steps[at].toLocaleString("en")}, expert ${expert}\n${loadText(load)}`);
  });
  canvas.addEventListener("pointerleave", () => tooltip(null, null));
  target.replaceChildren(canvas);
}

function labelHistory(pen, frame) {
  pen.fillStyle = color("soft");
  pen.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  const every = Math.ceil(14 / frame.row);
  for (let expert = 0; expert < frame.numExperts; expert += every) {
    pen.fillText(`expert ${expert}`, 0, Math.max(10, (expert + 0.5) * frame.row + 4));
  }
  const apart = Math.max(1, Math.ceil(90 / frame.column));
  for (let at = 0; at < frame.steps.length; at += apart) {
    const label = frame.steps[at].toLocaleString("en");
    const place = frame.left + (at + 0.5) * frame.column - pen.measureText(label).width / 2;
    pen.fillText(label, Math.min(place, frame.width - pen.measureText(label).width), frame.height - 6);
  }
}
