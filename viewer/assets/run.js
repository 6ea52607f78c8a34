// The page of a training run: what it is, how far it is, and how it goes, while it goes on.

import * as api from './api.js';
import { chart } from './chart.js';
import { h } from './dom.js';
import { compact, count, share, value } from './format.js';
import { histogram } from './histogram.js';

/** Milliseconds between two looks. */
const EVERY = 3000;

/** What was read of a run so far. */
class Log {
  constructor(id) {
    this.id = id;
    this.forget();
  }

  forget() {
    this.next = 0;
    this.lines = [];
    this.problems = [];
  }

  /** Reads what is new; says whether anything is. */
  async read() {
    let changed = false;
    for (;;) {
      const answer = await api.run(this.id, this.next);
      const { metrics, ...run } = answer;
      const config = JSON.stringify(run.config);
      // Cut back by a resume, or another run in the same directory.
      if (metrics.from < this.next || (this.config !== undefined && this.config !== config)) {
        const again = metrics.from > 0;
        this.forget();
        this.config = config;
        changed = true;
        if (again) continue;
      }
      this.config = config;
      this.run = run;
      this.lines.push(...metrics.lines);
      this.problems.push(...metrics.problems);
      this.next = metrics.next;
      changed ||= metrics.lines.length > 0 || metrics.problems.length > 0;
      if (!metrics.more) return changed;
    }
  }
}

export function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  const minutes = Math.round(seconds / 60);
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** What a run is at, in words. */
export function stage(run) {
  if (run.stage === 'finished') return 'finished';
  if (run.stage === 'unreadable') return 'damaged';
  if (run.stage === 'silent') return `has written nothing for ${duration(run.silent_seconds)}`;
  return run.step === 0 ? 'beginning' : 'training';
}

const plain = (text) => (text ?? '').replace(/^"(.*)"$/, '$1');

/** The keys that say most, with what people call them. */
const KEYS = [
  ['method', 'sae.method'], ['latents', 'sae.d_sae'], ['k', 'sae.k'], ['learning rate', 'train.lr'],
  ['batch', 'train.batch'], ['seed', 'train.seed'], ['hook', 'data.hook'], ['hooks', 'data.hooks'],
  ['target', 'data.target'], ['model', 'data.model'], ['activations', 'data.acts'],
];

function head(run, several) {
  const { config } = run;
  const facts = KEYS.filter(([, key]) => config[key] !== undefined && config[key] !== '[]')
    .map(([name, key]) => [name, plain(config[key])]);
  if (run.d_in) facts.splice(1, 0, ['width', count(run.d_in)]);
  return h('header', { class: 'run-head' },
    several && h('p', { class: 'small' }, h('a', { href: '/' }, '\u2190 all runs')),
    h('h1', { tabindex: -1 }, run.name),
    h('dl', { class: 'run-keys' }, facts.map(([name, text]) => h('div', null, h('dt', null, name), ' ', h('dd', null, text)))));
}

function progress(run) {
  const { step, steps } = run;
  const fact = (name, text) => text !== undefined && h('div', { class: 'fact' }, h('dt', null, name), h('dd', null, text));
  const known = (x, write) => (x === null || x === undefined ? undefined : write(x));
  const ended = run.stage === 'finished';
  return [
    h('dl', { class: 'facts' },
      fact('state', stage(run)),
      fact('step', steps ? `${count(step)} of ${count(steps)}` : count(step)),
      fact('tokens a second', known(run.tokens_per_second, (x) => compact(Math.round(x)))),
      ended ? fact('took', known(run.seconds, duration))
        : run.stage === 'training' && fact('time left', known(run.seconds_left, (s) => `about ${duration(s)}`)),
      fact('FVU, held out', known(run.held_out, (q) => value(q.fvu))),
      fact('L0, held out', known(run.held_out, (q) => value(q.l0))),
      fact('dead, held out', known(run.held_out, (q) => share(q.dead_share)))),
    steps > 0 && h('progress', { max: steps, value: step, 'aria-label': 'Steps taken' }),
  ];
}

function charts(lines, end) {
  const of = (pick) => lines.flatMap((line) => {
    const v = pick(line);
    return v === undefined || v === null ? [] : [[line.step, v]];
  });
  const parts = [...new Set(lines.flatMap((line) => Object.keys(line.parts)))];
  const hooks = [...new Set(lines.flatMap((line) => Object.keys(line.fvu_by_hook ?? {})))];
  const same = parts.length === 1 && lines.every((line) => line.parts[parts[0]] === line.loss);
  const list = [{ title: same ? `Loss: ${parts[0]}` : 'Loss', series: [{ name: same ? 'batch' : 'weighted sum', points: of((l) => l.loss) }] }];
  if (!same) for (const part of parts) {
    list.push({ title: `Part of the loss: ${part}`, series: [{ name: 'before weighting', points: of((l) => l.parts[part]) }] });
  }
  list.push({
    title: 'Fraction of variance unexplained',
    series: [{ name: hooks.length > 0 ? 'all' : 'held out', points: of((l) => l.held_out?.fvu) },
      ...hooks.map((hook) => ({ name: hook, points: of((l) => l.fvu_by_hook?.[hook]) }))],
  });
  list.push({
    title: 'Active latents a token (L0)', zero: true,
    series: [{ name: 'batch', points: of((l) => l.l0) }, { name: 'held out', points: of((l) => l.held_out?.l0) }],
  });
  list.push({
    title: 'Dead latents', zero: true, format: share, ticks: (v) => `${Number((100 * v).toPrecision(3))}%`,
    series: [{ name: 'silent too long', points: of((l) => l.dead_share) }, { name: 'silent on held out', points: of((l) => l.held_out?.dead_share) }],
  });
  list.push({ title: 'Learning rate', zero: true, series: [{ name: 'of the step', points: of((l) => l.lr) }] });
  return list.map((one) => chart({ ...one, end }));
}

