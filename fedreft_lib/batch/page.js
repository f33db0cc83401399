// What a page gains where scripts run. Without them its text, figures and code are all there.
{
  const all = (selector) => [...document.querySelectorAll(selector)];
  const narrow = matchMedia("(max-width: 60em)");

  // The contents mark where the reader is: at the last heading above a line across the upper part of the window.
  const links = new Map(all("nav a").map((link) => [decodeURIComponent(link.hash.slice(1)), link]));
  const headings = [...links.keys()].map((id) => document.getElementById(id));
  const above = new Set();
  const follow = (entries) => {
    entries.forEach(({ target, isIntersecting }) => above[isIntersecting ? "add" : "delete"](target));
    const here = headings.findLast((heading) => above.has(heading));
    links.forEach((link, id) => (id === here?.id ? link.setAttribute("aria-current", "true")
                                                 : link.removeAttribute("aria-current")));
    const link = links.get(here?.id), box = link?.closest("nav");
    if (box && box.scrollHeight > box.clientHeight) {
      box.scrollTop += link.getBoundingClientRect().top - box.getBoundingClientRect().top - box.clientHeight / 3;
    }
  };
  const line = new IntersectionObserver(follow, { rootMargin: "10000000px 0px -75% 0px" });
  headings.forEach((heading) => line.observe(heading));

  // On a phone they fold again when one is chosen.
  const contents = document.getElementById("contents");
  links.forEach((link) => link.addEventListener("click", () => (contents.open = !narrow.matches)));

  // One switch for all code.
  const code = document.getElementById("all-code");
  code?.addEventListener("click", () => {
    const shown = code.getAttribute("aria-pressed") !== "true";
    code.setAttribute("aria-pressed", shown);
    all("details.code").forEach((details) => (details.open = shown));
  });
  if (code) code.hidden = false;

  // What scrolls sideways can be reached, and so be scrolled, with the keyboard.
  const scrolls = new ResizeObserver((entries) => entries.forEach(({ target }) => {
    if (target.scrollWidth > target.clientWidth) {
      target.tabIndex = 0;
      target.setAttribute("role", "group");
      target.setAttribute("aria-label", target.matches("pre") ? "text, scrolls sideways" : "table, scrolls sideways");
    } else ["tabindex", "role", "aria-label"].forEach((name) => target.removeAttribute(name));
  }));
  all(".table, .card, pre").forEach((element) => scrolls.observe(element));

  // A figure opens in full size; Escape, the button or a click beside it closes it.
  const full = document.createElement("dialog");
  full.setAttribute("aria-label", "figure in full size");
  full.innerHTML = '<form method="dialog"><button>Close</button></form><div tabindex="0"><img alt=""></div>';
  full.addEventListener("click", (event) => event.target === full && full.close());
  const enlarge = (picture) => {
    const copy = full.querySelector("img");
    copy.src = picture.src;
    copy.alt = picture.alt;
    const fitting = Math.min(picture.naturalWidth, 0.98 * innerWidth - 26); // less the padding
    copy.style.width = `${Math.max(fitting, parseFloat(picture.style.width) || 0)}px`;
    full.showModal();
  };
  all("main img").forEach((picture) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "figure", title: "open in full size" });
    picture.replaceWith(button);
    button.append(picture);
    button.addEventListener("click", () => enlarge(picture));
  });
  document.body.append(full);
}
