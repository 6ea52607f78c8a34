// The runs below a directory: how far they are and how good, with the keys in which they differ.

import * as api from './api.js';
import { h } from './dom.js';
import { compact, count, share, value } from './format.js';
import { stage } from './run.js';

const EVERY = 5000;
/** Keys that differ, at most. */
const KEYS = 4;

/** Of the keys of `run.toml` those in which runs differ, and which say something about a run. */
function differing(runs) {
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.config)))];
  const whole = runs.filter((run) => Object.keys(run.config).length > 0);
  return keys.filter((key) => new Set(whole.map((run) => run.config[key])).size > 1).slice(0, KEYS);
}

function table(runs) {
  const keys = differing(runs);
  const known = (x, write) => (x === null || x === undefined ? '\u2013' : write(x));
  return h('table', { class: 'runs' },
    h('thead', null, h('tr', null,
      ['run', 'state', ...keys].map((name) => h('th', { scope: 'col' }, name)),
      ['step', 'tokens/s', 'FVU', 'L0', 'dead'].map((name) => h('th', { scope: 'col', class: 'right' }, name)))),
    h('tbody', null, runs.map((run) => h('tr', null,
      h('th', { scope: 'row' }, h('a', { href: `/run/${run.id}` }, run.name)),
      h('td', { title: run.problem ?? undefined }, stage(run)),
      keys.map((key) => h('td', null, (run.config[key] ?? '\u2013').replace(/^"(.*)"$/, '$1'))),
      [
        run.steps ? `${count(run.step)} / ${count(run.steps)}` : count(run.step),
        known(run.tokens_per_second, (x) => compact(Math.round(x))),
        known(run.held_out, (q) => value(q.fvu)),
        known(run.held_out, (q) => value(q.l0)),
        known(run.held_out, (q) => share(q.dead_share)),
      ].map((text) => h('td', { class: 'right' }, text))))));
}

export function overview({ runs, signal }) {
  const said = h('p', { class: 'soft', role: 'status' });
  const frame = h('div', { class: 'runs-frame card', tabindex: 0, role: 'region', 'aria-label': 'Runs' });
  let drawn = '';

  function draw(list) {
    const text = JSON.stringify(list.map(({ silent_seconds: _, ...run }) => run));
    if (text === drawn) return;
    drawn = text;
    const training = list.filter((run) => run.stage === 'training').length;
    said.textContent = list.length === 0 ? 'No run has begun yet.' : `${count(list.length)} runs, ${count(training)} of them training`;
    const focused = frame.contains(document.activeElement) && document.activeElement.getAttribute('href');
    frame.hidden = list.length === 0;
    frame.replaceChildren(table(list));
    if (focused) frame.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }

  const follow = () => api.poll(EVERY, signal, async () => draw(await api.runs()), (error) => {
    said.textContent = `${error.message} Trying again.`;
    drawn = '';
  });

  draw(runs);
  return {
    title: 'Runs',
    view: h('article', { class: 'run' }, h('header', { class: 'run-head' }, h('h1', { tabindex: -1 }, 'Runs'), said), frame),
    ready: () => { follow(); },
  };
}
