// A slider with its name, which keys and readers of the screen know.

export function render({ model }) {
  const name = document.createElement("span");
  const slider = document.createElement("input");
  slider.type = "range";
  slider.className = "slider";
  slider.max = model.end;
  const draw = () => {
    slider.value = model.value;
    slider.disabled = model.is_off;
    name.textContent = model.says;
  };
  slider.addEventListener("input", () => { model.value = +slider.value; });
  for (const property of ["value", "is_off", "says"]) model.on(property, draw);
  draw();
  const label = document.createElement("label");
  label.className = "named";
  label.append(name, slider);
  return label;
}
