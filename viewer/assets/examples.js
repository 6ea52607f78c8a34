// Examples: a context with the tokens coloured by the feature's value, each value exact on demand.

import { h, vary } from './dom.js';
import { count, exact, value } from './format.js';
import { direction, draw } from './tokens.js';
import { explain } from './tooltip.js';

/** How much of the context is drawn: tokens before and after the peak. */
export const WIDTHS = {
  near: { label: 'Near', before: 24, after: 12 },
  wide: { label: 'Wide', before: 80, after: 40 },
  whole: { label: 'Whole', before: Infinity, after: Infinity },
};

/** The tokens of an example, grouped so that a code point split over several is one. */
function groups(detail, example, { before, after }) {
  const text = detail.texts[example.text];
  const peak = example.position - text.start;
  const values = new Map(example.positions.map((p, k) => [p - text.start, example.values[k]]));
  let from = Math.max(0, peak - before);
  let to = Math.min(text.pieces.length, peak + after + 1);
  while (from > 0 && text.pieces[from] === null) from -= 1;
  while (to < text.pieces.length && text.pieces[to] === null) to += 1;
  const list = [];
  for (let i = from; i < to; i += 1) {
    if (text.pieces[i] === null && list.length > 0) list.at(-1).tokens.push(i);
    else list.push({ piece: text.pieces[i], tokens: [i] });
  }
  for (const group of list) {
    group.active = group.tokens.filter((i) => values.has(i)).map((i) => ({ at: i, value: values.get(i) }));
    group.strongest = group.active.reduce((a, b) => (Math.abs(b.value) > Math.abs(a) ? b.value : a), 0);
    group.isPeak = group.tokens.includes(peak);
  }
  return { text, list, cutBefore: from + text.start > 0, cutAfter: to + text.start < text.length };
}

/** How strongly a value is drawn, in 0..1, beside the largest of its pole. */
function strength(detail, v) {
  const largest = v < 0 ? -detail.min : detail.max;
  return largest > 0 ? Math.min(1, Math.abs(v) / largest) : 0;
}

function paint(element, detail, group) {
  element.classList.add(group.strongest < 0 ? 'neg' : 'pos');
  // A little colour even for the weakest: active is never drawn as inactive.
  vary(element, '--a', (0.12 + 0.88 * strength(detail, group.strongest)).toFixed(3));
  if (group.isPeak) element.classList.add('peak');
  return element;
}

function tip(group, text) {
  return [
    h('bdi', { class: 'tip-token' }, draw(group.piece, { edges: true })),
    ...group.active.map(({ at, value: v }) => h('div', { class: 'tip-value' }, exact(v))),
    h('div', { class: 'soft' }, group.tokens.map((i) => `token ${text.tokens[i]} at ${text.start + i}`).join(', ')),
  ];
}

/** One line without controls, for previews. */
export function strip(detail, example) {
  const { list } = groups(detail, example, { before: 9, after: 5 });
  return h('div', { class: 'strip', dir: direction(list.map((g) => g.piece)) }, list.map((group) => {
    // Lines of a list begin at the same place.
    const piece = group === list[0] && typeof group.piece === 'string' ? group.piece.trimStart() || ' ' : group.piece;
    const token = h('span', { class: 'token' }, draw(piece));
    return group.active.length > 0 ? paint(token, detail, group) : token;
  }));
}

/** One example with its values. Its active tokens are one stop of the Tab key; arrows go along them. */
export function example(detail, shown, width) {
  const { text, list, cutBefore, cutAfter } = groups(detail, shown, WIDTHS[width]);
  const line = h('div', { class: 'text', dir: direction(list.map((g) => g.piece)) });
  if (cutBefore) line.append(h('span', { class: 'cut', 'aria-hidden': 'true' }, '\u2026'));
  for (const group of list) {
    const token = h('span', { class: 'token' }, draw(group.piece));
    if (group.active.length > 0) {
      paint(token, detail, group);
      token.setAttribute('role', 'button');
      if (token.textContent.trim() === '') token.setAttribute('aria-label', 'space');
      token.setAttribute('tabindex', group.isPeak ? '0' : '-1');
      explain(token, () => tip(group, text));
    }
    line.append(token);
    if (width === 'whole' && typeof group.piece === 'string' && group.piece.includes('\n')) line.append(h('br'));
  }
  if (cutAfter) line.append(h('span', { class: 'cut', 'aria-hidden': 'true' }, '\u2026'));
  line.addEventListener('keydown', along);
  return h('li', { class: 'example' },
    h('div', { class: shown.value < 0 ? 'peak-value neg-ink' : 'peak-value' },
      h('span', null, value(shown.value)),
      vary(h('span', { class: shown.value < 0 ? 'gauge neg' : 'gauge', 'aria-hidden': 'true' }),
        '--share', strength(detail, shown.value).toFixed(3)),
      h('span', { class: 'where', title: `context ${text.context} of document ${text.document}, token ${shown.position}` },
        `${count(text.context)}:${shown.position}`)),
    line);
}

function along(event) {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const here = event.target.closest('[role="button"]');
  if (!step || !here || event.altKey || event.ctrlKey || event.metaKey) return;
  // Within an example the arrows belong to its tokens.
  event.stopPropagation();
  event.preventDefault();
  const stops = [...event.currentTarget.querySelectorAll('[role="button"]')];
  const next = stops[stops.indexOf(here) + step];
  if (!next) return;
  here.setAttribute('tabindex', '-1');
  next.setAttribute('tabindex', '0');
  next.focus();
}

/** A list of examples, or the word that there are none. */
export function examples(detail, stratum, width) {
  const list = detail.strata.find((s) => s.stratum === stratum)?.examples ?? [];
  if (list.length === 0) return h('p', { class: 'empty' }, 'No examples here.');
  return h('ol', { class: 'examples' }, list.map((shown) => example(detail, shown, width)));
}
