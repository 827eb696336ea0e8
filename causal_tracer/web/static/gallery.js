// Opens the gallery and reports the chosen card: trigger('select', {value: name}).
const dialog = element.querySelector('dialog');
const cards = [...dialog.querySelectorAll('[data-entry]')];

element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (button && 'gallery' in button.dataset) {
    dialog.showModal();
    cards[0].focus();
  } else if (button) {
    dialog.close();
    if (!button.dataset.entry) return;
    // The entry's subject and answer belong to the entry's prompt, which comes with them (`fields_changed.js`).
    const page = window.causalTracer ??= {};
    page.subject = page.answer = null;
    page.noRun?.();
    page.showTabs?.();
    trigger('select', { index: 0, value: button.dataset.entry });
  } else if (event.target === dialog) dialog.close();
});

dialog.addEventListener('keydown', event => {
  // Else the arrow keys would also move the story behind the dialog.
  event.stopPropagation();
  const at = cards.indexOf(event.target);
  const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: cards.length - 1 }[event.key];
  if (at < 0 || !cards[to]) return;
  event.preventDefault();
  cards[to].focus();
});
