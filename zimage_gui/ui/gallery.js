// What the gallery shows is chosen here and sent with every look for changes (live.js).
const wanted = {query: '', favourites: false, page: 1};
let waiting = null;
const ask = () => window.zgChoose('gallery', JSON.stringify(wanted));
const changed = (box) => {
  if (box.dataset.gallery === 'query') wanted.query = box.value; else wanted.favourites = box.checked;
  wanted.page = 1;
  clearTimeout(waiting);
  waiting = setTimeout(ask, 250);
};
element.addEventListener('input', (event) => { if (event.target.matches('[data-gallery]')) changed(event.target); });
document.addEventListener('click', (event) => {
  const turn = event.target.closest('#gallery-list [data-page]');
  if (!turn || turn.disabled) return;
  wanted.page = Number(turn.dataset.page);
  ask();
});
