// The flip book of `style_book.flip_book`. Texts are put in as text, never as HTML.

function start(root, markup, { lams, clients, texts, looks }) {
  root.innerHTML = markup;
  const find = (part) => root.querySelector(`[data-part="${part}"]`);
  const slider = find("lam"), question = find("question");
  const add = (parent, name, className, text = "") => {
    const node = parent.appendChild(document.createElement(name));
    node.className = className;
    node.textContent = text;
    return node;
  };
  const style = (client, q, n) => texts[client.asked[q].texts[n]][1];
  const words = (name) => (name === "none" ? "no known style" : name);
  const paint = (node, name) => {
    node.style.background = looks[name].colour;
    node.style.color = looks[name].ink;
  };

  slider.max = lams.length - 1;
  clients[0].asked.forEach((_, q) => { add(question, "option", "", q + 1).value = q; });
  const cards = clients.map((client) => {
    const card = add(find("cards"), "div", "card-of"), top = add(card, "div", "top");
    add(top, "span", "", client.name);
    const parts = { chip: add(top, "span", "chip"), asked: add(card, "div", ""), text: add(card, "div", "text") };
    const strip = add(card, "div", "strip"), ends = add(card, "div", "ends");
    strip.setAttribute("role", "img");
    const cells = lams.map(() => add(strip, "span", ""));
    add(ends, "span", "", "λ 0: its own state");
    add(ends, "span", "", "the others': λ 1");
    const turn = (event) => {
      const box = strip.getBoundingClientRect(), at = (event.clientX - box.left) / box.width;
      slider.value = Math.min(Math.max(Math.floor(at * lams.length), 0), lams.length - 1);
      draw();
    };
    strip.addEventListener("pointerdown", (event) => { strip.setPointerCapture(event.pointerId); turn(event); });
    strip.addEventListener("pointermove", (event) => { if (strip.hasPointerCapture(event.pointerId)) turn(event); });
    return { ...parts, strip, cells };
  });

  // "telegram from λ 0, no known style from λ 0.4": the strip, for those who cannot see it.
  function told(client, q) {
    const found = lams.map((lam, n) => [style(client, q, n), lam]);
    const begins = found.filter(([name], n) => n === 0 || name !== found[n - 1][0]);
    return begins.map(([name, lam]) => `${words(name)} from λ ${lam}`).join(", ");
  }

  function draw() {
    const n = Number(slider.value), q = Number(question.value);
    find("value").textContent = lams[n];
    slider.setAttribute("aria-valuetext", lams[n]);
    clients.forEach((client, k) => {
      const { chip, asked, text, strip, cells } = cards[k], name = style(client, q, n);
      chip.textContent = `${looks[name].mark} ${words(name)}`;
      paint(chip, name);
      asked.textContent = client.asked[q].question;
      text.textContent = texts[client.asked[q].texts[n]][0];
      text.style.borderColor = looks[name].colour;
      text.style.background = `${looks[name].colour}2b`;
      strip.setAttribute("aria-label", `${client.name}: ${told(client, q)}`);
      cells.forEach((cell, i) => {
        cell.textContent = looks[style(client, q, i)].mark;
        cell.classList.toggle("here", i === n);
        paint(cell, style(client, q, i));
      });
    });
    const styled = clients.filter((client) => client.own in looks);
    const kept = (q) => styled.filter((client) => style(client, q, n) === client.own).length;
    const all = clients[0].asked.map((_, each) => kept(each)).reduce((a, b) => a + b, 0);
    const total = styled.length * clients[0].asked.length;
    find("said").textContent = styled.length
      ? `At λ ${lams[n]}, ${kept(q)} of ${styled.length} answers are in the client's own style; ` +
        `of all ${total} in this book, ${all}.`
      : `λ ${lams[n]}`;
  }

  slider.addEventListener("input", draw);
  question.addEventListener("change", draw);
  draw();
}
