// The atlas: every feature in a table, over a scatter of the same numbers.

import * as api from './api.js';
import { h, vary } from './dom.js';
import { strip } from './examples.js';
import { NUMBERS, condition, isPlain, read, select, write } from './filter.js';
import { compact, count, share, value } from './format.js';
import { scatter } from './scatter.js';
import { rows } from './table.js';
import { chip } from './tokens.js';

/** How long typing rests before it filters. */
const REST = 120;

/** Where the page was scrolled to when a feature was opened. */
const left = { address: null, y: 0 };

const HINTS = { feature: '= 12', density: '> 1%', active: '> 1k', max: '> 5', min: '< \u22125', mean: '> 2' };

function fact(label, text, title) {
  return h('div', { class: 'fact', title }, h('dt', null, label), h('dd', null, text));
}

function facts(manifest, columns) {
  const { dictionary } = manifest;
  const dead = dictionary.dead ?? columns.n_active.filter((n) => n === 0).length / manifest.d_sae;
  const known = [
    ['Features', count(manifest.d_sae), 'd_sae, the width of the dictionary'],
    ['Width', count(manifest.d_in), 'd_in, the width of an activation'],
    dictionary.k !== null && ['k', count(dictionary.k), `latents kept a token by ${dictionary.activation}`],
    dictionary.l0 !== null && ['L0', value(dictionary.l0), 'mean number of active latents a token'],
    dictionary.fvu !== null && ['FVU', value(dictionary.fvu), 'fraction of variance unexplained, on held-out tokens'],
    ['Dead', share(dead), 'features that were never active'],
    ['Tokens', compact(manifest.tokens), `${count(manifest.tokens)} tokens in ${count(manifest.contexts)} contexts`],
  ];
  return h('header', { class: 'intro' },
    h('div', null,
      h('h1', null, manifest.model),
      h('p', { class: 'soft' }, h('code', null, manifest.hook), ' on ', manifest.corpus,
        dictionary.activation && `, ${dictionary.activation}`)),
    h('dl', { class: 'facts' }, known.filter(Boolean).map((f) => fact(...f))));
}

