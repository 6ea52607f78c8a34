// A table of any length of which only the rows in sight exist.

import { h, vary } from './dom.js';

export const ROW = 42;
/** Rows drawn beyond the edges of the window. */
const MARGIN = 8;
/** Browsers do not lay out elements much taller than this; longer tables scroll in larger steps. */
const TALLEST = 8_000_000;

/**
 * `cells(item)` draws a row's cells; `link(item)` finds the row's link among them. The page itself scrolls.
 * Returns the body element and what changes it.
 */
export function rows({ cells, onFocus }) {
  const body = h('div', { class: 'rows', role: 'rowgroup' });
  let items = new Uint32Array();
  let drawn = new Map();
  let marked = -1;
  let frame = 0;

  const height = () => Math.min(items.length * ROW, TALLEST);
  /** Where row `i` lies when row `first` is at the top of the window. */
  const scale = () => (items.length * ROW > TALLEST ? TALLEST / (items.length * ROW) : 1);

  function row(i) {
    const element = h('div', { class: 'row', role: 'row', 'aria-rowindex': i + 2 }, cells(items[i]));
    element.addEventListener('focusin', () => onFocus?.(items[i]));
    element.addEventListener('pointerenter', () => onFocus?.(items[i]));
    return element;
  }

  function update() {
    frame = 0;
    const top = body.getBoundingClientRect().top;
    const above = Math.max(0, -top);
    const squeeze = scale();
    const first = Math.max(0, Math.floor(above / (ROW * squeeze)) - MARGIN);
    const last = Math.min(items.length, first + Math.ceil(innerHeight / ROW) + 2 * MARGIN);
    const next = new Map();
    for (let i = first; i < last; i += 1) {
      const element = drawn.get(i) ?? row(i);
      const y = squeeze === 1 ? i * ROW : above + (i - above / (ROW * squeeze)) * ROW;
      vary(element, '--y', `${y}px`);
      element.classList.toggle('marked', items[i] === marked);
      next.set(i, element);
    }
    for (const [i, element] of drawn) if (!next.has(i)) element.remove();
    // In order, so that Tab and screen readers go down the table.
    let before = null;
    for (const [, element] of [...next].reverse()) {
      if (element.parentElement !== body || element.nextSibling !== before) body.insertBefore(element, before);
      before = element;
    }
    drawn = next;
  }

  function later() {
    if (frame === 0) frame = requestAnimationFrame(update);
  }

  /** Brings row `i` into sight, and focuses its link. */
  function focus(i, { quiet = false } = {}) {
    if (i < 0 || i >= items.length) return;
    const y = body.getBoundingClientRect().top + i * ROW * scale();
    const head = body.previousElementSibling?.getBoundingClientRect().height ?? 0;
    const upper = 56 + head;
    if (y < upper + 4) scrollBy(0, y - upper - ROW);
    else if (y > innerHeight - 2 * ROW) scrollBy(0, y - innerHeight + 3 * ROW);
    update();
    if (!quiet) drawn.get(i)?.querySelector('a')?.focus({ preventScroll: true });
  }

  return {
    body,
    update: later,
    focus,
    get items() {
      return items;
    },
    set(order) {
      items = order;
      for (const element of drawn.values()) element.remove();
      drawn = new Map();
      vary(body, '--height', `${height()}px`);
      if (body.isConnected) update();
    },
    mark(item) {
      marked = item;
      later();
    },
  };
}
