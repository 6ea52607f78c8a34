// Every feature as a dot: density, on a log scale, against maximum. Drag to select, click to open.

import { colour, h } from './dom.js';
import { share, value } from './format.js';
import * as tooltip from './tooltip.js';

const PAD = { left: 44, right: 12, top: 12, bottom: 34 };
/** How near the pointer must be to a dot, in pixels. */
const REACH = 14;

/** Ticks at round steps that leave about `n` of them. */
function steps(high, n) {
  const rough = high / n;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * unit).find((s) => s >= rough);
  return Array.from({ length: Math.floor(high / step) + 1 }, (_, i) => i * step);
}

export function scatter(columns, { label, onHover, onOpen, onBrush }) {
  const n = columns.n_active.length;
  const canvas = h('canvas', {
    class: 'scatter',
    role: 'img',
    'aria-label': `Density, on a log scale, against maximum value, of ${n} features. The table holds the same numbers.`,
  });
  const context = canvas.getContext('2d');
  const alive = [];
  let low = Infinity;
  let high = -Infinity;
  let top = 0;
  for (let i = 0; i < n; i += 1) {
    if (columns.n_active[i] === 0) continue;
    alive.push(i);
    const x = Math.log10(columns.n_active[i] / columns.tokens);
    low = Math.min(low, x);
    high = Math.max(high, x);
    top = Math.max(top, columns.max[i] ?? 0);
  }
  low = Math.floor(low * 2) / 2;
  high = Math.min(0, Math.ceil(high * 2 + 0.2) / 2);
  if (!(high > low)) high = low + 1;
  top = top > 0 ? top * 1.05 : 1;

  let passed = null;
  let hovered = -1;
  let brush = null;
  let size = { width: 0, height: 0 };
  let frame = 0;

  const at = {
    x: (i) => px(Math.log10(columns.n_active[i] / columns.tokens)),
    y: (i) => py(columns.max[i] ?? 0),
  };
  const px = (x) => PAD.left + ((x - low) / (high - low)) * (size.width - PAD.left - PAD.right);
  const py = (y) => size.height - PAD.bottom - (y / top) * (size.height - PAD.top - PAD.bottom);
  const xAt = (p) => low + ((p - PAD.left) / (size.width - PAD.left - PAD.right)) * (high - low);
  const yAt = (p) => ((size.height - PAD.bottom - p) / (size.height - PAD.top - PAD.bottom)) * top;

  function axes() {
    const [line, soft] = [colour(canvas, '--line'), colour(canvas, '--soft')];
    context.font = `11px ${getComputedStyle(canvas).fontFamily}`;
    context.strokeStyle = line;
    context.fillStyle = soft;
    context.lineWidth = 1;
    context.textAlign = 'center';
    context.textBaseline = 'top';
    const every = high - low > 6 ? 2 : 1;
    for (let x = Math.ceil(low); x <= high; x += every) {
      const p = Math.round(px(x)) + 0.5;
      context.beginPath();
      context.moveTo(p, PAD.top);
      context.lineTo(p, size.height - PAD.bottom);
      context.stroke();
      // The last label ends with the picture.
      if (p > size.width - PAD.right - 12) context.textAlign = 'right';
      context.fillText(`${Number((100 * 10 ** x).toPrecision(2))}%`, p, size.height - PAD.bottom + 6);
    }
    context.textAlign = 'right';
    context.textBaseline = 'middle';
    for (const y of steps(top, 5)) {
      const p = Math.round(py(y)) + 0.5;
      context.beginPath();
      context.moveTo(PAD.left, p);
      context.lineTo(size.width - PAD.right, p);
      context.stroke();
      context.fillText(String(Number(y.toPrecision(3))), PAD.left - 8, p);
    }
    context.textAlign = 'right';
    context.textBaseline = 'bottom';
    context.fillText('density', size.width - PAD.right, size.height - 2);
    context.textAlign = 'left';
    context.textBaseline = 'top';
    context.fillText('max', 6, 0);
  }

  function draw() {
    frame = 0;
    if (!canvas.isConnected || size.width === 0) return;
    const ratio = devicePixelRatio || 1;
    canvas.width = Math.round(size.width * ratio);
    canvas.height = Math.round(size.height * ratio);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    axes();
    const radius = alive.length > 5000 ? 1.4 : alive.length > 1000 ? 2 : 2.6;
    const dots = (fill, alpha, which) => {
      context.fillStyle = fill;
      context.globalAlpha = alpha;
      for (const i of alive) {
        if (!which(i)) continue;
        context.beginPath();
        context.arc(at.x(i), at.y(i), radius, 0, 7);
        context.fill();
      }
      context.globalAlpha = 1;
    };
    if (passed) dots(colour(canvas, '--faint'), 0.25, (i) => !passed[i]);
    dots(colour(canvas, '--dot'), alive.length > 5000 ? 0.45 : 0.6, (i) => !passed || passed[i]);
    if (hovered >= 0) ring();
    if (brush) {
      const [x, y, width, height] = box(brush);
      context.fillStyle = colour(canvas, '--accent');
      context.globalAlpha = 0.1;
      context.fillRect(x, y, width, height);
      context.globalAlpha = 1;
      context.strokeStyle = colour(canvas, '--accent');
      context.strokeRect(x + 0.5, y + 0.5, width, height);
    }
  }

  function ring() {
    context.beginPath();
    context.arc(at.x(hovered), at.y(hovered), 5.5, 0, 7);
    context.strokeStyle = colour(canvas, '--accent');
    context.lineWidth = 2;
    context.stroke();
    context.lineWidth = 1;
  }

  const later = () => {
    if (frame === 0) frame = requestAnimationFrame(draw);
  };
  const box = (b) => [Math.min(b.x, b.toX), Math.min(b.y, b.toY), Math.abs(b.toX - b.x), Math.abs(b.toY - b.y)];
  const place = (event) => {
    const rect = canvas.getBoundingClientRect();
    return { x: event.clientX - rect.x, y: event.clientY - rect.y };
  };

  function nearest({ x, y }) {
    let best = -1;
    let distance = REACH ** 2;
    for (const i of alive) {
      if (passed && !passed[i]) continue;
      const away = (at.x(i) - x) ** 2 + (at.y(i) - y) ** 2;
      if (away < distance) [best, distance] = [i, away];
    }
    return best;
  }

  canvas.addEventListener('pointermove', (event) => {
    const spot = place(event);
    if (brush) {
      brush.toX = Math.min(Math.max(spot.x, PAD.left), size.width - PAD.right);
      brush.toY = Math.min(Math.max(spot.y, PAD.top), size.height - PAD.bottom);
      tooltip.hide();
      return later();
    }
    const found = nearest(spot);
    canvas.classList.toggle('over', found >= 0);
    if (found === hovered) return;
    hovered = found;
    later();
    if (found < 0) return tooltip.hide();
    const rect = canvas.getBoundingClientRect();
    tooltip.show(canvas, label(found), { x: rect.x + at.x(found), y: rect.y + at.y(found) });
    onHover(found);
  });
  canvas.addEventListener('pointerleave', () => {
    if (brush) return;
    hovered = -1;
    tooltip.hide();
    later();
  });
  canvas.addEventListener('pointerdown', (event) => {
    // A finger scrolls the page; only a mouse or a pen selects.
    if (event.button !== 0 || event.pointerType === 'touch') return;
    const { x, y } = place(event);
    brush = { x, y, toX: x, toY: y };
    canvas.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  canvas.addEventListener('pointerup', (event) => {
    const [x, y, width, height] = brush ? box(brush) : [0, 0, 0, 0];
    brush = null;
    if (width < 5 && height < 5) {
      const found = nearest(place(event));
      if (found >= 0) onOpen(found);
    } else {
      const digits = (v) => Number(Math.max(v, 0).toPrecision(3));
      onBrush({
        density: `${digits(10 ** (xAt(x) + 2))}%..${digits(10 ** (xAt(x + width) + 2))}%`,
        max: `${digits(yAt(y + height))}..${digits(yAt(y))}`,
      });
    }
    later();
  });
  canvas.addEventListener('pointercancel', () => {
    brush = null;
    later();
  });

  const watch = new ResizeObserver(([entry]) => {
    size = { width: entry.contentRect.width, height: entry.contentRect.height };
    later();
  });
  watch.observe(canvas);
  addEventListener('themechange', later);

  return {
    canvas,
    /** Shows which features the table holds; null for all. */
    filter(order) {
      passed = order && new Uint8Array(n);
      order?.forEach((i) => (passed[i] = 1));
      later();
    },
    /** Rings a feature that is pointed at elsewhere. */
    ring(i) {
      hovered = columns.n_active[i] > 0 ? i : -1;
      later();
    },
    close() {
      watch.disconnect();
      removeEventListener('themechange', later);
    },
    describe: (i) => `${share(columns.n_active[i] / columns.tokens)}, max ${value(columns.max[i])}`,
  };
}
