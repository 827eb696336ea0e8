// The cards of finished runs. The strip that Python draws holds the whole list, which is stored in the browser here.
// Events read it from the storage (`history_kept.js`), so that all pages of a browser share it.
// trigger('select', {value: key}) opens a card, 'edit' changes one, 'submit' compares, 'copy' makes a link, and 'input'
// redraws the stored list.
const KEY = 'causal-tracer-history';
const page = window.causalTracer ??= {};
const chosen = new Set();
let current = '';
let focused = null;
let undone = null;

const find = selector => element.querySelector(selector);
const cards = () => [...element.querySelectorAll('[data-card]')];
const cardOf = node => node.closest('[data-card]');

function store(text) {
  try {
    localStorage.setItem(KEY, text);
    delete page.unstored;
  } catch {
    // Storage is disabled or full: the list is lost when the page is closed.
    page.unstored = text;
  }
}

function choices() {
  const most = Number(find('[data-count]')?.dataset.most);
  cards().forEach(card => {
    const box = card.querySelector('[data-choose]');
    box.checked = chosen.has(card.dataset.card);
    box.disabled = !box.checked && chosen.size >= most;
  });
  if (!most) return;
  find('[data-compare]').disabled = chosen.size < 2;
  find('[data-share]').disabled = chosen.size < 1;
  const few = cards().length > 1 ? 'Tick two to four cards to compare them.' : '';
  find('[data-count]').textContent = chosen.size ? `${chosen.size} chosen` : few;
}

function mark() {
  cards().forEach(card => {
    const open = card.querySelector('[data-open]');
    if (card.dataset.card === current) open.setAttribute('aria-current', 'true');
    else open.removeAttribute('aria-current');
  });
}

function stopAt(card) {
  // The Tab key stops at one card only; arrow keys move to the others.
  cards().forEach(each => each.querySelectorAll('button, input').forEach(one => { one.tabIndex = each === card ? 0 : -1; }));
}

function focusCard(card, selector = '[data-open]') {
  if (!card) return;
  stopAt(card);
  const target = card.querySelector(selector) ?? card.querySelector('[data-open]');
  target.focus({ preventScroll: true });
  card.scrollIntoView({ block: 'nearest', inline: 'nearest' });
}

function showTabs() {
  // The map may be out of sight, as on a phone: scroll to it, so that the result is seen.
  const tabs = document.querySelector('#ct-tabs');
  const { top } = tabs.getBoundingClientRect();
  if (top < -400 || top > innerHeight - 200) tabs.scrollIntoView();
}
page.showTabs = showTabs;
// Called when a result is shown that is not a run of the list.
page.noRun = () => { current = ''; mark(); };

function drawn() {
  const strip = find('.ct-past');
  store(strip.dataset.kept);
  if (strip.dataset.current) current = strip.dataset.current;
  const keys = new Set(cards().map(card => card.dataset.card));
  if (strip.dataset.chosen) chosen.clear();
  strip.dataset.chosen.split(' ').filter(Boolean).forEach(key => chosen.add(key));
  [...chosen].filter(key => !keys.has(key)).forEach(key => chosen.delete(key));
  mark();
  choices();
  const link = find('[data-link]');
  if (link) {
    link.focus();
    link.select();
    navigator.clipboard?.writeText(link.value).catch(() => {});
  } else if (focused && (document.activeElement === document.body || element.contains(document.activeElement))) {
    // The focus returns to its card; if that was deleted, to the card now in its place.
    const { key, place, selector } = focused;
    const same = cards().find(card => card.dataset.card === key);
    focusCard(same ?? cards()[Math.min(place, cards().length - 1)], same ? selector : undefined);
  }
}

function act(card, what) {
  if (what === 'choose') { card.querySelector('[data-choose]').click(); return; }
  if (what === 'name') { rename(card); return; }
  if (what === 'delete') undone = find('.ct-past').dataset.kept;
  trigger('edit', { key: card.dataset.card, do: what });
}

function rename(card) {
  const box = document.createElement('input');
  box.className = 'ct-past-name';
  box.maxLength = Number(find('.ct-past').dataset.longestName);
  box.value = card.dataset.name;
  box.setAttribute('aria-label', 'Name of this run');
  card.append(box);
  box.focus();
  box.select();
  let left = false;
  const leave = (save, back) => {
    if (left) return;
    left = true;
    if (back) focusCard(card);
    box.remove();
    if (save && box.value !== card.dataset.name) trigger('edit', { key: card.dataset.card, do: 'name', name: box.value });
  };
  box.addEventListener('keydown', event => {
    event.stopPropagation();
    if (event.key !== 'Enter' && event.key !== 'Escape') return;
    // Otherwise Enter would also press the button that gets the focus.
    event.preventDefault();
    leave(event.key === 'Enter', true);
  });
  box.addEventListener('blur', () => leave(true, false));
}

element.addEventListener('click', event => {
  const button = event.target.closest('button, input');
  if (!button) return;
  const card = cardOf(button);
  const data = button.dataset;
  if ('open' in data) {
    // The card's subject and answer belong to the card's prompt, which comes with them (`fields_changed.js`).
    page.subject = page.answer = null;
    current = card.dataset.card;
    mark();
    showTabs();
    trigger('select', { index: 0, value: current });
  } else if ('do' in data) act(card, data.do);
  else if ('compare' in data) { showTabs(); trigger('submit', { keys: [...chosen] }); }
  else if ('share' in data) trigger('copy', { keys: [...chosen] });
  else if ('undo' in data) { store(undone); trigger('input'); }
});

element.addEventListener('change', event => {
  if (!('choose' in event.target.dataset)) return;
  const key = cardOf(event.target).dataset.card;
  if (event.target.checked) chosen.add(key);
  else chosen.delete(key);
  choices();
});

element.addEventListener('keydown', event => {
  const card = cardOf(event.target);
  if (!card || event.altKey || event.ctrlKey || event.metaKey) return;
  const all = cards();
  const to = { ArrowRight: all.indexOf(card) + 1, ArrowLeft: all.indexOf(card) - 1, Home: 0, End: all.length - 1 }[event.key];
  const what = { p: 'pin', n: 'name', x: 'choose', Delete: 'delete' }[event.key];
  if (to === undefined && !what) return;
  event.preventDefault();
  if (what) act(card, what);
  else focusCard(all[to]);
});

element.addEventListener('focusin', event => {
  const card = cardOf(event.target);
  if (!card) { focused = null; return; }
  stopAt(card);
  const name = ['open', 'choose'].find(each => each in event.target.dataset);
  const selector = name ? `[data-${name}]` : `[data-do="${event.target.dataset.do}"]`;
  focused = { key: card.dataset.card, place: cards().indexOf(card), selector };
});
element.addEventListener('focusout', event => { if (event.relatedTarget && !element.contains(event.relatedTarget)) focused = null; });

window.addEventListener('storage', event => { if (event.key === KEY && element.isConnected) trigger('input'); });
watch('value', drawn);
