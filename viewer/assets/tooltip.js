// One tooltip for the whole document: for the pointer, the keyboard and touch alike.

const contents = new WeakMap();
const tip = document.getElementById('tip');
let owner = null;

/** Gives `element` a tooltip; `content` is called when it is shown and returns nodes. */
export function explain(element, content) {
  contents.set(element, content);
  return element;
}

/** Shows the tooltip of `element`, or of a spot on it given in client coordinates. */
export function show(element, nodes, spot) {
  owner?.removeAttribute('aria-describedby');
  owner = element;
  tip.replaceChildren(...nodes);
  tip.hidden = false;
  element.setAttribute('aria-describedby', 'tip');
  const around = spot ? new DOMRect(spot.x, spot.y, 0, 0) : (element.getClientRects()[0] ?? new DOMRect());
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, around.x + around.width / 2 - width / 2), innerWidth - width - 8);
  const above = around.y - height - 8;
  tip.style.setProperty('left', `${left}px`);
  tip.style.setProperty('top', `${above > 60 ? above : around.bottom + 8}px`);
}

/** Hides it. Says whether it belonged to what is focused: then that was all the Escape key was for. */
export function hide() {
  const shown = !tip.hidden && owner === document.activeElement;
  owner?.removeAttribute('aria-describedby');
  owner = null;
  tip.hidden = true;
  return shown;
}

function explained(target) {
  for (let at = target; at instanceof Element; at = at.parentElement) if (contents.has(at)) return at;
  return null;
}

function open(event) {
  const element = explained(event.target);
  if (element) show(element, contents.get(element)());
  else if (owner && contents.has(owner)) hide();
}

document.addEventListener('pointerover', open);
document.addEventListener('focusin', open);
document.addEventListener('focusout', () => owner && contents.has(owner) && hide());
document.addEventListener('scroll', () => hide(), { passive: true });
