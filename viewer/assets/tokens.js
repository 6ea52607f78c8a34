// Tokens as text. The server sends a piece a token: a string of whole code points, null where an earlier token began
// the code point, or a list of strings and single bytes. What has no shape of its own is drawn as a mark.

import { h } from './dom.js';

const NAMES = new Map([
  [0x09, '\u21e5'], [0x0a, '\u21b5'], [0x0d, '\u240d'], [0x7f, '\u2421'], [0xa0, 'NBSP'], [0xad, 'SHY'],
  [0x34f, 'CGJ'], [0x61c, 'ALM'], [0x180e, 'MVS'], [0x200b, 'ZWSP'], [0x200c, 'ZWNJ'], [0x200d, 'ZWJ'],
  [0x200e, 'LRM'], [0x200f, 'RLM'], [0x2028, 'LSEP'], [0x2029, 'PSEP'], [0x202a, 'LRE'], [0x202b, 'RLE'],
  [0x202c, 'PDF'], [0x202d, 'LRO'], [0x202e, 'RLO'], [0x2060, 'WJ'], [0x2066, 'LRI'], [0x2067, 'RLI'],
  [0x2068, 'FSI'], [0x2069, 'PDI'], [0xfeff, 'BOM'], [0xfffd, '\ufffd'],
]);

// Controls, formats, separators but the space, private use and unassigned. A joiner between two pictures and a
// variation selector behind a character do have a shape: that of the emoji.
const SHAPELESS = new RegExp(
  '(?:(?<=\\p{Extended_Pictographic}\\ufe0f?)\\u200d(?=\\p{Extended_Pictographic}))' +
    '|([\\p{Cc}\\p{Cf}\\p{Zl}\\p{Zp}\\p{Co}\\p{Cn}\\p{Cs}\\u00a0\\u034f\\ufffd\\u115f\\u1160\\u3164\\uffa0])' +
    '|(^[\\ufe00-\\ufe0f])',
  'gu',
);

const hex = (n, width) => n.toString(16).toUpperCase().padStart(width, '0');

function name(character) {
  const code = character.codePointAt(0);
  const known = NAMES.get(code);
  if (known) return known;
  return code < 0x20 ? String.fromCodePoint(0x2400 + code) : `U+${hex(code, 4)}`;
}

function mark(text) {
  return h('span', { class: 'mark-char' }, text);
}

function* drawText(text, edges) {
  let from = 0;
  const end = text.length;
  let last = end;
  if (edges) {
    // At the edges of a token that stands alone a space would not be seen.
    while (from < end && text[from] === ' ') from += 1;
    while (last > from && text[last - 1] === ' ') last -= 1;
    if (from > 0) yield h('span', { class: 'mark-space' }, '\u00b7'.repeat(from));
  }
  const body = text.slice(from, last);
  // A combining mark would sit on the token before.
  if (/^\p{M}/u.test(body) && !/^[\ufe00-\ufe0f]/u.test(body)) yield '\u25cc';
  let done = 0;
  for (const found of body.matchAll(SHAPELESS)) {
    const character = found[1] ?? found[2];
    if (character === undefined) continue;
    if (found.index > done) yield body.slice(done, found.index);
    yield mark(name(character));
    done = found.index + character.length;
  }
  if (done < body.length) yield body.slice(done);
  if (edges && last < end) yield h('span', { class: 'mark-space' }, '\u00b7'.repeat(end - last));
}

/** The nodes of a piece. `edges`: whether spaces at its edges are marked. */
export function draw(piece, { edges = false } = {}) {
  if (piece === null) return [];
  if (typeof piece === 'string') return [...drawText(piece, edges)];
  // A special token, such as the one that begins a context.
  if (piece.length === 0) return [mark('\u25c7')];
  return piece.flatMap((part) => (typeof part === 'number' ? [mark(hex(part, 2))] : [...drawText(part, edges)]));
}

/** A piece as plain text, for searching and for labels. */
export function plain(piece) {
  if (piece === null) return '';
  if (typeof piece === 'string') return piece;
  return piece.map((part) => (typeof part === 'number' ? `\\x${hex(part, 2)}` : part)).join('');
}

/** The direction that most letters have: one Arabic word does not turn an English line around. */
export function direction(pieces) {
  const text = pieces.map(plain).join('');
  const backward = text.match(/[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/g)?.length ?? 0;
  return 2 * backward > (text.match(/\p{L}/gu)?.length ?? 0) ? 'rtl' : 'ltr';
}

/** A token on its own, isolated from the direction of the text around it. */
export function chip(piece) {
  return h('bdi', { class: 'chip' }, draw(piece, { edges: true }));
}
