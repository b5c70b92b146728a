// Marks the fields that a list of problems names, each with its sentence under it, and opens their sections; what has
// no effect opens none. The list is this block's value; an empty one takes all marks of its form back.
const apply = (tries) => {
  const list = element.querySelector('[data-problems]');
  const form = list ? list.dataset.form : element.dataset.marked;
  if (!form) return;
  element.dataset.marked = form;
  for (const old of document.querySelectorAll(`.zg-field[id^="${form}--"]:is(.zg-invalid, .zg-idle)`)) {
    old.classList.remove('zg-invalid', 'zg-idle');
    old.querySelector(':scope > :is(.zg-error, .zg-note)')?.remove();
  }
  let missing = false;
  for (const problem of list ? JSON.parse(list.dataset.problems) : []) {
    const field = document.getElementById(`${form}--${problem.option}`);
    if (field) {
      const words = document.createElement('div');
      const idle = problem.kind === 'note';
      words.className = idle ? 'zg-note' : 'zg-error';
      words.textContent = problem.words;
      field.classList.add(idle ? 'zg-idle' : 'zg-invalid');
      field.append(words);
    } else if (problem.section) {
      const label = document.querySelector(`#${form}-${problem.section} > button.label-wrap:not(.open)`);
      if (label && !list.dataset.quiet && problem.kind !== 'note') label.click();
      missing = true;
    }
  }
  if (missing && tries > 0) setTimeout(() => apply(tries - 1), 150);
};
watch('value', () => apply(8));
apply(8);