export async function atlas({ index, parameters, go, link, signal }) {
  const { id, manifest } = index;
  const columns = await api.summaries(id);
  columns.tokens = manifest.tokens;
  let query = read(parameters);
  const shown = Object.keys(NUMBERS).filter((name) => name !== 'min' || manifest.signed);
  const open = (i) => link(`/feature/${i}`, write(query));

  const bars = scales(columns);
  const table = rows({ cells, onFocus: preview });
  const status = h('p', { class: 'soft', role: 'status' });
  const clear = h('button', { class: 'text', type: 'button', onclick: () => change({ filters: {} }) }, 'Clear filters');
  const empty = h('p', { class: 'empty', hidden: true }, 'No feature passes these filters.');
  const heads = new Map();

  function cells(i) {
    const alive = columns.n_active[i] > 0;
    const cell = (name, ...children) => h('div', { class: `cell c-${name}`, role: 'cell' }, ...children);
    const bar = (name, share) => vary(cell(name, ...numberText(name, i)), '--share', share);
    return [
      cell('feature', h('a', { href: open(i), 'data-feature': i }, String(i))),
      cell('tokens', alive
        ? columns.top_tokens[i].map((token) => chip(columns.texts[token]))
        : h('span', { class: 'dead' }, 'never active')),
      ...shown.filter((name) => name !== 'feature').map((name) =>
        name === 'density' || name === 'max' ? bar(name, bars[name](i)) : cell(name, ...numberText(name, i))),
      cell('state', alive ? 'alive' : 'dead'),
    ];
  }

  function numberText(name, i) {
    if (columns.n_active[i] === 0) return [name === 'active' ? '0' : '\u2013'];
    const number = NUMBERS[name].of(columns, i);
    return [name === 'density' ? share(number) : name === 'active' ? count(number) : value(number)];
  }

  // The head: a sort button and a filter for each column.
  let timer = 0;
  function filterInput(name, label, hint) {
    const input = h('input', {
      type: 'text', placeholder: hint, 'aria-label': `Filter by ${label.toLowerCase()}`, name,
      autocomplete: 'off', spellcheck: 'false', value: query.filters[name], maxlength: 80,
    });
    input.addEventListener('input', () => {
      clearTimeout(timer);
      timer = setTimeout(() => change({ filters: { ...query.filters, [name]: input.value } }), REST);
    });
    return input;
  }

  function sortHead(name, label) {
    const button = h('button', { type: 'button', class: 'sort', onclick: () => sortBy(name) },
      h('span', null, label), h('span', { class: 'arrow', 'aria-hidden': 'true' }));
    const head = h('div', { class: `cell c-${name}`, role: 'columnheader' }, button, filterInput(name, label, HINTS[name]));
    heads.set(name, head);
    return head;
  }

  function sortBy(name) {
    // Numbers are first wanted largest first, and names in order.
    const first = name !== 'feature' && name !== 'min';
    change({ sort: name, descending: query.sort === name ? !query.descending : first });
  }

  const states = h('select', {
    'aria-label': 'Filter by state', name: 'state',
    onchange: (event) => change({ filters: { ...query.filters, state: event.target.value } }),
  }, ['', 'alive', 'dead'].map((s) => h('option', { value: s, selected: query.filters.state === s }, s || 'all')));

  const head = h('div', { class: 'head', role: 'rowgroup' },
    h('div', { class: 'row-head', role: 'row', 'aria-rowindex': 1 },
      sortHead('feature', 'Feature'),
      h('div', { class: 'cell c-tokens', role: 'columnheader' },
        h('span', { class: 'sort' }, 'Top tokens'), filterInput('tokens', 'Top tokens', 'contains \u2026')),
      shown.filter((name) => name !== 'feature').map((name) => sortHead(name, NUMBERS[name].label)),
      h('div', { class: 'cell c-state', role: 'columnheader' }, h('span', { class: 'sort' }, 'State'), states)));

  const toggle = h('button', {
    class: 'text only-narrow', type: 'button', 'aria-expanded': 'false',
    onclick: () => {
      const opened = grid.classList.toggle('filters-open');
      toggle.setAttribute('aria-expanded', String(opened));
      table.update();
    },
  }, 'Sort and filter');

  const grid = h('div', {
    class: manifest.signed ? 'table signed' : 'table', role: 'table', 'aria-label': 'Features',
    'aria-colcount': shown.length + 2,
  }, head, table.body);

  function change(next) {
    query = { ...query, ...next };
    if (next.filters && Object.keys(next.filters).length === 0) query.filters = read(new URLSearchParams()).filters;
    go(link('/', write(query)), { replace: true, draw: false });
    apply();
  }

  /** Puts the query into effect. */
  function apply() {
    const order = select(columns, query);
    const whole = isPlain(query);
    grid.setAttribute('aria-rowcount', String(order.length + 1));
    status.textContent = order.length === manifest.d_sae
      ? `${count(order.length)} features`
      : `${count(order.length)} of ${count(manifest.d_sae)} features`;
    clear.hidden = Object.values(query.filters).every((text) => text.trim() === '');
    empty.hidden = order.length > 0;
    for (const [name, element] of heads) {
      const sorted = query.sort === name && (name !== 'feature' || !whole || query.descending);
      const direction = query.descending ? 'descending' : 'ascending';
      if (query.sort === name) element.setAttribute('aria-sort', direction);
      else element.removeAttribute('aria-sort');
      element.classList.toggle('sorted', sorted || query.sort === name);
    }
    for (const input of head.querySelectorAll('input, select')) {
      const text = query.filters[input.name];
      if (input.value !== text && document.activeElement !== input) input.value = text;
      const wrong = input.name in NUMBERS && condition(text, input.name === 'feature') === undefined;
      input.toggleAttribute('data-set', text.trim() !== '');
      if (wrong) input.setAttribute('aria-invalid', 'true');
      else input.removeAttribute('aria-invalid');
    }
    table.set(order);
    plot.filter(order.length === manifest.d_sae ? null : order);
  }

  // The side: scatter and a preview of what is pointed at.
  const card = h('section', { class: 'card preview', 'aria-label': 'Preview' });
  const plot = scatter(columns, {
    label: (i) => [h('strong', null, `Feature ${i}`), tokensOf(i), h('span', { class: 'soft' }, plot.describe(i))],
    onHover: preview,
    onOpen: (i) => go(open(i)),
    onBrush: (ranges) => change({ filters: { ...query.filters, ...ranges } }),
  });
  const tokensOf = (i) => h('div', { class: 'chips' }, columns.top_tokens[i].map((t) => chip(columns.texts[t])));

  let wanted = -1;
  let waiting = 0;
  function preview(i) {
    if (wanted === i) return;
    wanted = i;
    table.mark(i);
    plot.ring(i);
    clearTimeout(waiting);
    if (!matchMedia('(min-width: 1100px)').matches) return;
    waiting = setTimeout(() => fillPreview(i), 60);
  }

  async function fillPreview(i) {
    const detail = await api.feature(id, i).catch(() => null);
    if ((wanted >= 0 && wanted !== i) || signal.aborted) return;
    card.replaceChildren(...previewOf(i, detail, open(i)));
  }

  const view = h('div', { class: 'atlas' },
    facts(manifest, columns),
    h('div', { class: 'atlas-grid' },
      h('div', { class: 'side' },
        h('section', { class: 'card', 'aria-labelledby': 'scatter-title' },
          h('h2', { id: 'scatter-title' }, 'Density and maximum'),
          plot.canvas,
          h('p', { class: 'soft small only-wide' }, 'Drag to select a region; click a dot to open it.')),
        card),
      h('section', { class: 'list', 'aria-labelledby': 'list-title' },
        h('h2', { id: 'list-title', class: 'unseen' }, 'All features'),
        h('div', { class: 'list-tools' }, status, h('div', { class: 'list-buttons' }, clear, toggle)),
        grid, empty)));

  addEventListener('scroll', table.update, { passive: true, signal });
  addEventListener('resize', table.update, { signal });
  signal.addEventListener('abort', () => {
    left.y = scrollY;
    plot.close();
    clearTimeout(timer);
    clearTimeout(waiting);
  });

  return {
    title: `${manifest.model} \u00b7 ${manifest.hook}`,
    view,
    ready({ from }) {
      apply();
      if (from !== undefined) {
        const row = table.items.indexOf(from);
        scrollTo(0, left.y);
        preview(from);
        if (row >= 0) table.focus(row);
      } else {
        const first = table.items.find((i) => columns.n_active[i] > 0);
        // The preview is not empty at first, but nothing is marked: nobody has pointed at anything.
        if (first !== undefined) fillPreview(first);
      }
    },
    keys(key, event) {
      const steps = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 };
      if (!(key in steps)) return false;
      const current = Number(document.activeElement?.dataset?.feature ?? wanted);
      const inRows = table.body.contains(document.activeElement);
      if (key.startsWith('Arrow') && !inRows) return false;
      event.preventDefault();
      const at = table.items.indexOf(current);
      table.focus(at < 0 ? 0 : Math.min(Math.max(at + steps[key], 0), table.items.length - 1));
      return true;
    },
  };
}

/** How long the bars behind numbers are, in 0..1: densities on a log scale. */
function scales(columns) {
  const largest = columns.max.reduce((a, b) => Math.max(a, b ?? 0), 0) || 1;
  const densest = columns.n_active.reduce((a, b) => Math.max(a, b), 1);
  return {
    max: (i) => Math.max(0, (columns.max[i] ?? 0) / largest).toFixed(3),
    density: (i) => (Math.log(columns.n_active[i] + 1) / Math.log(densest + 1)).toFixed(3),
  };
}

/** The strongest examples in a few lines. */
function previewOf(i, detail, address) {
  const head = h('h2', null, h('a', { href: address }, `Feature ${i}`));
  if (!detail) return [head, h('p', { class: 'soft' }, 'Its page cannot be read.')];
  const strongest = detail.strata.find((s) => s.stratum === 'top') ?? detail.strata[0];
  if (!strongest) return [head, h('p', { class: 'soft' }, 'Never active on this text.')];
  return [
    head,
    h('p', { class: 'soft small' }, `active on ${share(detail.density)} of tokens, up to ${value(detail.max)}`),
    h('ul', { class: 'strips' }, strongest.examples.slice(0, 4).map((e) => h('li', null, strip(detail, e)))),
  ];
}
