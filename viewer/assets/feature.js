// The page of one feature.

import * as api from './api.js';
import { h, vary } from './dom.js';
import { WIDTHS, examples } from './examples.js';
import { isPlain, read, select, write } from './filter.js';
import { count, exact, share, short, value } from './format.js';
import { histogram } from './histogram.js';
import { chip, plain } from './tokens.js';

/** The tabs: strongest first, then quantiles from high to low. Signed codes show both poles at once. */
function tabsOf(detail, manifest) {
  const has = (name) => detail.strata.some((s) => s.stratum === name);
  const tabs = [];
  if (manifest.signed) tabs.push({ name: 'top', label: 'Both poles', strata: ['top', 'bottom'] });
  else tabs.push({ name: 'top', label: 'Top', strata: ['top'] });
  const n = manifest.quantiles;
  for (let q = n - 1; q >= 0; q -= 1) {
    if (!has(`q${q}`)) continue;
    const percent = (i) => Math.round((100 * i) / n);
    tabs.push({ name: `q${q}`, label: `${percent(q)}\u2013${percent(q + 1)}%`, strata: [`q${q}`], quantile: true });
  }
  return tabs;
}

export async function feature({ index, number, parameters, go, link, signal, kept }) {
  const { id, manifest } = index;
  const [detail, columns] = await Promise.all([api.feature(id, number), kept.columns(id)]);
  const query = read(parameters);
  const tabs = tabsOf(detail, manifest);
  let stratum = tabs.some((t) => t.name === parameters.get('stratum')) ? parameters.get('stratum') : 'top';
  let width = Object.hasOwn(WIDTHS, parameters.get('width')) ? parameters.get('width') : 'near';

  const address = (i) => {
    const next = write(query);
    if (stratum !== 'top') next.set('stratum', stratum);
    if (width !== 'near') next.set('width', width);
    return link(`/feature/${i}`, next);
  };
  const back = () => link('/', write(query));

  // The list that the keys walk along: the atlas's, as it was left.
  const walk = isPlain(query) || !columns ? null : select(columns, query);
  const place = walk ? walk.indexOf(number) : number;
  const at = (k) => (k < 0 || k >= (walk ? walk.length : manifest.d_sae) ? undefined : walk ? walk[k] : k);
  const previous = place < 0 ? undefined : at(place - 1);
  const next = place < 0 ? at(0) : at(place + 1);

  const panel = h('div', { role: 'tabpanel', id: 'panel', 'aria-labelledby': `tab-${stratum}`, tabindex: 0 });
  const tabList = h('div', { class: 'tabs', role: 'tablist', 'aria-label': 'Examples by strength' });
  const widthList = h('fieldset', { class: 'segments' }, h('legend', { class: 'unseen' }, 'Context'));

  function drawTabs() {
    tabList.replaceChildren(...tabs.map((t) =>
      h('button', {
        type: 'button', role: 'tab', id: `tab-${t.name}`, 'aria-selected': String(t.name === stratum),
        'aria-controls': 'panel', tabindex: t.name === stratum ? 0 : -1, onclick: () => choose(t.name),
        title: t.quantile && 'a uniform sample of the active tokens between these quantiles of the values',
      }, t.label)));
  }

  function drawPanel() {
    const tab = tabs.find((t) => t.name === stratum);
    panel.setAttribute('aria-labelledby', `tab-${stratum}`);
    if (detail.strata.length === 0) {
      panel.replaceChildren(h('p', { class: 'empty' }, detail.alive
        ? 'The index holds no examples of this feature.'
        : `This feature was never active on the ${count(manifest.tokens)} tokens of the text.`));
    } else if (tab.strata.length > 1) {
      panel.replaceChildren(h('div', { class: 'poles' },
        pole('Positive', 'top'), pole('Negative', 'bottom')));
    } else {
      panel.replaceChildren(examples(detail, tab.strata[0], width));
    }
  }

  const pole = (label, name) => h('section', null,
    h('h3', { class: name === 'bottom' ? 'neg-ink' : 'pos-ink' }, label), examples(detail, name, width));

  function keep() {
    go(address(number), { replace: true, draw: false });
    for (const anchor of view.querySelectorAll('a[data-to]')) anchor.href = address(Number(anchor.dataset.to));
  }

  function choose(name, { focus = true } = {}) {
    stratum = name;
    drawTabs();
    drawPanel();
    keep();
    if (focus) document.getElementById(`tab-${name}`)?.focus();
  }

  function widen(name) {
    width = name;
    drawPanel();
    keep();
    widthList.querySelector(`[value="${name}"]`).checked = true;
  }

  widthList.append(...Object.entries(WIDTHS).map(([name, { label }]) =>
    h('label', null,
      h('input', { type: 'radio', name: 'width', value: name, checked: name === width, onchange: () => widen(name) }),
      h('span', null, label))));

  tabList.addEventListener('keydown', (event) => {
    const k = tabs.findIndex((t) => t.name === stratum);
    const to = { ArrowLeft: k - 1, ArrowRight: k + 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.stopPropagation();
    event.preventDefault();
    choose(tabs[(to + tabs.length) % tabs.length].name);
  });

  const step = (label, to, name, arrow) => to === undefined
    ? h('span', { class: 'step', 'aria-disabled': 'true' }, arrow)
    : h('a', { class: 'step', id: name, href: address(to), 'data-to': to, 'aria-label': `${label}: ${to}`, title: label }, arrow);

  const view = h('article', { class: 'feature' },
    h('header', { class: 'feature-head' },
      h('nav', { class: 'steps', 'aria-label': 'Features' },
        h('a', { class: 'back', href: back() }, h('span', { 'aria-hidden': 'true' }, '\u2190 '), 'Atlas'),
        h('span', { class: 'soft place' }, walk
          ? place < 0 ? `not in the list of ${count(walk.length)}` : `${count(place + 1)} of ${count(walk.length)} in the list`
          : `${count(number + 1)} of ${count(manifest.d_sae)}`),
        step('Previous feature', previous, 'previous', '\u2039'),
        step('Next feature', next, 'next', '\u203a')),
      h('div', { class: 'title' },
        h('h1', { id: 'title', tabindex: -1 }, h('span', { class: 'soft' }, 'Feature '), String(number)),
        detail.alive
          ? h('div', { class: 'chips', 'aria-label': 'Top tokens', role: 'group' }, detail.top_tokens.map(chip))
          : h('span', { class: 'badge' }, 'dead'),
        permalink())),
    h('dl', { class: 'facts' }, statistics(detail, manifest)),
    h('div', { class: 'feature-grid' },
      h('section', { class: 'card values', 'aria-labelledby': 'values-title' },
        h('h2', { id: 'values-title' }, 'Values'),
        histogram(detail),
        detail.alive && h('p', { class: 'soft small' }, 'Active tokens by value; both scales are logarithmic.')),
      h('section', { class: 'main', 'aria-labelledby': 'examples-title' },
        h('h2', { id: 'examples-title', class: 'unseen' }, 'Examples'),
        detail.strata.length > 0 && h('div', { class: 'tools' }, tabList, widthList),
        panel),
      h('div', { class: 'aside' }, logits(detail), neighbours(detail, address))));

  function permalink() {
    const button = h('button', {
      class: 'text', type: 'button', title: 'Copy the address of this view',
      onclick: async () => {
        const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
        button.textContent = copied ? 'Copied' : 'Copy from the address bar';
        setTimeout(() => (button.textContent = 'Copy link'), 1500);
      },
    }, 'Copy link');
    return button;
  }

  if (detail.strata.length > 0) drawTabs();
  else panel.removeAttribute('aria-labelledby');
  drawPanel();
  if (detail.strata.length === 0) {
    panel.removeAttribute('role');
    panel.removeAttribute('aria-labelledby');
    panel.removeAttribute('tabindex');
  }
  // The next page is there before it is asked for.
  const ahead = setTimeout(() => {
    for (const i of [next, previous]) if (i !== undefined) api.feature(id, i).catch(() => {});
  }, 30);
  signal.addEventListener('abort', () => clearTimeout(ahead));

  const tokens = detail.top_tokens.slice(0, 3).map((t) => plain(t).trim()).filter(Boolean).join(', ');
  return {
    title: `Feature ${number}${tokens ? ` \u00b7 ${tokens}` : ''}`,
    view,
    ready({ focus }) {
      if (focus && !document.getElementById(focus)) document.getElementById('title').focus({ preventScroll: true });
    },
    keys(key) {
      if (key === 'j' || key === 'ArrowRight') return next !== undefined && (go(address(next), { replace: false }), true);
      if (key === 'k' || key === 'ArrowLeft') return previous !== undefined && (go(address(previous)), true);
      if (key === 'g' || key === 'Escape') return go(back(), { from: number }), true;
      if (key === 'w' && detail.alive) {
        const names = Object.keys(WIDTHS);
        return widen(names[(names.indexOf(width) + 1) % names.length]), true;
      }
      const tab = /^[1-9]$/.test(key) && detail.strata.length > 0 && tabs[Number(key) - 1];
      return tab ? (choose(tab.name, { focus: false }), true) : false;
    },
  };
}

function statistics(detail, manifest) {
  const list = [
    ['Density', share(detail.density), `active on ${count(detail.n_active)} of ${count(manifest.tokens)} tokens`],
    ['Active tokens', count(detail.n_active)],
    ['Max', value(detail.max), exact(detail.max)],
    manifest.signed && ['Min', value(detail.min), exact(detail.min)],
    [manifest.signed ? 'Mean size' : 'Mean', value(detail.mean_active), `mean of |value| over active tokens: ${exact(detail.mean_active)}`],
  ];
  return list.filter(Boolean).map(([label, text, title]) =>
    h('div', { class: 'fact', title }, h('dt', null, label), h('dd', null, text)));
}

function logits(detail) {
  const section = (...children) => h('section', { class: 'card', 'aria-labelledby': 'logits-title' },
    h('h2', { id: 'logits-title' }, 'Logits'), ...children);
  const { top_logits: top, bottom_logits: bottom } = detail;
  if (top.length === 0 && bottom.length === 0) {
    return section(h('p', { class: 'soft small' },
      'None: the index was built without the model\u2019s unembedding, or its hook is not in the residual stream.'));
  }
  const largest = Math.max(...[...top, ...bottom].map((l) => Math.abs(l.logit ?? 0))) || 1;
  const column = (label, list) => h('div', null,
    h('h3', null, label),
    h('ol', { class: 'bars' }, list.slice(0, 10).map((l) =>
      vary(h('li', { class: l.logit < 0 ? 'neg' : 'pos', title: `token ${l.token}: ${exact(l.logit)}` },
        chip(l.text), h('span', { class: 'number' }, short(l.logit))),
      '--share', (Math.abs(l.logit ?? 0) / largest).toFixed(3)))));
  return section(h('div', { class: 'two' }, column('Raises', top), column('Lowers', bottom)));
}

function neighbours(detail, address) {
  return h('section', { class: 'card', 'aria-labelledby': 'neighbours-title' },
    h('h2', { id: 'neighbours-title' }, 'Nearest decoder rows'),
    detail.neighbours.length === 0
      ? h('p', { class: 'soft small' }, 'None were recorded.')
      : h('ol', { class: 'neighbours' }, detail.neighbours.map((n) =>
        vary(h('li', { class: n.cosine < 0 ? 'neg' : 'pos' },
          h('a', { href: address(n.feature), 'data-to': n.feature }, String(n.feature)),
          h('span', { class: 'chips' }, n.density > 0 ? n.top_tokens.slice(0, 3).map(chip) : h('span', { class: 'soft small' }, 'never active')),
          h('span', { class: 'number', title: `cosine ${exact(n.cosine)}` }, short(n.cosine))),
        '--share', Math.abs(n.cosine ?? 0).toFixed(3)))));
}
