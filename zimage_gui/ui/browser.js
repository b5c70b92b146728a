// The dialog of the folder browser; it fills the field that opened it as if the path had been typed.
const part = (name) => element.querySelector(`[data-part="${name}"]`);
const veil = element.querySelector('.zg-veil');
let target = null, here = '';
const close = () => { veil.classList.remove('zg-open'); if (target) target.focus(); };
const take = (path) => { if (target) window.zgSet(target, path); close(); };
const line = (words, note, action) => {
  const button = document.createElement('button');
  button.type = 'button'; button.className = 'zg-line'; button.textContent = words;
  const side = document.createElement('span'); side.textContent = note; button.append(side);
  button.addEventListener('click', action);
  return button;
};
const open = async (path) => {
  const found = await server.list_folders(path);
  here = found.path;
  part('path').textContent = found.problem || here;
  part('roots').replaceChildren(...found.roots.map((root) => {
    const chip = document.createElement('button');
    chip.type = 'button'; chip.className = 'zg-chip'; chip.textContent = root;
    chip.addEventListener('click', () => open(root)); return chip;
  }));
  const lines = found.folders.map((one) => line(one.name + '/', one.note, () => open(one.path)));
  if (found.parent) lines.unshift(line('.. (up)', '', () => open(found.parent)));
  lines.push(...found.files.map((one) => line(one.name, '', () => take(one.path))));
  part('list').replaceChildren(...lines);
  part('list').scrollTop = 0;
};
part('cancel').addEventListener('click', close);
part('take').addEventListener('click', () => take(here));
veil.addEventListener('click', (event) => { if (event.target === veil) close(); });
element.addEventListener('keydown', (event) => { if (event.key === 'Escape') close(); });
window.zgBrowse = (id) => {
  target = document.querySelector(`#${CSS.escape(id)} textarea, #${CSS.escape(id)} input`);
  veil.classList.add('zg-open');
  open(target ? target.value : '').then(() => part('take').focus());
};
