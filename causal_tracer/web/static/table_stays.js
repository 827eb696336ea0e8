// The table is redrawn with each result: it stays open or closed as it was.
let open = false;
element.addEventListener('toggle', event => { if (event.target.isConnected) open = event.target.open; }, true);
watch('value', () => { const table = element.querySelector('details'); if (table) table.open = open; });
