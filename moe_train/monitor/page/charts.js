// Line charts as SVG, and what every figure on the page shares: elements, colours, numbers, the tooltip.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const MAX_DOTS = 60;

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

function mix(from, to, share) {
  const a = channels(from), b = channels(to);
  return `rgb(${a.map((value, i) => Math.round(value + (b[i] - value) * share)).join(",")})`;
}

function number(value, unit = "") {
  if (value === null || value === undefined) return "–";
  if (unit === "%") return `${(100 * value).toFixed(value < 0.1 ? 1 : 0)}%`;
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  if (size > 0 && size < 0.01) return value.toPrecision(3);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
}

function tooltip(event, text) {
  const box = document.getElementById("tooltip");
  box.hidden = text === null;
  if (text === null) return;
  box.textContent = text;
  const room = window.innerWidth - box.offsetWidth - 12;
  box.style.left = `${Math.min(event.clientX + 14, room)}px`;
  box.style.top = `${Math.max(8, Math.min(event.clientY + 14, window.innerHeight - box.offsetHeight - 8))}px`;
}

// Round values for an axis: 1, 2 or 5 times a power of ten apart.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9) || 0; i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

// Ticks share their number of decimals: as many as their distance needs.
function tickText(value, apart, unit) {
  const [shown, distance] = unit === "%" ? [100 * value, 100 * apart] : [value, apart];
  const decimals = Math.max(0, -Math.floor(Math.log10(distance) + 1e-9));
  return `${shown.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals })}${unit ?? ""}`;
}

// The highest value after the first `skip` of the steps: a loss falls so far at first that nothing else could be seen.
function highest(series, first, last, skip) {
  const from = first + skip * (last - first);
  const seen = series.flatMap((line) => line.values.filter((value, i) => value !== null && line.steps[i] >= from));
  return Math.max(...seen);
}

// series: [{name, color, steps, values, dots}]; options: {height, unit, low, skip, events}
function lineChart(target, series, options) {
  const width = target.clientWidth || 1000, height = options.height;
  const left = 48, right = 14, top = 10, bottom = 26;
  const steps = series.flatMap((line) => line.steps);
  const values = series.flatMap((line) => line.values).filter((value) => value !== null);
  const first = Math.min(...steps), last = Math.max(...steps, first + 1);
  let low = options.low ?? Math.min(...values), high = highest(series, first, last, options.skip ?? 0);
  if (!values.length) [low, high] = [0, 1];
  if (high - low < 1e-9) high = low + (Math.abs(low) || 0.01);
  high += (high - low) * 0.04;
  const x = (step) => left + ((step - first) / (last - first)) * (width - left - right);
  const y = (value) => Math.max(top, height - bottom - ((value - low) / (high - low)) * (height - top - bottom));

  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
  svg.setAttribute("aria-label", series.map((line) => line.name).join(", "));
  const heights = ticks(low, high, height / 45);
  for (const value of heights) {
    svg.append(shape("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(shape("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end" }, tickText(value, heights[1] - heights[0], options.unit)));
  }
  for (const step of ticks(first, last, width / 110).filter(Number.isInteger)) {
    const anchor = x(step) > width - right - 24 ? "end" : "middle";
    const at = anchor === "end" ? width - 2 : x(step);
    svg.append(shape("text", { x: at, y: height - 6, "text-anchor": anchor }, step.toLocaleString("en")));
  }
  let marked = -Infinity;
  for (const mark of options.events.filter((mark) => mark.step >= first && mark.step <= last)) {
    const at = { x1: x(mark.step), x2: x(mark.step) };
    // Where checkpoints are closer than their ticks could be told apart, some ticks are left out.
    if (mark.event === "checkpoint" && x(mark.step) - marked >= 5) {
      marked = x(mark.step);
      svg.append(shape("line", { class: "checkpoint", ...at, y1: height - bottom, y2: height - bottom + 6 }));
    } else if (mark.event === "resume") {
      const line = shape("line", { class: "resume", ...at, y1: top, y2: height - bottom });
      line.append(shape("title", {}, `attempt ${mark.attempt} resumed from step ${mark.step}`));
      svg.append(line);
    }
  }
  for (const line of series) svg.append(...drawLine(line, x, y));
  target.replaceChildren(svg, legend(series));
  followPointer(svg, series, { x, first, last, left, right, top, width, bottom: height - bottom, unit: options.unit });
}

// A value that is missing breaks the line, and a lone point is drawn as a dot.
function drawLine(line, x, y) {
  let path = "", pen = "M";
  line.values.forEach((value, i) => {
    if (value === null) pen = "M";
    else {
      path += `${pen}${x(line.steps[i]).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
    }
  });
  const drawn = [shape("path", { class: "series", d: path, stroke: line.color, "data-name": line.name })];
  if ((line.dots && line.values.length <= MAX_DOTS) || line.values.length === 1) {
    line.values.forEach((value, i) => {
      if (value !== null) drawn.push(shape("circle", { cx: x(line.steps[i]), cy: y(value), r: 3.2, fill: line.color }));
    });
  }
  return drawn;
}

function legend(series) {
  const box = element("div", { class: "legend" });
  const shown = series.length > 8 ? [series[0], series[series.length - 1]] : series;
  for (const line of shown) {
    const swatch = element("span", { class: "swatch" });
    swatch.style.background = line.color;
    box.append(element("span", {}, swatch, line.name));
  }
  if (series.length > 8) box.insertBefore(document.createTextNode("to"), box.lastChild);
  return box;
}

function followPointer(svg, series, frame) {
  const cursor = shape("line", { class: "cursor", y1: frame.top, y2: frame.bottom, visibility: "hidden" });
  svg.append(cursor);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * frame.width;
    const share = (at - frame.left) / (frame.width - frame.left - frame.right);
    const wanted = frame.first + Math.min(1, Math.max(0, share)) * (frame.last - frame.first);
    const lead = nearest(series[0].steps, wanted);
    const step = series[0].steps[lead];
    cursor.setAttribute("x1", frame.x(step));
    cursor.setAttribute("x2", frame.x(step));
    cursor.setAttribute("visibility", "visible");
    const lines = series.slice(0, 16).filter((line) => line.steps.length).map((line) => {
      const i = nearest(line.steps, step);
      const where = line.steps[i] === step ? "" : ` (step ${line.steps[i]})`;
      return `${line.name}  ${number(line.values[i], frame.unit)}${where}`;
    });
    if (series.length > 16) lines.push(`and ${series.length - 16} more`);
    tooltip(event, [`step ${step.toLocaleString("en")}`, ...lines].join("\n"));
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    tooltip(null, null);
  });
}

function nearest(sorted, wanted) {
  let low = 0, high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < wanted) low = middle;
    else high = middle;
  }
  return wanted - sorted[low] <= sorted[high] - wanted ? low : high;
}
