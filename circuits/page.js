'use strict';
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const cards = [...document.querySelectorAll('details.automaton')];
  const main = document.querySelector('main');
  const find = document.getElementById('find');
  const kind = document.getElementById('kind');
  const order = document.getElementById('order');
  const said = document.getElementById('said');
  const byName = new Map(data.map((one) => [one.name, one]));
  const place = new Map(cards.map((card, at) => [card, at]));

  const wordsOf = (one) => [
    one.title, one.name, one.kind, one.description,
    ...one.states.flatMap((state) => [state.label, ...state.features.map((f) => 'F' + f)]),
    ...one.transitions.flatMap((step) => [step.label, ...step.tokens.map((t) => t.token_str)]),
  ].join('\n').toLowerCase();
  const words = new Map(cards.map((card) => [card, wordsOf(byName.get(card.dataset.name))]));

  const show = () => {
    const wanted = find.value.toLowerCase();
    let shown = 0;
    for (const card of cards) {
      const one = byName.get(card.dataset.name);
      card.hidden = !words.get(card).includes(wanted) || (kind.value !== '' && one.kind !== kind.value);
      shown += card.hidden ? 0 : 1;
    }
    said.textContent = shown === cards.length ? '' : shown + ' of ' + cards.length + ' shown';
  };
  const orders = {
    rank: (a, b) => place.get(a) - place.get(b),
    title: (a, b) => byName.get(a.dataset.name).title.localeCompare(byName.get(b.dataset.name).title),
    states: (a, b) => byName.get(b.dataset.name).states.length - byName.get(a.dataset.name).states.length,
  };
  find.addEventListener('input', show);
  kind.addEventListener('change', show);
  order.addEventListener('change', () => main.append(...[...cards].sort(orders[order.value])));

  const openNamed = () => {
    const card = cards.find((one) => '#' + one.dataset.name === location.hash);
    if (card) {
      card.open = true;
      card.scrollIntoView();
    }
  };
  window.addEventListener('hashchange', openNamed);
  window.addEventListener('beforeprint', () => cards.forEach((card) => { card.open = true; }));
  document.addEventListener('keydown', (event) => {
    if (event.key === '/' && !/INPUT|SELECT/.test(document.activeElement.tagName)) {
      event.preventDefault();
      find.focus();
    } else if (event.key === 'Escape') {
      const open = document.activeElement.closest('details.automaton[open]');
      if (open) {
        open.open = false;
        open.querySelector('summary').focus();
      }
    }
  });

  // A state, or a row about it, under the pointer: everything that does not touch it steps back.
  const touches = (arrow, ids) => (ids.length === 1
    ? ids.includes(arrow.dataset.source) || ids.includes(arrow.dataset.target)
    : arrow.dataset.source === ids[0] && arrow.dataset.target === ids[1]);
  for (const card of cards) {
    const parts = [...card.querySelectorAll('.picture [data-state], .picture [data-source]')];
    const light = (ids) => {
      const near = new Set(ids);
      if (ids.length === 1) {
        for (const part of parts) {
          if (part.dataset.source === ids[0]) near.add(part.dataset.target);
          if (part.dataset.target === ids[0]) near.add(part.dataset.source);
        }
      }
      for (const part of parts) {
        const on = part.dataset.state !== undefined ? near.has(part.dataset.state) : touches(part, ids);
        part.classList.toggle('sa-away', ids.length > 0 && !on);
      }
    };
    for (const one of card.querySelectorAll('[data-state], [data-source]')) {
      const ids = one.dataset.state !== undefined ? [one.dataset.state] : [one.dataset.source, one.dataset.target];
      one.addEventListener('mouseenter', () => light(ids.filter((id) => id !== 'EXIT')));
      one.addEventListener('mouseleave', () => light([]));
    }
    const save = card.querySelector('button.save');
    save.hidden = false;
    save.addEventListener('click', () => {
      const text = JSON.stringify(byName.get(card.dataset.name), null, 1) + '\n';
      const link = document.createElement('a');
      link.href = URL.createObjectURL(new Blob([text], { type: 'application/json' }));
      link.download = card.dataset.name + '.json';
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }
  document.querySelector('.tools').hidden = false;
  openNamed();
})();
