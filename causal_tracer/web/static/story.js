// Switches the story's steps: by buttons, arrow keys, and Page Up/Down of a presenter while the story has the focus.
const story = element.querySelector('.ct-story');
const steps = story.querySelectorAll('article').length;
// Open at the first visit, unless a link opened the page. Without storage, every visit counts as the first.
const SEEN = 'causal-tracer-story-seen';
const link = new URLSearchParams(location.search).has('prompt');
let seen = false;
try { seen = localStorage.getItem(SEEN) !== null; localStorage.setItem(SEEN, ''); } catch { /* no storage */ }
story.open = !seen && !link;

function go(step) {
  const shown = Math.min(steps, Math.max(1, step));
  story.dataset.step = shown;
  story.querySelectorAll('article').forEach(item => { item.hidden = Number(item.dataset.for) !== shown; });
  story.querySelectorAll('[data-go]').forEach(item => {
    if (Number(item.dataset.go) === shown) item.setAttribute('aria-current', 'step');
    else item.removeAttribute('aria-current');
  });
  story.querySelector('[data-move="-1"]').disabled = shown === 1;
  story.querySelector('[data-move="1"]').disabled = shown === steps;
}

function inView() {
  const box = story.getBoundingClientRect();
  return story.open && box.bottom > 120 && box.top < innerHeight - 120;
}

story.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (!button) return;
  if (button.dataset.go) go(Number(button.dataset.go));
  else if (button.dataset.move) go(Number(story.dataset.step) + Number(button.dataset.move));
  else if ('tool' in button.dataset) {
    document.querySelector('#ct-prompt textarea').focus({ preventScroll: true });
    document.querySelector('#ct-tool').scrollIntoView();
  }
});

function onKey(event) {
  if (!story.isConnected) { document.removeEventListener('keydown', onKey); return; }
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey || !inView()) return;
  const target = document.activeElement;
  const mine = story.contains(target);
  // Arrow keys belong to fields, tabs and tables while these have the focus.
  if (!mine && target && target !== document.body && target.closest('input, textarea, select, [role], table')) return;
  const move = { ArrowRight: 1, ArrowLeft: -1, ...(mine && { PageDown: 1, PageUp: -1 }) }[event.key];
  if (!move) return;
  event.preventDefault();
  go(Number(story.dataset.step) + move);
}
document.addEventListener('keydown', onKey);
