// Saves a caption when its field is left (or Ctrl+Enter), and says so under it.
const save = async (area) => {
  const card = area.closest('.zg-card'), note = card.querySelector('[data-part="state"]');
  if (area.value === area.dataset.before) { card.classList.remove('zg-dirty'); return; }
  const answer = await server.save_caption({token: area.dataset.token, before: area.dataset.before, text: area.value});
  if (answer.ok) { area.dataset.before = area.value; note.textContent = 'saved'; card.classList.remove('zg-dirty', 'zg-wrong'); }
  else { note.textContent = answer.message; area.dataset.before = answer.text; }
};
element.addEventListener('input', (event) => {
  if (!event.target.matches('textarea[data-token]')) return;
  const card = event.target.closest('.zg-card');
  card.classList.toggle('zg-dirty', event.target.value !== event.target.dataset.before);
  card.querySelector('[data-part="state"]').textContent = '';
});
element.addEventListener('focusout', (event) => { if (event.target.matches('textarea[data-token]')) save(event.target); });
element.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey) && event.target.matches('textarea[data-token]')) save(event.target);
});
