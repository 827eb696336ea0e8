// The cells of lenses. Arrow keys, Home and End move the focus; a click, Enter or Space chooses a cell:
// trigger('select', {index: [row, column], value: the grid's name}).
// A cell of the grid "source" and one of the grid "base", chosen in any order or dragged one onto the other, make a pair:
// trigger('select', {index: [source row, source column, base row, base column], value: 'pair'}).
let chosen = {};
let focused = null;
const scrolled = {};
const grid = name => element.querySelector(`table[data-lens="${name}"]`);
const nameOf = cell => cell.closest('table').dataset.lens;
const place = cell => [cell.parentElement.sectionRowIndex, cell.cellIndex - 1];
const cellAt = (name, [row, column]) => column < 0 ? null : grid(name)?.tBodies[0].rows[row]?.cells[column + 1];
const cellOf = event => event.target.closest?.('table[data-lens] td');

function mark(name, cell) {
  if (chosen[name]) chosen[name].removeAttribute('aria-selected');
  chosen[name] = cell;
  if (cell) cell.setAttribute('aria-selected', 'true');
}

function say() {
  const line = element.querySelector('[data-hint]');
  if (!line) return;
  const name = chosen.source ? 'source' : chosen.base ? 'base' : null;
  if (!name) { line.textContent = line.dataset.hint; return; }
  const cell = chosen[name];
  const token = cell.parentElement.cells[0].textContent;
  const other = name === 'source' ? 'base that takes its value' : 'source whose value it takes';
  line.textContent = `${name === 'source' ? 'Source' : 'Base'}: “${token}”, layer ${place(cell)[1]}. Now choose the cell of the ${other}, or press Escape.`;
}

function clear() {
  ['source', 'base'].forEach(name => mark(name, null));
  say();
}

function choose(cell) {
  const name = nameOf(cell);
  if (name !== 'source' && name !== 'base') {
    mark(name, cell);
    trigger('select', { index: place(cell), value: name });
    return;
  }
  mark(name, chosen[name] === cell ? null : cell);
  if (!chosen.source || !chosen.base) { say(); return; }
  trigger('select', { index: [...place(chosen.source), ...place(chosen.base)], value: 'pair' });
  clear();
}

function focus(cell, options) {
  grid(nameOf(cell)).querySelector('td[tabindex="0"]')?.setAttribute('tabindex', '-1');
  cell.tabIndex = 0;
  cell.focus(options);
}

element.addEventListener('click', event => {
  const cell = cellOf(event);
  if (!cell) return;
  focus(cell, { preventScroll: true });
  choose(cell);
});

element.addEventListener('keydown', event => {
  const cell = cellOf(event);
  if (!cell) return;
  const [row, column] = place(cell);
  const to = {
    ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
    Home: [row, 0], End: [row, cell.parentElement.cells.length - 2],
  }[event.key];
  if (!to && !['Enter', ' ', 'Escape'].includes(event.key)) return;
  event.preventDefault();
  if (event.key === 'Escape') clear();
  else if (!to) choose(cell);
  else {
    const next = cellAt(nameOf(cell), to);
    if (next) focus(next);
  }
});

element.addEventListener('dragstart', event => {
  const cell = cellOf(event);
  if (!cell) return;
  clear();
  mark('source', cell);
  say();
  event.dataTransfer.effectAllowed = 'copy';
  event.dataTransfer.setData('text/plain', cell.textContent);
});
element.addEventListener('dragover', event => {
  const cell = cellOf(event);
  if (!chosen.source || !cell || nameOf(cell) !== 'base') return;
  event.preventDefault();
  element.querySelector('.ct-over')?.classList.remove('ct-over');
  cell.classList.add('ct-over');
});
element.addEventListener('drop', event => {
  const cell = cellOf(event);
  if (!chosen.source || !cell || nameOf(cell) !== 'base') return;
  event.preventDefault();
  choose(cell);
});
element.addEventListener('dragend', () => {
  element.querySelector('.ct-over')?.classList.remove('ct-over');
  clear();
});

// A grid is redrawn with each new lens: focus and scroll position are restored.
element.addEventListener('focusin', event => {
  const cell = cellOf(event);
  focused = cell && { name: nameOf(cell), at: place(cell) };
});
element.addEventListener('focusout', event => { if (event.relatedTarget) focused = null; });
element.addEventListener('scroll', event => {
  const name = event.target.querySelector?.('table')?.dataset.lens;
  if (name && event.target.isConnected) scrolled[name] = [event.target.scrollLeft, event.target.scrollTop];
}, true);
watch('value', () => {
  chosen = {};
  Object.entries(scrolled).forEach(([name, [left, top]]) => grid(name)?.parentElement.scrollTo(left, top));
  const cell = focused && document.activeElement === document.body && cellAt(focused.name, focused.at);
  if (cell) focus(cell, { preventScroll: true });
});
