// The prompt's tokens and the answers as buttons. Two clicks mark the subject's first and last token:
// trigger('select', {index: [first, last], value: 'subject'}). One click chooses an answer:
// trigger('select', {index: its place, value: 'answer'}).
const page = window.causalTracer ??= {};
let anchor = null;
let focused = null;
let prompt = '';
let soon;
const typedPrompt = () => document.querySelector('#ct-prompt textarea').value;

// A card, an example or a link fills in several fields: they are inspected once, by trigger('input').
page.inspectSoon = () => {
  clearTimeout(soon);
  soon = setTimeout(() => trigger('input'), 20);
};
if (page.fieldsChanged) page.inspectSoon();

function mark(first, last) {
  element.querySelectorAll('[data-token]').forEach(chip => {
    const place = Number(chip.dataset.token);
    chip.setAttribute('aria-pressed', String(place >= first && place <= last));
  });
}

element.addEventListener('click', event => {
  const chip = event.target.closest('[data-token], [data-answer]');
  if (!chip || chip.disabled) return;
  if ('answer' in chip.dataset) {
    // `fields_changed.js` clears the answer when its prompt changes.
    page.answer = chip.firstChild.textContent;
    page.answerPrompt = typedPrompt();
    trigger('select', { index: Number(chip.dataset.answer), value: 'answer' });
    return;
  }
  const place = Number(chip.dataset.token);
  const from = anchor === null ? place : anchor;
  anchor = anchor === null ? place : null;
  const [first, last] = [Math.min(from, place), Math.max(from, place)];
  mark(first, last);
  const end = place => element.querySelector(`[data-token="${place}"]`).dataset;
  // Offsets count Unicode characters, as in Python.
  page.clicked = [...typedPrompt()].slice(end(first).start, end(last).end).join('').trim();
  trigger('select', { index: [first, last], value: 'subject' });
});

element.addEventListener('keydown', event => {
  const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const chip = event.target.closest('[data-token], [data-answer]');
  if (!move || !chip) return;
  const chips = [...element.querySelectorAll('token' in chip.dataset ? '[data-token]' : '[data-answer]')];
  const next = chips[chips.indexOf(chip) + move];
  if (!next) return;
  event.preventDefault();
  next.focus();
});

// Chips are redrawn after the server has inspected the prompt: the focus returns to the same chip.
element.addEventListener('focusin', event => {
  const chip = event.target.closest('[data-token], [data-answer]');
  focused = chip && ('token' in chip.dataset ? `[data-token="${chip.dataset.token}"]` : `[data-answer="${chip.dataset.answer}"]`);
});
element.addEventListener('focusout', event => { if (event.relatedTarget) focused = null; });
watch('value', () => {
  const now = [...element.querySelectorAll('[data-token]')].map(chip => chip.textContent).join(' ');
  if (now !== prompt) anchor = null;
  prompt = now;
  const chip = focused && document.activeElement === document.body && element.querySelector(focused);
  if (chip) chip.focus({ preventScroll: true });
});
