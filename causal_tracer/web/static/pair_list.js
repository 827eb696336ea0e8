// The chosen pairs. A button removes one pair or all: trigger('select', {index: its place or -1, value: 'remove'}). The
// pairs' cells are marked in the lenses of source and base.
function mark() {
  const lenses = document.querySelector('#ct-patch-lenses');
  lenses?.querySelectorAll('.ct-paired').forEach(cell => cell.classList.remove('ct-paired'));
  element.querySelectorAll('[data-pair]').forEach(item => {
    const [sourceRow, sourceColumn, baseRow, baseColumn] = item.dataset.pair.split(',').map(Number);
    [['source', sourceRow, sourceColumn], ['base', baseRow, baseColumn]].forEach(([name, row, column]) =>
      lenses?.querySelector(`table[data-lens="${name}"]`)?.tBodies[0].rows[row]?.cells[column + 1]?.classList.add('ct-paired'));
  });
}

element.addEventListener('click', event => {
  const button = event.target.closest('[data-remove]');
  if (button) trigger('select', { index: button.dataset.remove === 'all' ? -1 : Number(button.dataset.remove), value: 'remove' });
});
watch('value', mark);
mark();
