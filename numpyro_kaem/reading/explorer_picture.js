// What the generator makes of a latent, or a datum: a picture, a line or a text.

export function render({ model }) {
  const frame = document.createElement("div");
  const draw = () => {
    const { kind, content } = model.shown;
    frame.className = `frame ${kind}`;
    if (kind === "image") {
      // The picture that is there is replaced when the next one is ready, so nothing flickers.
      const image = frame.querySelector("img") || document.createElement("img");
      image.alt = model.says;
      image.draggable = false;
      image.src = content;
      frame.replaceChildren(image);
    } else if (kind === "line") {
      const paper = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      paper.setAttribute("viewBox", "0 0 100 60");
      paper.setAttribute("role", "img");
      paper.setAttribute("aria-label", model.says);
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("d", content);
      paper.append(path);
      frame.replaceChildren(paper);
    } else {
      const text = document.createElement("pre");
      text.textContent = content;
      frame.replaceChildren(text);
    }
  };
  model.on("shown", draw);
  draw();
  return frame;
}
