// A chart of lines over the steps of a run. The scale is logarithmic where values span more than a decade and a half.

import { h, svg } from './dom.js';
import { compact, count, value } from './format.js';
import { hide, show } from './tooltip.js';

const WIDTH = 420;
const HEIGHT = 170;
const PAD = { left: 46, right: 10, top: 8, bottom: 24 };
/** Points of a line, at most: more are not seen. */
const POINTS = 400;

/** Means of neighbouring points, so that no line has more than `POINTS`; the last point stays as it is. */
function thinned(points) {
  if (points.length <= POINTS) return points;
  const size = Math.ceil(points.length / POINTS);
  const list = [];
  for (let i = 0; i < points.length - 1; i += size) {
    const group = points.slice(i, Math.min(i + size, points.length - 1));
    const mean = (at) => group.reduce((sum, point) => sum + point[at], 0) / group.length;
    list.push([mean(0), mean(1)]);
  }
  return [...list, points.at(-1)];
}

/** `count` round numbers or so from `low` to `high`. */
function linearTicks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((m) => m * power >= rough) ?? 10);
  const list = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) list.push(i * step);
  return list;
}

function logTicks(low, high) {
  const list = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e += 1) {
    for (const m of [1, 2, 5]) list.push(m * 10 ** e);
  }
  const inside = list.filter((v) => v >= low * 0.999 && v <= high * 1.001);
  const powers = inside.filter((v) => Math.abs(Math.log10(v) - Math.round(Math.log10(v))) < 1e-9);
  const chosen = inside.length <= 6 || powers.length < 2 ? inside : powers;
  return chosen.filter((_, i) => i % Math.ceil(chosen.length / 6) === 0);
}

const tick = (v) => (Math.abs(v) >= 10_000 ? compact(v) : Math.abs(v) < 1e-3 && v !== 0
  ? v.toExponential(0).replace('-', '\u2212') : String(Number(v.toPrecision(3))).replace('-', '\u2212'));

/**
 * A figure with a title. `series`: `[{ name, points: [[step, value], ...] }]`; `end`: the last step of the axis;
 * `format` writes values, `ticks` those at the axis; `zero`: the axis is linear and begins at 0.
 */
export function chart({ title, series, end, format = value, ticks = tick, zero = false }) {
  const lines = series.map(({ name, points }) => ({ name, points: thinned(points.filter((p) => Number.isFinite(p[1]))), last: points.at(-1) }))
    .filter((line) => line.points.length > 0);
  const caption = h('figcaption', null,
    h('h2', null, title),
    h('ul', { class: 'keys' }, lines.map(({ name, last }, i) =>
      h('li', null, svg('svg', { class: 'key', viewBox: '0 0 16 8', 'aria-hidden': true },
        svg('path', { class: `line line-${i % 6}`, d: 'M0 4H16' })),
      h('span', { class: 'soft' }, name), ' ', format(last[1])))));
  if (lines.length === 0) {
    return h('figure', { class: 'card chart' }, caption, h('p', { class: 'empty' }, 'Nothing was measured yet.'));
  }

  const values = lines.flatMap((line) => line.points.map((p) => p[1]));
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const log = !zero && low > 0 && high / low > 30;
  if (!log) {
    if (zero) low = Math.min(low, 0);
    const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    high += room;
    if (!zero || low < 0) low = low >= 0 ? Math.max(0, low - room) : low - room;
  }
  const first = Math.min(...lines.map((line) => line.points[0][0]));
  const until = Math.max(end, first + 1);
  const x = (step) => PAD.left + ((WIDTH - PAD.left - PAD.right) * step) / until;
  const share = log ? (v) => Math.log(v / low) / Math.log(high / low) : (v) => (v - low) / (high - low);
  const y = (v) => HEIGHT - PAD.bottom - share(v) * (HEIGHT - PAD.top - PAD.bottom);

  const latest = lines.map(({ name, last }) => `${name} ${format(last[1])} at step ${count(last[0])}`).join(', ');
  const picture = svg('svg', {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: 'plot', role: 'img',
    'aria-label': `${title} over steps${log ? ', on a log scale' : ''}: ${latest}`,
  });
  for (const v of log ? logTicks(low, high) : linearTicks(low, high, 4)) {
    picture.append(
      svg('line', { class: 'grid-line', x1: PAD.left, x2: WIDTH - PAD.right, y1: y(v), y2: y(v) }),
      svg('text', { class: 'tick', x: PAD.left - 6, y: y(v) + 3.5, 'text-anchor': 'end' }, ticks(v)));
  }
  for (const step of linearTicks(0, until, 5)) {
    const anchor = x(step) > WIDTH - PAD.right - 14 ? 'end' : 'middle';
    picture.append(svg('text', { class: 'tick', x: x(step), y: HEIGHT - 7, 'text-anchor': anchor }, tick(step)));
  }
  picture.append(svg('line', { class: 'base-line', x1: PAD.left, x2: WIDTH - PAD.right, y1: HEIGHT - PAD.bottom, y2: HEIGHT - PAD.bottom }));
  lines.forEach(({ points }, i) => {
    const d = points.map(([step, v], n) => `${n === 0 ? 'M' : 'L'}${x(step).toFixed(1)} ${y(v).toFixed(1)}`).join('');
    picture.append(svg('path', { class: `line line-${i % 6}`, d }));
    // Few measurements, or a single one, are seen as such.
    if (points.length <= 30) for (const [step, v] of points) {
      picture.append(svg('circle', { class: `dot dot-${i % 6}`, cx: x(step), cy: y(v), r: 2.2 }));
    }
  });

  const cursor = svg('line', { class: 'cursor', y1: PAD.top, y2: HEIGHT - PAD.bottom, visibility: 'hidden' });
  picture.append(cursor);
  picture.addEventListener('pointermove', (event) => {
    const box = picture.getBoundingClientRect();
    const step = (((event.clientX - box.x) / box.width) * WIDTH - PAD.left) / (WIDTH - PAD.left - PAD.right) * until;
    const near = lines.map((line) => line.points.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a)));
    const at = near.reduce((a, b) => (Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a))[0];
    cursor.setAttribute('x1', x(at));
    cursor.setAttribute('x2', x(at));
    cursor.setAttribute('visibility', 'visible');
    show(picture, [
      h('strong', null, `step ${count(Math.round(at))}`),
      ...near.map((p, i) => h('div', { class: 'soft' }, `${lines[i].name} ${format(p[1])}`)),
    ], { x: box.x + (x(at) / WIDTH) * box.width, y: box.y + (PAD.top / HEIGHT) * box.height });
  });
  picture.addEventListener('pointerleave', () => {
    cursor.setAttribute('visibility', 'hidden');
    hide();
  });
  return h('figure', { class: 'card chart' }, caption, picture);
}
