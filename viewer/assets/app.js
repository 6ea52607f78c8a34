// Boot, addresses and keys. Everything that is seen follows from the address.

import * as api from './api.js';
import { atlas } from './atlas.js';
import { h } from './dom.js';
import { feature } from './feature.js';
import * as help from './help.js';
import { run } from './run.js';
import { overview } from './runs.js';
import { search } from './search.js';
import { hide } from './tooltip.js';

const main = document.getElementById('main');
let indexes = [];
let current = null;
let page = null;
let drawing = new AbortController();
const known = new Map();

/** Columns of summaries where they are needed and, failing that, null: a feature's page is whole without them. */
const kept = {
  columns: async (id) => {
    const index = indexes.find((i) => i.id === id);
    const parameters = new URLSearchParams(location.search);
    // Only a list that is not in order needs them at once.
    const needed = [...parameters.keys()].some((key) => !['index', 'stratum', 'width'].includes(key));
    const asked = api.summaries(id).then((columns) => {
      columns.tokens = index.manifest.tokens;
      known.set(id, columns);
      return columns;
    }).catch(() => null);
    return known.get(id) ?? (needed ? asked : null);
  },
};

/** An address of ours: the index is named unless it is the first. */
function link(path, parameters) {
  const query = new URLSearchParams(parameters);
  if (current && current !== indexes[0]) query.set('index', current.id);
  const text = query.toString();
  return text ? `${path}?${text}` : path;
}

/** Goes to an address. `draw: false` only writes it down: the page shows it already. */
function go(address, { replace = false, draw: wanted = true, from } = {}) {
  history[replace ? 'replaceState' : 'pushState'](null, '', address);
  if (wanted) return draw({ from });
}

async function draw({ from } = {}) {
  const path = location.pathname;
  const parameters = new URLSearchParams(location.search);
  const turn = new AbortController();
  const before = drawing;
  drawing = turn;
  hide();
  let next;
  try {
    indexes = await api.indexes();
    const wanted = parameters.get('index');
    current = wanted === null ? indexes[0] : indexes.find((i) => i.id === wanted);
    nameIndexes();
    next = await find(path, parameters, turn.signal);
  } catch (error) {
    next = failure(error);
  }
  if (drawing !== turn) return;
  const focus = document.activeElement?.id;
  const leaving = page?.number;
  before.abort();
  page = next;
  document.title = `${next.title} \u00b7 sae`;
  main.replaceChildren(next.view);
  scrollTo(0, 0);
  next.ready?.({ from: from ?? (path === '/' ? leaving : undefined), focus });
  const again = focus && document.getElementById(focus);
  if (again && again !== document.activeElement && main.contains(again)) again.focus({ preventScroll: true });
  main.dataset.ready = location.pathname + location.search;
}

/** Where runs are served instead of indexes: one, or the list of them. */
async function findRun(path, signal) {
  const runs = await api.runs();
  const id = path === '/' && runs.length === 1 ? runs[0].id : /^\/run\/([a-z0-9-]{1,80})$/.exec(path)?.[1];
  if (path === '/' && id === undefined) return overview({ runs, signal });
  if (id === undefined) return missing('There is nothing here', 'The address may have been mistyped.');
  const known = runs.some((one) => one.id === id);
  if (!known) return missing('There is no such run', 'It may have been removed, or served under another name.');
  return run({ id, several: runs.length > 1, signal });
}

async function find(path, parameters, signal) {
  if (indexes.length === 0) return findRun(path, signal);
  if (!current) return missing('There is no such index', 'It may be served under another name now.');
  const tools = { index: current, parameters, go, link, signal, kept };
  if (path === '/') return atlas(tools);
  const number = /^\/feature\/(\d{1,10})$/.exec(path)?.[1];
  if (number === undefined) return missing('There is nothing here', 'The address may have been mistyped.');
  const { d_sae: width } = current.manifest;
  if (Number(number) >= width) {
    return missing(`There is no feature ${number}`, `This dictionary has ${width}: they are numbered 0 to ${width - 1}.`);
  }
  return { ...(await feature({ ...tools, number: Number(number) })), number: Number(number) };
}

function missing(title, text) {
  return {
    title,
    view: h('section', { class: 'missing' }, h('h1', null, title), h('p', { class: 'soft' }, text),
      h('p', null, h('a', { class: 'button', href: '/' }, indexes.length === 0 ? 'To the runs' : 'To the atlas'))),
  };
}

function failure(error) {
  const title = error instanceof api.Failure && error.status === 0 ? 'No answer' : 'This cannot be shown';
  if (!(error instanceof api.Failure)) console.error(error);
  return {
    title,
    view: h('section', { class: 'missing', role: 'alert' }, h('h1', null, title), h('p', { class: 'soft' }, error.message),
      h('p', null, h('button', { class: 'button', type: 'button', onclick: () => draw() }, 'Try again'))),
  };
}

/** Names the open index in the bar; a choice where there are several. */
function nameIndexes() {
  const slot = document.getElementById('bar-index');
  // Searched are features.
  document.getElementById('search').hidden = indexes.length === 0;
  document.getElementById('home').href = link('/', new URLSearchParams());
  if (indexes.length < 2) return slot.replaceChildren();
  slot.replaceChildren(h('select', {
    'aria-label': 'Index',
    onchange: (event) => {
      current = indexes.find((i) => i.id === event.target.value);
      go(link('/', new URLSearchParams()));
    },
  }, indexes.map((i) => h('option', { value: i.id, selected: i === current }, i.id))));
}

// Links of ours are followed here; with a modifier, or elsewhere, by the browser.
document.addEventListener('click', (event) => {
  const anchor = event.target.closest?.('a[href]');
  if (!anchor || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
  const url = new URL(anchor.href);
  if (url.origin !== location.origin || url.hash || anchor.target) return;
  event.preventDefault();
  go(url.pathname + url.search, { from: url.pathname === '/' ? page?.number : undefined });
});
addEventListener('popstate', () => draw());

function toggleTheme() {
  const root = document.documentElement;
  const dark = (root.dataset.theme ?? (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light')) === 'dark';
  root.dataset.theme = dark ? 'light' : 'dark';
  try {
    localStorage.setItem('sae-theme', root.dataset.theme);
  } catch {
    // Then the choice lasts as long as the page.
  }
  dispatchEvent(new Event('themechange'));
}
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => dispatchEvent(new Event('themechange')));
document.getElementById('theme').addEventListener('click', toggleTheme);
document.getElementById('help-open').addEventListener('click', help.open);

const box = search({ where: () => current, go, link });

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (document.querySelector('dialog[open]')) return;
  const target = event.target;
  const typing = target.matches?.('select, textarea, input:not([type="radio"])');
  if (typing) {
    if (event.key === 'Escape') target.blur();
    return;
  }
  const key = event.key;
  if (key === 'Escape' && hide()) return;
  // Arrows choose among radio buttons.
  if (target.matches?.('input[type="radio"]') && key.startsWith('Arrow')) return;
  if (key === '/') {
    event.preventDefault();
    box.focus();
  } else if (key === '?') {
    event.preventDefault();
    help.open();
  } else if (key === 't') toggleTheme();
  else if (page?.keys?.(key, event)) event.preventDefault();
});

draw();
