// How the owner's page shows things: nodes, numbers, times and charts. Served in front of app.js, as one script with it.
//
// Whatever is shown is text, never markup. Must never ask the agent for anything.

const HOUR_MS = 3_600_000;

// ---- the document ----

const byId = (id) => document.getElementById(id);

const say = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
};
/** A line that is there only if there is something to tell. */
const tell = (node, text) => {
  say(node, text);
  node.hidden = text === '';
};
const show = (node, shown) => {
  node.hidden = !shown;
};

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function drawn(tag, attributes, text) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

/** One node for each item, in order. A node whose key stays is kept, and with it focus and what is open. */
function list(parent, items, keyOf, make, update) {
  const seen = new Map();
  const keyed = items.map((item) => {
    const key = keyOf(item);
    const times = seen.get(key) ?? 0;
    seen.set(key, times + 1);
    return [`${key}\n${times}`, item];
  });
  const wanted = new Set(keyed.map(([key]) => key));
  const old = new Map();
  for (const node of [...parent.children]) {
    if (wanted.has(node.itsKey)) old.set(node.itsKey, node);
    else node.remove();
  }
  let place = parent.firstElementChild;
  for (const [key, item] of keyed) {
    const node = old.get(key) ?? make(item);
    node.itsKey = key;
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
    update(node, item);
  }
}

/** Pairs of a name and a value, and perhaps a class: `whole` gives a pair a line of its own. */
function facts(parent, pairs) {
  list(
    parent,
    pairs,
    ([name]) => name,
    ([name, , whole]) => element('div', whole ? { class: whole } : {}, element('dt', {}, name), element('dd')),
    (node, [, value]) => say(node.lastChild, value),
  );
}

function rows(table, items, keyOf, cells) {
  list(
    table.tBodies[0],
    items,
    keyOf,
    (item) =>
      element('tr', {}, ...cells(item).map((_, place) => element('td', place === 3 ? { class: 'number' } : {}))),
    (row, item) => cells(item).forEach((text, place) => say(row.children[place], text)),
  );
}

// ---- numbers and times ----

const clock = (ms, seconds = false) =>
  new Date(ms).toLocaleTimeString([], {
    hour: '2-digit',
    minute: '2-digit',
    ...(seconds && { second: '2-digit' }),
    hourCycle: 'h23',
  });
const short = (id) => String(id).slice(0, 10);

function moment(ms) {
  const day =
    new Date(ms).toDateString() === new Date().toDateString()
      ? ''
      : `${new Date(ms).toLocaleDateString([], { weekday: 'short', day: 'numeric', month: 'short' })} `;
  return day + clock(ms);
}

