// The handles of the explorer: a card for each coordinate, with its density, a handle on it, and a slider of probability.

const WIDTH = 220, HEIGHT = 72, FOOT = 66;
const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes = {}, ...children) {
  const of = ["svg", "path", "line", "circle"].includes(name);
  const element = of ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// Values of rising `x` at `at`, linear in between, constant beyond.
function interpolate(at, x, y) {
  if (at <= x[0]) return y[0];
  let low = 0, high = x.length - 1;
  if (at >= x[high]) return y[high];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (x[middle] <= at) low = middle; else high = middle;
  }
  const width = x[high] - x[low];
  return width > 0 ? y[low] + (y[high] - y[low]) * (at - x[low]) / width : y[low];
}

function card(data, moved, resampled) {
  const { coordinate, points, density, reference, quantiles } = data;
  const probabilities = quantiles.map((_, i) => (i + 1) / (quantiles.length + 1));
  const first = points[0], last = points[points.length - 1];
  const top = Math.max(...density, ...(reference || [0])) || 1;
  const across = z => WIDTH * (z - first) / (last - first);
  const up = p => FOOT - (FOOT - 8) * p / top;
  const curve = values => "M" + values.map((p, i) => `${across(points[i]).toFixed(1)} ${up(p).toFixed(1)}`).join("L");
  const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "density", "aria-hidden": "true" });
  if (reference) svg.append(make("path", { d: `${curve(reference)}L${WIDTH} ${FOOT}L0 ${FOOT}Z`, class: "reference" }));
  svg.append(make("path", { d: `${curve(density)}L${WIDTH} ${FOOT}L0 ${FOOT}Z`, class: "mass" }));
  svg.append(make("path", { d: curve(density), class: "learned" }));
  svg.append(make("line", { x1: 0, x2: WIDTH, y1: FOOT, y2: FOOT, class: "axis" }));
  const stem = svg.appendChild(make("line", { class: "stem", y2: FOOT }));
  const knob = svg.appendChild(make("circle", { class: "knob", r: 6 }));

  const slider = make("input", { type: "range", min: 0.001, max: 0.999, step: 0.001, class: "slider" });
  slider.setAttribute("aria-label", `${data.name}, probability below`);
  const numbers = make("output", { class: "numbers" });
  const again = make("button", { type: "button", class: "again", title: `Draw ${data.name} anew` }, "↻");
  again.setAttribute("aria-label", `Draw ${data.name} anew`);
  again.addEventListener("click", () => resampled(coordinate));
  const head = make("div", { class: "head" }, make("strong", {}, data.name));
  if (data.effect) head.append(make("span", { class: "effect", title: data.effect_title }, data.effect));
  head.append(again);
  const row = make("div", { class: "row" }, svg);
  if (data.map && data.map.kind === "image") {
    row.append(make("img", { class: "map", src: data.map.content, alt: `Where ${data.name} has its effect`, draggable: "false" }));
  } else if (data.map) {
    const of = make("svg", { class: "map", viewBox: "0 0 100 60", preserveAspectRatio: "none", role: "img" });
    of.setAttribute("aria-label", `Where ${data.name} has its effect`);
    of.append(make("path", { d: data.map.content, class: "learned" }));
    row.append(of);
  }
  const element = make("section", { class: "card", "data-name": data.name }, head, row, slider, numbers);

  function place(z, probability) {
    const x = Math.min(Math.max(across(z), 0), WIDTH), y = up(interpolate(z, points, density));
    knob.setAttribute("cx", x);
    knob.setAttribute("cy", y);
    stem.setAttribute("x1", x);
    stem.setAttribute("x2", x);
    stem.setAttribute("y1", y);
    slider.value = probability;
    const text = [`z = ${z.toFixed(2)}`, `quantile ${probability.toFixed(3)}`];
    numbers.replaceChildren(...text.map(part => make("span", {}, part)));
    slider.setAttribute("aria-valuetext", text.join(", "));
  }

  function move(probability) {
    const rounded = Math.round(1000 * Math.min(Math.max(probability, 0.001), 0.999)) / 1000;
    place(interpolate(rounded, probabilities, quantiles), rounded);
    moved(coordinate, rounded);
  }

  slider.addEventListener("input", () => move(+slider.value));
  slider.addEventListener("keydown", event => {
    const way = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (!way) return;
    event.preventDefault();
    move(+slider.value + way * (event.shiftKey ? 0.001 : 0.01));
  });
  const drag = event => {
    const box = svg.getBoundingClientRect();
    const z = first + (last - first) * (event.clientX - box.left) / box.width;
    move(interpolate(z, quantiles, probabilities));
  };
  svg.addEventListener("pointerdown", event => {
    svg.setPointerCapture(event.pointerId);
    slider.focus({ preventScroll: true });
    drag(event);
    event.preventDefault();
  });
  svg.addEventListener("pointermove", event => { if (svg.hasPointerCapture(event.pointerId)) drag(event); });
  return { element, place };
}

export function render({ model }) {
  const grid = make("div", { class: "cards" });
  let cards = [];
  // While the picture of a move is on its way, only the last place of each handle is kept: pictures never lag behind.
  const waiting = new Map();
  let sent = 0, done = 0;
  const send = () => {
    if (sent > done || !waiting.size) return;
    sent += 1;
    model.send_msg({ kind: "move", number: sent, moves: [...waiting] });
    waiting.clear();
  };
  const moved = (coordinate, probability) => {
    waiting.set(coordinate, probability);
    send();
  };
  const resampled = coordinate => model.send_msg({ kind: "resample", coordinate });
  const draw = () => {
    cards = model.cards.map(data => card(data, moved, resampled));
    waiting.clear();
    grid.replaceChildren(...cards.map(one => one.element));
    cards.forEach((one, i) => one.place(...model.cards[i].place));
  };
  model.on("cards", draw);
  model.on("msg:custom", message => {
    if (message.kind === "places") {
      waiting.clear();
      message.places.forEach((place, i) => { if (cards[i]) cards[i].place(...place); });
    } else {
      done = message.number;
      send();
    }
  });
  draw();
  return grid;
}
