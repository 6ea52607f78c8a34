// How often which value occurs, over log-spaced bins; the negative pole mirrored to the left.

import { h, svg } from './dom.js';
import { count, value } from './format.js';
import { explain } from './tooltip.js';

const WIDTH = 420;
const HEIGHT = 150;
const PAD = { left: 36, right: 8, top: 8, bottom: 24 };

const edge = (bins, i) => 2 ** (bins.log2_start + i * bins.log2_width);

/** The bins that hold something, with their magnitudes. */
function filled(bins, whole) {
  const list = bins.counts.map((n, i) => ({ n, low: edge(bins, i), high: edge(bins, i + 1) }));
  const first = list.findIndex((b) => b.n > 0);
  const last = list.findLastIndex((b) => b.n > 0);
  if (first < 0) return [];
  return whole ? list : list.slice(first, last + 1);
}

/** What is counted, and how to say it: the values of a feature's active tokens, unless told otherwise. */
const tokens = (detail) => ({
  one: 'token', many: 'tokens', whole: false, empty: 'No values: the feature was never active.',
  label: `Values of ${count(detail.n_active ?? 0)} active tokens, from ${value(detail.min)} to ${value(detail.max)}, in bins of equal width on a log scale`,
});

/** `whole`: draw every bin, so that pictures of the same bins have the same axis. */
export function histogram(detail, { one, many, whole, empty, label } = tokens(detail)) {
  const poles = [
    { sign: -1, bins: filled(detail.negative, whole) },
    { sign: 1, bins: filled(detail.positive, whole) },
  ].filter((pole) => pole.bins.length > 0);
  if (poles.length === 0) return h('p', { class: 'empty' }, empty);

  const most = Math.max(...poles.flatMap((pole) => pole.bins.map((b) => b.n)));
  const octaves = poles.map(({ bins }) => Math.log2(bins.at(-1).high / bins[0].low) || 1);
  const gap = poles.length > 1 ? 16 : 0;
  const room = WIDTH - PAD.left - PAD.right - gap;
  const tall = HEIGHT - PAD.top - PAD.bottom;
  // Log counts: the few strongest tokens, which examples show, are seen beside the many weak ones.
  const y = (n) => HEIGHT - PAD.bottom - (Math.log1p(n) / Math.log1p(most)) * tall;

  const picture = svg('svg', {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: 'histogram', role: 'img',
    'aria-label': label,
  });
  for (let n = 1; n <= most; n *= 10) {
    if (n > 1 && n * 10 <= most && Math.log10(most) > 5 && Math.log10(n) % 2 !== 0) continue;
    picture.append(
      svg('line', { class: 'grid-line', x1: PAD.left, x2: WIDTH - PAD.right, y1: y(n), y2: y(n) }),
      svg('text', { class: 'tick', x: PAD.left - 6, y: y(n) + 3.5, 'text-anchor': 'end' }, n >= 1000 ? `${n / 1000}k` : String(n)));
  }
  let from = PAD.left;
  poles.forEach(({ sign, bins }, p) => {
    const width = (room * octaves[p]) / octaves.reduce((a, b) => a + b, 0);
    const low = bins[0].low;
    const scale = (m) => (width * Math.log2(m / low)) / octaves[p];
    const x = (m) => (sign > 0 ? from + scale(m) : from + width - scale(m));
    for (const bin of bins) {
      const [a, b] = [x(bin.low), x(bin.high)].sort((one, other) => one - other);
      if (bin.n === 0) continue;
      const bar = svg('rect', {
        class: sign > 0 ? 'bar-pos' : 'bar-neg', x: a + 0.4, y: y(bin.n), rx: 1,
        width: Math.max(0.8, b - a - 0.8), height: HEIGHT - PAD.bottom - y(bin.n),
      });
      const ends = sign > 0 ? [bin.low, bin.high] : [-bin.high, -bin.low];
      picture.append(explain(bar, () => [
        h('strong', null, `${count(bin.n)} ${bin.n === 1 ? one : many}`),
        h('div', { class: 'soft' }, `${value(ends[0])} to ${value(ends[1])}`),
      ]));
    }
    for (const m of ticks(low, bins.at(-1).high, width)) {
      picture.append(svg('text', { class: 'tick', x: x(m), y: HEIGHT - 7, 'text-anchor': 'middle' }, tick(sign * m)));
    }
    from += width + gap;
  });
  picture.append(svg('line', { class: 'base-line', x1: PAD.left, x2: WIDTH - PAD.right, y1: HEIGHT - PAD.bottom, y2: HEIGHT - PAD.bottom }));
  return picture;
}

/** Round magnitudes between two, with room for their labels. */
function ticks(low, high, width) {
  const most = Math.max(1, Math.floor(width / 46));
  const all = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e += 1) {
    for (const m of [1, 2, 5]) all.push(m * 10 ** e);
  }
  const inside = all.filter((m) => m >= low * 1.02 && m <= high / 1.02);
  const powers = inside.filter((m) => Math.abs(Math.log10(m) - Math.round(Math.log10(m))) < 1e-9);
  if (inside.length <= most) return inside;
  const every = Math.ceil((powers.length || inside.length) / most);
  return (powers.length > 1 ? powers : inside).filter((_, i) => i % every === 0);
}

const tick = (m) => String(Number(m.toPrecision(2))).replace('-', '\u2212');
