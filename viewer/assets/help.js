// The keys, in an overlay.

import { h } from './dom.js';

const KEYS = [
  ['Anywhere', [
    [['/'], 'search'],
    [['t'], 'light or dark'],
    [['?'], 'this help'],
    [['Esc'], 'close; from a feature, back to the atlas'],
  ]],
  ['Atlas', [
    [['j', '\u2193'], 'next row'],
    [['k', '\u2191'], 'previous row'],
    [['Enter'], 'open the feature'],
  ]],
  ['Feature', [
    [['j', '\u2192'], 'next feature'],
    [['k', '\u2190'], 'previous feature'],
    [['1', '9'], 'stratum of examples, from the strongest'],
    [['w'], 'more or less context'],
    [['g'], 'back to the atlas'],
  ]],
];

const dialog = document.getElementById('help');

dialog.append(
  h('div', { class: 'help-head' },
    h('h2', { id: 'help-title' }, 'Keys'),
    h('button', { class: 'quiet', type: 'button', 'aria-label': 'Close', onclick: () => dialog.close() }, '\u00d7')),
  ...KEYS.map(([place, keys]) =>
    h('section', null,
      h('h3', null, place),
      h('dl', null, keys.map(([names, what]) => [
        h('dt', null, names.map((name, i) => [i > 0 && (name === '9' ? ' to ' : ' '), h('kbd', null, name)])),
        h('dd', null, what),
      ])))),
  h('p', { class: 'soft' },
    'Along an example, Tab reaches the peak token and the arrow keys its other active tokens, with their exact values.'),
);

dialog.addEventListener('click', (event) => event.target === dialog && dialog.close());

export const open = () => dialog.open || dialog.showModal();
