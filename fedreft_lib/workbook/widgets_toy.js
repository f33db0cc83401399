// The toy federation of `widgets.lam_toy`: the arithmetic (checked against fedreft_lib.aggregation), then the picture.

// Weights a (N,) with the geometric median of the points at sum_j a_j x_j: Weiszfeld's iteration from the mean, with
// Vardi and Zhang's rule for a median that is one of the points. p: importances; 0 leaves a point out.
function medianWeights(points, p) {
  const sum = (list) => list.reduce((a, b) => a + b, 0);
  const at = (a) => [0, 1].map((axis) => sum(a.map((weight, j) => weight * points[j][axis])));
  const far = (x, y) => Math.hypot(x[0] - y[0], x[1] - y[1]);
  p = p.map((weight) => weight / sum(p));
  let a = p.slice();
  const scale = Math.max(...points.map((x) => far(x, points[0])));
  // At sum_j a_j x_j: the gradient over the points that this is not on, and those that it is on: they hold it there
  // while the others pull with no more than their weight.
  const look = (a) => {
    const z = at(a);
    const distance = points.map((x) => far(x, z) / scale);
    const on = p.map((weight, j) => (distance[j] <= 1e-7 ? weight : 0));
    const pull = p.map((weight, j) => (distance[j] <= 1e-7 ? 0 : weight / distance[j]));
    const [held, total] = [sum(on), sum(pull)];
    const gradient = a.map((weight, j) => total * weight - pull[j]);
    const norm = Math.hypot(...at(gradient)) / scale;
    return { distance, on, held, total, gradient, norm, optimal: norm - held <= 1e-10 };
  };
  // Next to a point that nearly holds the median a step is far too short. This is how many times as long it may be while
  // the cost still falls at its end and no weight becomes negative.
  const longer = (a, way) => {
    const [z, d] = [at(a), at(way)];
    const slope = (t) =>
      sum(points.map((x, j) => {
        const away = [0, 1].map((axis) => z[axis] + t * d[axis] - x[axis]);
        return (p[j] * (away[0] * d[0] + away[1] * d[1])) / (Math.hypot(...away) || 1);
      }));
    const most = Math.min(...a.map((weight, j) => (way[j] < 0 ? weight / -way[j] : Infinity)));
    let t = 1;
    while (2 * t < most && slope(2 * t) < 0) t *= 2;
    return t;
  };
  for (let round = 0; scale > 0 && round < 2000; round++) {
    const here = look(a);
    if (here.optimal && here.held === 0) return a;
    const distance = here.distance.map((d, j) => (p[j] > 0 ? d : Infinity));
    const nearest = distance.indexOf(Math.min(...distance)); // steps towards a point would never arrive: try it
    const there = here.optimal ? here : look(p.map((_, j) => (j === nearest ? 1 : 0)));
    if (there.optimal) return there.on.map((weight) => weight / there.held); // clients in one place share by weight
    const step = Math.max(1 - here.held / here.norm, 0) / here.total;
    const way = here.gradient.map((each) => -step * each);
    const length = round >= 128 && round % 8 === 0 ? longer(a, way) : 1;
    a = a.map((weight, j) => Math.max(weight + length * way[j], 0));
  }
  return a;
}

// What client k receives under a rule, and where it ends up: {weights (N,), received, end}, points as [x, y].
function receive(points, k, rule, lam) {
  const others = points.map((_, j) => (rule !== "fedavg" && j === k ? 0 : 1));
  const count = others.reduce((a, b) => a + b, 0);
  const weights = rule === "median" ? medianWeights(points, others) : others.map((o) => o / count);
  const received = [0, 1].map((axis) => weights.reduce((total, w, j) => total + w * points[j][axis], 0));
  const share = rule === "fedavg" ? 1 : lam; // FedAvg replaces a client's state altogether
  return { weights, received, end: [0, 1].map((axis) => (1 - share) * points[k][axis] + share * received[axis]) };
}

