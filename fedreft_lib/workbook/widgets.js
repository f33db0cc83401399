// What the HTML widgets have in common.

// Starts each output with this id, once. In JupyterLab plain keys are commands: arrows move between cells, "x" cuts one.
// So they stay in the widget. What leaves it: Escape, Shift+Enter (runs the cell), and everything with Ctrl, Alt or Meta.
function mount(id, start) {
  document.querySelectorAll(`[data-fedreft="${id}"]:not([data-started])`).forEach((root) => {
    root.dataset.started = "";
    start(root);
    root.addEventListener("keydown", (event) => {
      const runs = event.shiftKey && event.key === "Enter";
      const leaves = runs || event.key === "Escape" || event.ctrlKey || event.altKey || event.metaKey;
      if (!leaves) event.stopPropagation();
    });
  });
}