/** Densities of the latents at the newest evaluation, or the one that the slider is on. */
class Densities {
  constructor() {
    this.at = null;
    this.slider = h('input', { type: 'range', min: 0, step: 1, 'aria-label': 'Evaluation', oninput: () => {
      const chosen = Number(this.slider.value);
      this.at = chosen === this.list.length - 1 ? null : chosen;
      this.draw();
    } });
    this.said = h('p', { class: 'small soft' });
    this.picture = h('div', { class: 'density' });
    this.view = h('figure', { class: 'card chart' },
      h('figcaption', null, h('h2', null, 'Density of latents')), this.picture, this.said, this.slider);
  }

  update(lines) {
    this.list = lines.filter((line) => line.density);
    if (this.at !== null && this.at >= this.list.length) this.at = null;
    this.slider.max = String(Math.max(0, this.list.length - 1));
    this.slider.hidden = this.list.length < 2;
    this.draw();
  }

  draw() {
    const at = this.at ?? this.list.length - 1;
    const line = this.list[at];
    if (!line) {
      this.picture.replaceChildren(h('p', { class: 'empty' }, 'Nothing was measured yet.'));
      return this.said.replaceChildren();
    }
    this.slider.value = String(at);
    this.slider.setAttribute('aria-valuetext', `step ${count(line.step)}`);
    const { quantiles, never, histogram: counts } = line.density;
    const [least, , , , median, , , , most] = quantiles;
    const log2 = Math.log2(10);
    this.picture.replaceChildren(histogram({
      positive: { log2_start: -6 * log2, log2_width: log2 / 4, counts }, negative: { log2_start: 0, log2_width: 1, counts: [] },
    }, {
      one: 'latent', many: 'latents', whole: true, empty: 'No latent fired.',
      label: `Densities of latents at step ${count(line.step)}, from ${value(least)} to ${value(most)} with median ${value(median)}, in bins of equal width on a log scale; ${count(never)} never fired`,
    }));
    this.said.replaceChildren(`Step ${count(line.step)}: share of held-out tokens for which a latent fires; median ${value(median)}, `
      + `90% of latents from ${value(quantiles[2])} to ${value(quantiles[6])}; ${count(never)} never fired.`);
  }
}

/** The page of the run `id`. */
export async function run({ id, several, signal }) {
  const log = new Log(id);
  await log.read();
  const top = h('div');
  const live = h('div', { class: 'run-now' });
  const notes = h('div', { class: 'run-notes', role: 'status' });
  const plots = h('div', { class: 'run-charts' });
  const densities = new Densities();
  const all = h('dl', { class: 'run-config' });
  let known = null;

  function draw(changed, trouble) {
    const { run: now } = log;
    if (known !== log.config) {
      known = log.config;
      top.replaceChildren(head(now, several));
      all.replaceChildren(...Object.entries(now.config).map(([key, text]) =>
        h('div', null, h('dt', null, h('code', null, key)), h('dd', null, h('code', null, text)))));
    }
    live.replaceChildren(...progress(now).filter(Boolean));
    const said = [
      trouble,
      now.problem,
      now.stage === 'silent' && `It has written nothing for ${duration(now.silent_seconds)}: it was stopped, or does something that takes long. `
        + '\u201csae train --resume\u201d with its directory as --out continues it.',
      log.lines.length === 0 && now.stage === 'training' && 'The run has just begun: nothing is logged yet.',
      ...log.problems.slice(0, 5),
      log.problems.length > 5 && `and ${count(log.problems.length - 5)} more lines that cannot be read`,
    ].filter(Boolean);
    const texts = said.join('\n');
    if (notes.dataset.said !== texts) {
      notes.dataset.said = texts;
      notes.replaceChildren(...said.map((text) => h('p', null, text)));
    }
    if (!changed) return;
    const end = now.steps ?? log.lines.at(-1)?.step ?? 1;
    densities.update(log.lines);
    // The slider keeps its focus: its figure stays where it is.
    const drawn = charts(log.lines, end);
    for (const old of [...plots.children]) if (old !== densities.view) old.remove();
    plots.prepend(...drawn);
    if (densities.view.parentElement !== plots) plots.append(densities.view);
  }

  const finished = () => log.run.stage === 'finished';
  const follow = () => api.poll(EVERY, signal, async () => {
    const changed = await log.read();
    if (!signal.aborted) draw(changed);
    return finished();
  }, (error) => {
    draw(false, `${error.message} Trying again.`);
    return finished();
  });

  draw(true);
  return {
    title: log.run.name,
    view: h('article', { class: 'run' }, top, live, notes, plots,
      h('details', { class: 'card' }, h('summary', null, 'All of run.toml'), all)),
    ready: () => finished() || follow(),
  };
}
