// Building the document. Text becomes text nodes, never markup.

const SVG = 'http://www.w3.org/2000/svg';

/** An element with attributes, listeners (`onclick`) and children (nodes, strings, or nothing). */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== undefined && child !== null && child !== false) element.append(child);
  }
  return element;
}

/** Sets a custom property: unlike a style attribute the content-security policy allows that. */
export function vary(element, name, value) {
  element.style.setProperty(name, String(value));
  return element;
}

/** Text for screen readers only. */
export function hidden(text) {
  return h('span', { class: 'unseen' }, text);
}

/** What a colour of the style sheet is at `element`, in a form that canvas takes. */
export function colour(element, name) {
  const probe = h('span', { class: 'unseen' });
  probe.style.setProperty('color', `var(${name})`);
  element.parentElement.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}
