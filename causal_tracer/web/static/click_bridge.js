// Reports a cell that is clicked on a Plotly map, or chosen in the table, to Gradio:
// trigger('select', {index: [row, column], value: ''}), which reaches Python as a gr.SelectData.
// The component's root holds <div data-plot="id of the map's component"> and the table. Plots are redrawn as a map
// fills in, so an observer finds each new one; a plot that has its listener already is skipped.
const taken = new WeakSet();

function plotted() {
  const holder = element.querySelector('[data-plot]');
  return holder ? document.querySelectorAll(`#${holder.dataset.plot} .js-plotly-plot`) : [];
}

function choose(row, column) {
  element.querySelectorAll('td button').forEach(button => {
    const chosen = Number(button.dataset.row) === row && Number(button.dataset.column) === column;
    button.tabIndex = chosen ? 0 : -1;
    if (chosen) button.setAttribute('aria-current', 'true');
    else button.removeAttribute('aria-current');
  });
  trigger('select', { index: [row, column], value: '' });
}

function take() {
  plotted().forEach(plot => {
    if (taken.has(plot) || typeof plot.on !== 'function') return;
    taken.add(plot);
    plot.on('plotly_click', event => {
      const point = event.points[0];
      // A point's `x` and `y` are places on the axes, which count from 0 as rows and columns do.
      choose(Math.round(point.y), Math.round(point.x));
    });
  });
}

// Gradio draws each update of a map into a new element. The window's resize listener would keep the old one in memory.
function release(node) {
  if (node.isConnected || !node.querySelectorAll) return;
  [node, ...node.querySelectorAll('.js-plotly-plot')].forEach(plot => {
    if (plot._responsiveChartHandler) removeEventListener('resize', plot._responsiveChartHandler);
  });
}

const observer = new MutationObserver(changes => {
  changes.forEach(change => change.removedNodes.forEach(release));
  if (element.isConnected) take();
  else observer.disconnect();
});
observer.observe(document.body, { childList: true, subtree: true });
take();

element.addEventListener('click', event => {
  const button = event.target.closest('td button');
  if (button) choose(Number(button.dataset.row), Number(button.dataset.column));
});

element.addEventListener('keydown', event => {
  const button = event.target.closest('td button');
  const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!button || !move) return;
  event.preventDefault();
  const [row, column] = [Number(button.dataset.row) + move[0], Number(button.dataset.column) + move[1]];
  const next = element.querySelector(`td button[data-row="${row}"][data-column="${column}"]`);
  if (!next) return;
  button.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
