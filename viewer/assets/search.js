// The search box: a number goes to that feature, text finds features by their top tokens.

import * as api from './api.js';
import { h } from './dom.js';
import { matching } from './filter.js';
import { share } from './format.js';
import { chip } from './tokens.js';

/** Suggestions shown. */
const MOST = 8;

/** Fills the search landmark. `where()` says which index is open, `go` opens an address, `link` makes one. */
export function search({ where, go, link }) {
  const list = h('ul', { class: 'suggestions', id: 'suggestions', role: 'listbox', 'aria-label': 'Features', hidden: true });
  const input = h('input', {
    type: 'text', role: 'combobox', 'aria-label': 'Search features by number or token', 'aria-expanded': 'false',
    'aria-controls': 'suggestions', 'aria-autocomplete': 'list', placeholder: 'Feature number or token',
    autocomplete: 'off', spellcheck: 'false', maxlength: 80, id: 'search-input',
  });
  document.getElementById('search').replaceChildren(input, h('kbd', { 'aria-hidden': 'true' }, '/'), list);
  let found = [];
  let chosen = -1;
  let asked = 0;

  async function suggest() {
    const text = input.value.trim();
    const turn = (asked += 1);
    const index = where();
    if (text === '' || !index) return close();
    const columns = await api.summaries(index.id).catch(() => null);
    if (!columns || turn !== asked) return;
    found = candidates(columns, text);
    chosen = found.length > 0 ? 0 : -1;
    list.replaceChildren(...found.map((i, k) =>
      h('li', {
        role: 'option', id: `suggestion-${k}`, 'aria-selected': String(k === chosen),
        onpointerdown: (event) => {
          event.preventDefault();
          open(i);
        },
      },
      h('span', { class: 'suggestion-id' }, String(i)),
      h('span', { class: 'chips' }, columns.top_tokens[i].map((t) => chip(columns.texts[t]))),
      h('span', { class: 'soft' }, share(columns.n_active[i] / index.manifest.tokens)))));
    if (found.length === 0) {
      list.replaceChildren(h('li', { class: 'soft', role: 'option', 'aria-selected': 'false', 'aria-disabled': 'true' }, 'No feature found'));
    }
    list.hidden = false;
    input.setAttribute('aria-expanded', 'true');
    choose(chosen);
  }

  function choose(k) {
    chosen = k;
    [...list.children].forEach((li, i) => li.setAttribute('aria-selected', String(i === k && found.length > 0)));
    if (k >= 0) input.setAttribute('aria-activedescendant', `suggestion-${k}`);
    else input.removeAttribute('aria-activedescendant');
  }

  function close() {
    asked += 1;
    list.hidden = true;
    found = [];
    chosen = -1;
    input.setAttribute('aria-expanded', 'false');
    input.removeAttribute('aria-activedescendant');
  }

  function open(i) {
    input.value = '';
    close();
    input.blur();
    go(link(`/feature/${i}`, new URLSearchParams()));
  }

  input.addEventListener('input', suggest);
  input.addEventListener('focus', suggest);
  input.addEventListener('blur', close);
  input.addEventListener('keydown', async (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && found.length > 0) {
      event.preventDefault();
      choose((chosen + step + found.length) % found.length);
    } else if (event.key === 'Enter') {
      event.preventDefault();
      if (found.length === 0) await suggest();
      if (chosen >= 0) open(found[chosen]);
    } else if (event.key === 'Escape') {
      event.stopPropagation();
      if (list.hidden) input.blur();
      else close();
    }
  });
  return input;
}

/** The feature of that number first, then those whose top tokens match: earlier tokens first, rarer before common. */
function candidates(columns, text) {
  const list = [];
  const digits = /^#?(\d+)$/.exec(text);
  if (digits && Number(digits[1]) < columns.n_active.length) list.push(Number(digits[1]));
  const matches = matching(columns, text);
  const scored = [];
  columns.top_tokens.forEach((tokens, i) => {
    const rank = tokens.findIndex((t) => matches[t]);
    if (rank < 0 || list.includes(i)) return;
    const isWhole = columns.plain[tokens[rank]].trim() === text.toLowerCase();
    scored.push([rank - (isWhole ? 10 : 0), -columns.max[i], i]);
  });
  scored.sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2]);
  return [...list, ...scored.map((s) => s[2])].slice(0, MOST);
}
