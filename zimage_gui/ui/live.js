// Asks the server which of the visible live parts have changed and replaces those. The next question is asked only
// after the last answer; a hidden page asks rarely.
const EVERY = 1500, HIDDEN = 10000;
const chosen = {}, pressed = new Set();
let timer = null, asking = false, again = false, misses = 0;

const follow = (log) => { log.scrollTop = log.scrollHeight; };

const show = (place, html, mark) => {
  const log = place.querySelector('.zg-log[data-follow]');
  const stay = log && log.scrollTop + log.clientHeight < log.scrollHeight - 30 ? log.scrollTop : null;
  const open = new Set([...place.querySelectorAll('details[open] > summary')].map((one) => one.textContent.split('(')[0]));
  place.innerHTML = html;
  place.dataset.mark = mark;
  for (const summary of place.querySelectorAll('details > summary')) {
    if (open.has(summary.textContent.split('(')[0])) summary.parentElement.open = true;
  }
  const fresh = place.querySelector('.zg-log[data-follow]');
  if (fresh) { if (stay === null) follow(fresh); else fresh.scrollTop = stay; }
  // A button that presses itself, once for each text: an answer that needs gradio's own components.
  for (const one of place.querySelectorAll('[data-once]')) {
    if (pressed.has(one.dataset.once)) continue;
    pressed.add(one.dataset.once);
    one.click();
  }
};

const poll = async () => {
  if (asking) { again = true; return; }
  asking = true;
  clearTimeout(timer);
  // A run that was just started is the one to watch.
  for (const sign of document.querySelectorAll('[data-newest]')) { delete chosen[sign.dataset.newest]; sign.removeAttribute('data-newest'); }
  const places = new Map();
  for (const place of document.querySelectorAll('[data-live]')) {
    const open = document.activeElement && document.activeElement.tagName === 'SELECT' && place.contains(document.activeElement);
    if (place.offsetParent !== null && !open) places.set(place.dataset.live, place);
  }
  const marks = Object.fromEntries([...places].map(([key, place]) => [key, place.dataset.mark || '']));
  try {
    for (const part of await server.poll({marks, chosen})) {
      const place = places.get(part.part);
      if (place) show(place, part.html, part.mark);
    }
    misses = 0;
  } catch (error) { misses += 1; }
  document.body.classList.toggle('zg-lost', misses > 1);
  asking = false;
  if (again) { again = false; poll(); return; }
  timer = setTimeout(poll, document.hidden ? HIDDEN : EVERY);
};

window.zgPoll = poll;
window.zgChoose = (group, value) => { chosen[group] = value; poll(); };
document.addEventListener('visibilitychange', () => { if (!document.hidden) poll(); });
document.addEventListener('click', (event) => {
  if (event.target.closest('[role="tab"], .label-wrap')) setTimeout(poll, 60);
});
document.addEventListener('change', (event) => {
  const choice = event.target.closest('select[data-choice]');
  if (!choice) return;
  chosen[choice.dataset.choice] = choice.value;
  choice.blur();
  poll();
});
poll();
