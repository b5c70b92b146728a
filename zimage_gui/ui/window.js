// Small helpers of the page: copying, the large view of a picture, the tooltip with an option's name, the settings
// search, the folder browser and the switch between simple and all settings. No library, no network.
(() => {
  const advancedKey = 'zg-advanced';

  window.zgCopy = async (text, button) => {
    try { await navigator.clipboard.writeText(text); }
    catch (error) {  // no clipboard without https on another machine
      const area = document.createElement('textarea');
      area.value = text; document.body.append(area); area.select(); document.execCommand('copy'); area.remove();
    }
    if (!button) return;
    const before = button.textContent;
    button.textContent = 'Copied'; setTimeout(() => { button.textContent = before; }, 1200);
  };

  window.zgAdvanced = (on) => {
    document.body.classList.toggle('zg-advanced-on', on);
    localStorage.setItem(advancedKey, on ? '1' : '0');
    for (const box of document.querySelectorAll('.zg-switch input')) box.checked = on;
    return on;
  };
  const restore = () => document.body.classList.toggle('zg-advanced-on', localStorage.getItem(advancedKey) === '1');

  // ---- large view: click a thumbnail, arrows walk through the pictures of the same block
  const box = () => {
    let found = document.getElementById('zg-lightbox');
    if (!found) {
      found = document.createElement('div');
      found.id = 'zg-lightbox';
      found.innerHTML = '<img alt=""><p></p>';
      found.addEventListener('click', () => found.classList.remove('zg-open'));
      document.body.append(found);
    }
    return found;
  };
  let walk = [], at = 0;
  const show = (index) => {
    at = (index + walk.length) % walk.length;
    const place = box();
    place.querySelector('img').src = walk[at].dataset.full;
    place.querySelector('img').alt = walk[at].alt;
    place.querySelector('p').textContent = walk[at].title || walk[at].alt;
    place.classList.add('zg-open');
  };
  document.addEventListener('click', (event) => {
    const image = event.target.closest('img.zg-thumb[data-full]');
    if (!image) return;
    walk = [...(image.closest('.zg-samples, .zg-cards') || document).querySelectorAll('img.zg-thumb[data-full]')];
    show(walk.indexOf(image));
  });
  document.addEventListener('keydown', (event) => {
    const place = document.getElementById('zg-lightbox');
    if (place && place.classList.contains('zg-open')) {
      if (event.key === 'Escape') place.classList.remove('zg-open');
      else if (event.key === 'ArrowRight' || event.key === 'ArrowDown') show(at + 1);
      else if (event.key === 'ArrowLeft' || event.key === 'ArrowUp') show(at - 1);
      else return;
      event.preventDefault();
      return;
    }
    // Arrow keys step through whole numbers, as in a number field.
    const input = event.target.closest && event.target.closest('.zg-int input, .zg-int textarea');
    if (input && (event.key === 'ArrowUp' || event.key === 'ArrowDown') && /^-?\d{1,15}$/.test(input.value.trim())) {
      window.zgSet(input, String(Number(input.value) + (event.key === 'ArrowUp' ? 1 : -1)));
      event.preventDefault();
    }
  });

  window.zgSet = (input, value) => {
    input.value = value;
    input.dispatchEvent(new Event('input', {bubbles: true}));
  };

  // gradio's textbox reports typed keys only; what is pasted, deleted or put in by the folder browser is kept too.
  document.addEventListener('input', (event) => {
    const box = event.target;
    if (!box.closest || !box.closest('.zg-field')) return;
    clearTimeout(box.zgTold);
    box.zgTold = setTimeout(() => box.dispatchEvent(new KeyboardEvent('keypress', {key: 'Unidentified'})), 250);
  });

  // ---- tooltip: the whole help sentence and the option's own name, as the command line and TOML call it
  document.addEventListener('mouseover', (event) => {
    const field = event.target.closest && event.target.closest('.zg-field[id*="--"]');
    if (!field || field.title) return;
    const help = field.querySelector('.info-text');
    field.title = (help ? help.textContent.trim() + '\n' : '') + 'option: ' + field.id.split('--')[1];
  });

  // ---- search: goes to the best field by label or option name, opening its section. Sections that were never opened
  // are not in the page yet, so the names come from the index beside the search.
  window.zgSearch = (text, form) => {
    const wanted = text.trim().toLowerCase().replaceAll('_', ' ').replaceAll('-', ' ');
    if (!wanted) return;
    const entries = JSON.parse(document.getElementById(`${form}-index`).dataset.index);
    const score = ([name, label]) => {
      const words = [name.replaceAll('_', ' '), label.toLowerCase().replaceAll('-', ' ')];
      return words.some((one) => one === wanted) ? 3 : words.some((one) => one.startsWith(wanted)) ? 2 : words.some((one) => one.includes(wanted)) ? 1 : 0;
    };
    const best = entries.map((one) => [score(one), one]).sort((a, b) => b[0] - a[0])[0];
    if (best && best[0]) window.zgShow(`${form}--${best[1][0]}`, form, best[1][2]);
  };
  window.zgShow = (id, form, section) => {
    const box = document.getElementById(`${form}-${section}`);
    const label = box && box.querySelector('button.label-wrap:not(.open)');
    if (label) label.click();
    let tries = 20;
    const go = () => {
      const field = document.getElementById(id);
      if (!field) { if (tries-- > 0) setTimeout(go, 100); return; }
      if (field.offsetParent === null) window.zgAdvanced(true);
      field.scrollIntoView({block: 'center', behavior: 'smooth'});
      field.classList.add('zg-hit');
      setTimeout(() => field.classList.remove('zg-hit'), 4000);
      setTimeout(() => field.querySelector('input, textarea')?.focus(), 350);
    };
    go();
  };
  document.addEventListener('click', (event) => {
    const link = event.target.closest('[data-jump]');
    if (!link) return;
    event.preventDefault();
    window.zgShow(link.dataset.jump, link.dataset.jump.split('--')[0], link.dataset.section);
  });

  window.addEventListener('beforeunload', (event) => {
    if (document.querySelector('.zg-card.zg-dirty')) event.preventDefault();
  });
  if (document.body) restore(); else document.addEventListener('DOMContentLoaded', restore);
})();
