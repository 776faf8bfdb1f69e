// Numbers as people read them, and small elements. Text never becomes markup.

const UNITS = [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]];

export function bytes(count) {
  const size = Math.abs(count);
  for (const [unit, factor] of UNITS) {
    if (size >= factor) {
      const scaled = count / factor;
      return `${scaled.toFixed(Math.abs(scaled) < 10 ? 2 : Math.abs(scaled) < 100 ? 1 : 0)} ${unit}`;
    }
  }
  return `${Math.round(count)} B`;
}

export function age(seconds) {
  if (seconds < 1) return "now";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

export function rate(perSecond) {
  return perSecond < 10 && perSecond > 0 ? perSecond.toFixed(1) : Math.round(perSecond).toString();
}

export function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// Makes the list's children as many as the items and lets `fill` write each; nodes are reused, so that nothing flickers.
export function fillList(list, items, make, fill) {
  while (list.children.length > items.length) list.lastChild.remove();
  while (list.children.length < items.length) list.append(make());
  items.forEach((item, index) => fill(list.children[index], item));
}
