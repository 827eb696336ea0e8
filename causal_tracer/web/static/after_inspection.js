// The fields were inspected: trigger('input') if this text is visible. What is hidden need not follow the fields, and
// each event costs the page tens of milliseconds.
document.addEventListener('causal-tracer-inspected', () => { if (element.offsetParent) trigger('input'); });
