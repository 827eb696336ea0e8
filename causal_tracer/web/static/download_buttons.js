// A row of buttons that download a result: trigger('select', {index: the tab's name, value: the format}).
element.addEventListener('click', event => {
  const button = event.target.closest('[data-format]');
  if (button) trigger('select', { index: button.parentElement.dataset.downloads, value: button.dataset.format });
});
