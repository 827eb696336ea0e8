// Plotly hides a trace when a mouse button is released over its name in a legend, wherever it was pressed. A choice from
// a list is made by the press, so a figure with a legend may come under the mouse before the release.
let pressed;
document.addEventListener('mousedown', event => { pressed = event.target; }, true);
document.addEventListener('mouseup', event => {
  if (event.target.matches?.('.legendtoggle') && event.target !== pressed) event.stopPropagation();
}, true);
