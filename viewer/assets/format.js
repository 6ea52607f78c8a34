// Numbers for people. A minus is U+2212; digits are grouped by commas whatever the locale, as in the documentation.

const grouped = new Intl.NumberFormat('en-US');
const compacted = new Intl.NumberFormat('en-US', { notation: 'compact', maximumSignificantDigits: 3 });

const minus = (text) => text.replace('-', '\u2212');

/** 12,345 */
export const count = (n) => grouped.format(n);

/** 1.23M */
export const compact = (n) => (n < 10_000 ? grouped.format(n) : compacted.format(n));

/** Four significant digits at most, without an exponent where that is readable. */
export function value(x) {
  if (x === null || x === undefined) return '\u2013';
  if (x === 0) return '0';
  const size = Math.abs(x);
  if (size >= 1e6 || size < 1e-3) return minus(x.toExponential(2));
  const digits = Math.max(0, 3 - Math.floor(Math.log10(size)));
  return minus(x.toFixed(Math.min(digits, 4)));
}

/** Two decimals: for lists where values line up. */
export const short = (x) => (x === null ? '\u2013' : minus(x.toFixed(2)));

/** Every digit that the index holds. */
export const exact = (x) => (x === null ? '\u2013' : minus(String(x)));

/** A share as a percentage with two significant digits. */
export function share(x) {
  if (x === null || x === undefined) return '\u2013';
  if (x === 0) return '0%';
  const percent = x * 100;
  if (percent >= 10) return `${percent.toFixed(1)}%`;
  const digits = 1 - Math.floor(Math.log10(percent));
  return `${percent.toFixed(Math.min(digits, 6))}%`;
}
