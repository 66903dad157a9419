"use strict";
document.documentElement.classList.add("js");

// A slider shows one step of a path: a tile of its strip, a line among its lines, or a text among its texts.
for (const player of document.querySelectorAll(".player")) {
  const range = player.querySelector("input");
  const output = player.querySelector("output");
  const button = player.querySelector("button");
  const canvas = player.querySelector("canvas");
  const strip = player.querySelector("img.strip");
  const steps = player.querySelectorAll(".step");
  const mark = player.querySelector(".mark");
  const z = JSON.parse(range.dataset.z);
  const places = JSON.parse(range.dataset.places);

  const show = () => {
    const step = Number(range.value);
    output.value = z[step];
    range.setAttribute("aria-valuetext", `${range.dataset.name} = ${z[step]}`);
    mark.setAttribute("x1", places[step]);
    mark.setAttribute("x2", places[step]);
    steps.forEach((element, index) => element.classList.toggle("on", index === step));
    if (canvas && strip.complete) {
      const { width, height } = canvas;
      canvas.getContext("2d").drawImage(strip, step * width, 0, width, height, 0, 0, width, height);
    }
  };

  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  };
  button.addEventListener("click", () => {
    if (timer) return stop();
    button.textContent = "Stop";
    let direction = 1;
    timer = setInterval(() => {
      if (Number(range.value) + direction > Number(range.max) || Number(range.value) + direction < 0) direction *= -1;
      range.value = Number(range.value) + direction;
      show();
    }, 180);
  });
  range.addEventListener("input", () => {
    stop();
    show();
  });
  if (strip) strip.addEventListener("load", show);
  show();
}

// What is folded is printed, too.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  folded.forEach((details) => (details.open = true));
});
addEventListener("afterprint", () => folded.forEach((details) => (details.open = false)));