// Puts the picture (`markup`) into `root`, with clients at `places`.
function start(root, markup, places) {
  root.innerHTML = markup;
  const RULES = {
    fedavg: { name: "FedAvg: mean of all", colour: "#D07C00" },
    mean: { name: "mean of the others", colour: "#3A9AD9" },
    median: { name: "geometric median of the others", colour: "#0072B2" },
  };
  const WIDTH = 600, HEIGHT = 340, UNIT = 60;
  const points = places.map((point) => point.slice());
  const find = (part) => root.querySelector(`[data-part="${part}"]`);
  const svg = find("plane"), marks = find("marks");
  const screen = ([x, y]) => [40 + UNIT * x, HEIGHT - 40 - UNIT * y];
  const round = (value, digits = 2) => value.toFixed(digits).replace("-0.00", "0.00");
  const place = (point) => `(${round(point[0])}, ${round(point[1])})`;
  const add = (parent, name, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    return parent.appendChild(node);
  };

  const knobs = points.map((_, k) => {
    const knob = add(svg, "g", { tabindex: 0, role: "slider", style: "cursor:grab;touch-action:none" });
    add(knob, "circle", { r: 13, fill: "#888888", "fill-opacity": 0.35, stroke: "currentColor", "stroke-width": 1.5 });
    add(knob, "circle", { r: 28, fill: "transparent" }); // a finger needs more room
    add(knob, "text", { "text-anchor": "middle", dy: "0.35em", "font-size": 14, fill: "currentColor" }).textContent = k + 1;
    knob.addEventListener("pointerdown", (event) => {
      knob.setPointerCapture(event.pointerId);
      find("client").value = k;
      draw();
    });
    knob.addEventListener("pointermove", (event) => {
      if (!knob.hasPointerCapture(event.pointerId)) return;
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      move(k, [(at.x - 40) / UNIT, (HEIGHT - 40 - at.y) / UNIT]);
    });
    knob.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[event.key];
      if (!step) return;
      event.preventDefault();
      move(k, [points[k][0] + step[0], points[k][1] + step[1]]);
    });
    return knob;
  });

  function move(k, [x, y]) {
    const within = (value, most) => Math.min(Math.max(value, -0.4), most);
    points[k] = [within(x, (WIDTH - 60) / UNIT), within(y, (HEIGHT - 60) / UNIT)];
    draw();
  }

  function draw() {
    const lam = Number(find("lam").value), client = Number(find("client").value);
    find("lam-value").textContent = round(lam);
    marks.replaceChildren();
    const rows = Object.keys(RULES).map((rule) => {
      const { name, colour } = RULES[rule];
      const all = points.map((_, k) => receive(points, k, rule, lam));
      const mine = all[client];
      if (find(rule).checked) {
        all.forEach(({ end }, k) => {
          const [x1, y1] = screen(points[k]), [x2, y2] = screen(end), chosen = k === client;
          add(marks, "line", { x1, y1, x2, y2, stroke: colour, "stroke-width": chosen ? 3 : 1, opacity: chosen ? 1 : 0.6 });
          add(marks, "circle", { cx: x2, cy: y2, r: chosen ? 6 : 3.5, fill: colour });
        });
        const [x, y] = screen(mine.received);
        add(marks, "path", { d: `M${x - 8} ${y}h16M${x} ${y - 8}v16`, stroke: colour, "stroke-width": 3.5 });
      }
      const weights = mine.weights.map((w) => round(w)).join(" ");
      return [name, weights, place(mine.received), place(mine.end)];
    });
    find("rows").replaceChildren(...rows.map((cells) => {
      const tr = document.createElement("tr");
      tr.append(...cells.map((text, i) => {
        const cell = document.createElement(i ? "td" : "th");
        cell.textContent = text;
        return cell;
      }));
      return tr;
    }));
    find("caption").textContent = `Client ${client + 1} is at ${place(points[client])}, with λ ${round(lam)}`;
    knobs.forEach((knob, k) => {
      knob.setAttribute("transform", `translate(${screen(points[k])})`);
      knob.setAttribute("aria-label", `client ${k + 1}; move it with the arrow keys`);
      knob.setAttribute("aria-valuenow", round(points[k][0]));
      knob.setAttribute("aria-valuetext", `at ${place(points[k])}`);
      knob.firstChild.setAttribute("stroke-width", k === client ? 3.5 : 1.5);
    });
  }

  root.querySelectorAll("input, select").forEach((control) => control.addEventListener("input", draw));
  find("reset").addEventListener("click", () => { places.forEach((point, k) => (points[k] = point.slice())); draw(); });
  draw();
}