function span(ms) {
  const seconds = Math.max(0, Math.round(ms / 1_000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3_600)
    return `${Math.floor(seconds / 60)} min${seconds < 600 && seconds % 60 ? ` ${seconds % 60} s` : ''}`;
  return `${Math.floor(seconds / 3_600)} h ${Math.floor((seconds % 3_600) / 60)} min`;
}

function amount(number, unit = '') {
  if (!Number.isFinite(number)) return '–';
  const [scale, letter] =
    number >= 1e12
      ? [1e12, 'T']
      : number >= 1e9
        ? [1e9, 'G']
        : number >= 1e6
          ? [1e6, 'M']
          : number >= 1e4
            ? [1e3, 'k']
            : [1, ''];
  const scaled = number / scale;
  const digits = letter ? (scaled < 100 ? 1 : 0) : Number.isInteger(scaled) || scaled >= 100 ? 0 : scaled >= 10 ? 1 : 2;
  return `${scaled.toFixed(digits)} ${letter}${unit}`.trim();
}

/** Coins are exact texts of eight decimals; four are shown, never rounded up, and zeros that say nothing are left out. */
const coins = (text) =>
  String(text ?? '–')
    .replace(/(\.\d{4})\d+$/, '$1')
    .replace(/(\.\d\d\d*?)0+$/, '$1');
const nats = (micro) => `${(micro / 1e6).toFixed(3)}`;

// ---- charts ----

function steps(low, high, most) {
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((factor) => power * factor >= rough * 0.999);
}

function timeSteps(from, to, most) {
  const step =
    [5, 10, 15, 30, 60, 120, 180, 240, 360, 720]
      .map((minutes) => minutes * 60_000)
      .find((ms) => (to - from) / ms <= most) ?? 24 * HOUR_MS;
  const shift = new Date(to).getTimezoneOffset() * 60_000;
  return ticks(from - shift, to - shift, step).map((at) => at + shift);
}

function ticks(low, high, step) {
  const first = Math.ceil(low / step - 1e-9) * step;
  return Array.from(
    { length: Math.max(0, Math.floor((high - first) / step + 1e-6) + 1) },
    (_, place) => first + place * step,
  );
}

/**
 * Draws `plot` into `holder`: series of points `[x, y]`, lines or bars, with axes. `plot.read(x)` says in words what is at x;
 * pointer and arrow keys move along it.
 */
function chart(holder, plot) {
  if (!holder.itsPlot) {
    holder.tabIndex = 0;
    holder.setAttribute('role', 'img');
    const readout = element('b');
    holder.parentElement.querySelector('figcaption')?.append(readout);
    holder.itsReadout = readout;
    const at = (x) => {
      holder.itsX = x;
      draw(holder);
    };
    holder.addEventListener('pointermove', (event) =>
      at(holder.itsBack(event.clientX - holder.getBoundingClientRect().left)),
    );
    holder.addEventListener('pointerleave', () => at(undefined));
    holder.addEventListener('blur', () => at(undefined));
    holder.addEventListener('keydown', (event) => {
      const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const { from, to, stride } = holder.itsPlot;
      if (!way) return;
      event.preventDefault();
      at(Math.min(to, Math.max(from, (holder.itsX ?? to) + way * (stride ?? (to - from) / 60))));
      holder.setAttribute('aria-label', holder.itsReadout.textContent);
    });
    new ResizeObserver(() => draw(holder)).observe(holder);
  }
  holder.itsPlot = plot;
  holder.setAttribute('aria-label', `${plot.name}. ${plot.read(undefined)}`);
  draw(holder);
}

function draw(holder) {
  const { itsPlot: plot, clientWidth: width, clientHeight: height } = holder;
  if (width < 40) return;
  const label = plot.show ?? ((value) => amount(value));
  const [low, high] = plot.range;
  const step = plot.band ? 1 : steps(low, high, 4);
  const marks = plot.band ? [] : ticks(low, high, step);
  const left = plot.band ? 0 : 8 + 6.4 * Math.max(1, ...marks.map((mark) => label(mark, step).length));
  const [top, bottom, right] = [plot.band ? 2 : 8, height - 20, width - 8];
  const x = (at) => left + ((at - plot.from) / (plot.to - plot.from || 1)) * (right - left);
  const y = (value) => bottom - ((value - low) / (high - low || 1)) * (bottom - top);
  holder.itsBack = (pixel) =>
    Math.min(plot.to, Math.max(plot.from, plot.from + ((pixel - left) / (right - left)) * (plot.to - plot.from)));
  const svg = drawn('svg', { 'aria-hidden': 'true' });
  for (const mark of marks) {
    svg.append(
      drawn('line', { class: 'grid', x1: left, x2: right, y1: y(mark), y2: y(mark) }),
      drawn('text', { x: left - 6, y: y(mark) + 4, 'text-anchor': 'end' }, label(mark, step)),
    );
  }
  svg.append(drawn('line', { class: 'axis', x1: left, x2: right, y1: bottom, y2: bottom }));
  const most = Math.max(2, Math.floor((right - left) / 62));
  const across = plot.byTime
    ? timeSteps(plot.from, plot.to, most)
    : ticks(plot.from, plot.to, Math.max(1, steps(plot.from, plot.to, most)));
  for (const at of across) {
    const anchor = x(at) < left + 16 ? 'start' : x(at) > right - 16 ? 'end' : 'middle';
    svg.append(
      drawn('line', { class: 'axis', x1: x(at), x2: x(at), y1: bottom, y2: bottom + 3 }),
      drawn(
        'text',
        { x: x(at), y: height - 4, 'text-anchor': anchor },
        plot.byTime ? clock(at) : String(Math.round(at)),
      ),
    );
  }
  for (const { kind, colour, points, gap } of plot.series) {
    // Few points are shown as such: between them nothing was measured.
    if (kind === 'line' && points.length <= 24)
      for (const [at, value] of points)
        if (value !== null) svg.append(drawn('circle', { class: `dot ${colour}`, cx: x(at), cy: y(value), r: 2.6 }));
    if (kind === 'line')
      svg.append(
        drawn('path', {
          class: `line ${colour}`,
          d: path(points, x, y, Math.max(gap ?? Infinity, ((plot.to - plot.from) / (right - left)) * 4)),
        }),
      );
    else
      for (const [from, to, value] of points)
        svg.append(
          drawn('rect', {
            class: colour,
            x: x(from),
            width: Math.max(1, x(to) - x(from) - (kind === 'bar' ? 2 : 0)),
            y: y(value),
            height: Math.max(0, bottom - y(value)),
          }),
        );
  }
  if (holder.itsX !== undefined)
    svg.append(drawn('line', { class: 'cross', x1: x(holder.itsX), x2: x(holder.itsX), y1: top, y2: bottom }));
  say(holder.itsReadout, plot.read(holder.itsX));
  holder.replaceChildren(svg);
}

/** A line through the mean of each two pixels, broken where nothing was measured for longer than `gap`. */
function path(points, x, y, gap) {
  const said = [];
  let [before, sum, count, pixel] = [undefined, 0, 0, undefined];
  let begin = true;
  const put = () => {
    if (count) said.push(`${begin ? 'M' : 'L'}${pixel.toFixed(1)} ${y(sum / count).toFixed(1)}${begin ? 'h.01' : ''}`);
    begin = begin && !count;
    [sum, count, pixel] = [0, 0, undefined];
  };
  for (const [at, value] of points) {
    if (value === null || (before !== undefined && at - before > gap)) {
      put();
      begin = true;
    }
    if (value === null) continue;
    const here = x(at);
    if (pixel !== undefined && here - pixel >= 2) put();
    pixel ??= here;
    [sum, count, before] = [sum + value, count + 1, at];
  }
  put();
  return said.join('');
}

function nearest(points, at) {
  const known = points.filter(([, value]) => value !== null);
  if (at === undefined) return known.at(-1);
  return known.reduce(
    (best, point) => (best === undefined || Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best),
    undefined,
  );
}
