// A whole number from 0, as a slider or in a box, with its name, which keys and readers of the screen know.

export function render({ model }) {
  const name = document.createElement("span");
  const input = document.createElement("input");
  input.type = model.kind;
  input.className = model.kind === "range" ? "slider" : "box";
  input.min = 0;
  input.max = model.end;
  const draw = () => {
    input.value = model.value;
    input.disabled = model.is_off;
    name.textContent = model.says;
  };
  input.addEventListener("input", () => { if (input.checkValidity() && input.value !== "") model.value = +input.value; });
  input.addEventListener("change", draw);
  for (const property of ["value", "is_off", "says"]) model.on(property, draw);
  draw();
  const label = document.createElement("label");
  label.className = "named";
  label.append(name, input);
  return label;
}
