// Which features, in which order. All of it can be written into an address and read back.

import { plain } from './tokens.js';

/** Columns with numbers; `of` finds the value of feature `i`. */
export const NUMBERS = {
  feature: { label: 'Feature', of: (_, i) => i },
  density: { label: 'Density', of: (c, i) => c.n_active[i] / c.tokens },
  active: { label: 'Active', of: (c, i) => c.n_active[i] },
  max: { label: 'Max', of: (c, i) => c.max[i] },
  min: { label: 'Min', of: (c, i) => c.min[i] },
  mean: { label: 'Mean', of: (c, i) => c.mean_active[i] },
};

const SCALES = { '%': 0.01, k: 1e3, m: 1e6 };

function number(text) {
  const found = /^([+\-\u2212]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([%km]?)$/i.exec(text.trim());
  if (!found) return NaN;
  return Number(found[1].replace('\u2212', '-')) * (SCALES[found[2].toLowerCase()] ?? 1);
}

/**
 * A condition on a number: `> 3`, `<= 1%`, `2..5`, `= 7`, or `7`, which means at least 7 (exactly 7 where `whole`).
 * Returns a predicate, null for no condition, undefined for what is none.
 */
export function condition(text, whole) {
  const trimmed = text.trim();
  if (trimmed === '') return null;
  const range = trimmed.split('..');
  if (range.length === 2) {
    const low = range[0].trim() === '' ? -Infinity : number(range[0]);
    const high = range[1].trim() === '' ? Infinity : number(range[1]);
    return Number.isNaN(low) || Number.isNaN(high) ? undefined : (x) => x >= low && x <= high;
  }
  const [, sign, rest] = /^(>=|<=|>|<|=|\u2265|\u2264)?(.*)$/s.exec(trimmed);
  const bound = number(rest);
  if (Number.isNaN(bound)) return undefined;
  switch (sign ?? (whole ? '=' : '>=')) {
    case '>': return (x) => x > bound;
    case '<': return (x) => x < bound;
    case '<=': case '\u2264': return (x) => x <= bound;
    case '=': return (x) => x === bound;
    default: return (x) => x >= bound;
  }
}

/** What the address says: sort column, direction, filters. Unknown values count as absent. */
export function read(parameters) {
  const sort = Object.hasOwn(NUMBERS, parameters.get('sort')) ? parameters.get('sort') : 'feature';
  const filters = {};
  for (const name of [...Object.keys(NUMBERS), 'tokens']) filters[name] = parameters.get(name) ?? '';
  const state = parameters.get('state');
  filters.state = state === 'alive' || state === 'dead' ? state : '';
  return { sort, descending: parameters.get('dir') === 'desc', filters };
}

/** The other way; defaults are left out. */
export function write({ sort, descending, filters }) {
  const parameters = new URLSearchParams();
  if (sort !== 'feature') parameters.set('sort', sort);
  if (descending) parameters.set('dir', 'desc');
  for (const [name, text] of Object.entries(filters)) if (text.trim() !== '') parameters.set(name, text);
  return parameters;
}

/** Whether everything is shown, in order of number. */
export function isPlain({ sort, descending, filters }) {
  return sort === 'feature' && !descending && Object.values(filters).every((text) => text.trim() === '');
}

/** Which entries of `texts` contain `needle`, whatever the case. */
export function matching(columns, needle) {
  columns.plain ??= columns.texts.map((piece) => plain(piece).toLowerCase());
  const wanted = needle.toLowerCase();
  return columns.plain.map((text) => text.includes(wanted));
}

/** The features that pass every filter, in order. */
export function select(columns, query) {
  const tests = [];
  for (const [name, { of }] of Object.entries(NUMBERS)) {
    const test = condition(query.filters[name], name === 'feature');
    if (test) tests.push((i) => test(of(columns, i)));
  }
  if (query.filters.state) {
    const alive = query.filters.state === 'alive';
    tests.push((i) => columns.n_active[i] > 0 === alive);
  }
  if (query.filters.tokens.trim() !== '') {
    const matches = matching(columns, query.filters.tokens.trim());
    tests.push((i) => columns.top_tokens[i].some((token) => matches[token]));
  }
  const passed = [];
  for (let i = 0; i < columns.n_active.length; i += 1) if (tests.every((test) => test(i))) passed.push(i);
  const order = Uint32Array.from(passed);
  if (query.sort !== 'feature') {
    const { of } = NUMBERS[query.sort];
    const keys = Float64Array.from({ length: columns.n_active.length }, (_, i) => of(columns, i) ?? 0);
    const direction = query.descending ? -1 : 1;
    order.sort((a, b) => direction * (keys[a] - keys[b]) || a - b);
  } else if (query.descending) {
    order.reverse();
  }
  return order;
}
