// The slider of `widgets.flip_book`: it shows one of the frames that the page already has.
function start(root) {
  const frames = root.querySelectorAll("[data-frame]"), slider = root.querySelector("input");
  slider.addEventListener("input", () => {
    frames.forEach((frame, i) => { frame.hidden = i !== Number(slider.value); });
    const name = frames[slider.value].dataset.frame;
    root.querySelector("output").textContent = name;
    slider.setAttribute("aria-valuetext", name);
  });
  root.querySelector("label").hidden = false;
}
