// The page of all rigs of one owner: asks the agent that served it, shows what they say, and tells it what the owner orders.
//
// Names and reasons come from other machines: whatever is shown is text, never markup. Needs ask.js and draw.js in front of it.

const LOOK_EVERY_MS = 60_000;
// The agent waits three seconds for each rig's word, ten for its obedience, and asks one thing at a time.
const FLEET_WITHIN_MS = 25_000;
const NAMES = { working: 'Working', waiting: 'Waiting', paused: 'Paused', trouble: 'Trouble', gone: 'Gone' };

const fleet = {
  rigs: [],
  at: 0,
  lost: 0,
  busy: false,
  filter: 'all',
  selected: new Set(),
  open: new Set(),
};

const stateOf = (rig) => (rig.answers ? (NAMES[rig.report.state] ? rig.report.state : 'trouble') : 'gone');
const shownRigs = () => fleet.rigs.filter((rig) => fleet.filter === 'all' || stateOf(rig) === fleet.filter);
const gpusOf = (rig) => rig.report.workers.filter((worker) => worker.backend && worker.backend !== 'cpu');
const known = (values) => values.filter((value) => value !== null && value !== undefined);
const sum = (values) => (values.length ? values.reduce((all, one) => all + one, 0) : null);
// What a rig that is gone measured last is not how it is.
const heat = (rig) => (rig.answers ? known(rig.report.workers.map((worker) => worker.temperature_c)) : []);
const power = (rig) => (rig.answers ? known(rig.report.workers.map((worker) => worker.power_mw)) : []);
const watts = (milliwatts) => (milliwatts === null ? '–' : `${Math.round(milliwatts / 1_000)} W`);
const celsius = (degrees) => (degrees.length ? `${Math.max(...degrees)} °C` : '–');

/** The sum of exact numbers of coins: they have eight decimals, and more digits than a number of this language. */
function added(texts) {
  const digits = String(texts.reduce((all, text) => all + BigInt(text.replace('.', '')), 0n)).padStart(9, '0');
  return coins(`${digits.slice(0, -8)}.${digits.slice(-8)}`);
}

// ---- what is shown ----

function showFleet() {
  const counts = Object.fromEntries(Object.keys(NAMES).map((state) => [state, 0]));
  for (const rig of fleet.rigs) counts[stateOf(rig)] += 1;
  const all = fleet.rigs.length;
  const told = Object.entries(counts)
    .filter(([, count]) => count)
    .map(([state, count]) => `${count} ${state}`);
  say(byId('headline'), `${all === 1 ? '1 rig' : `${all} rigs`}: ${told.join(', ')}`);
  document.title = `${all === 1 ? '1 rig' : `${all} rigs`} – Skein`;
  facts(byId('facts'), [
    ['Earned today', `${added(fleet.rigs.filter((rig) => rig.answers).map((rig) => rig.report.earned_today))} coins`],
    ['Balance', `${added(fleet.rigs.map((rig) => rig.report.balance))} coins`],
    ['GPUs', String(sum(fleet.rigs.map((rig) => gpusOf(rig).length)))],
    ['Hottest', celsius(fleet.rigs.flatMap(heat))],
    ['Power', watts(sum(fleet.rigs.flatMap(power)))],
  ]);
  say(byId('asked'), `Asked at ${clock(fleet.at, true)}`);
  if (fleet.filter !== 'all' && !counts[fleet.filter]) fleet.filter = 'all';
  list(
    byId('filters'),
    [['all', 'All', all], ...Object.entries(NAMES).map(([state, name]) => [state, name, counts[state]])].filter(
      ([state, , count]) => state === 'all' || count,
    ),
    ([state]) => state,
    ([state]) => element('button', { type: 'button', 'data-state': state }),
    (button, [state, name, count]) => {
      say(button, `${name} ${count}`);
      button.setAttribute('aria-pressed', String(state === fleet.filter));
    },
  );
  showRigs();
}

function showRigs() {
  const shown = shownRigs();
  show(byId('none'), !shown.length);
  // What is not seen is not commanded.
  const nodes = new Set(shown.map((rig) => rig.node));
  for (const node of fleet.selected) if (!nodes.has(node)) fleet.selected.delete(node);
  const lines = shown.flatMap((rig) => [
    { rig, more: false },
    ...(fleet.open.has(rig.node) ? [{ rig, more: true }] : []),
  ]);
  list(
    byId('rigs').tBodies[0],
    lines,
    ({ rig, more }) => rig.node + more,
    ({ rig, more }) => (more ? makeMore(rig) : makeRow(rig)),
    (row, { rig, more }) => (more ? updateMore(row, rig) : updateRow(row, rig)),
  );
  mayOrder();
}

/** Label and class of each cell after the first two; the labels are for windows too narrow for a head. */
const CELLS = [
  ['', 'at-state'],
  ['GPUs', 'number'],
  ['Hottest', 'number'],
  ['Power', 'number'],
  ['Version', ''],
  ['Last challenge', ''],
  ['Earned today', 'number'],
  ['Balance', 'number'],
  ['Seen', ''],
];

function makeRow({ node }) {
  const id = `more-${node}`;
  return element(
    'tr',
    {},
    element('td', { class: 'pick' }, element('input', { type: 'checkbox', value: node })),
    element(
      'th',
      { scope: 'row' },
      element('button', { type: 'button', class: 'name', 'data-open': node, 'aria-controls': id }),
    ),
    ...CELLS.map(([label, kind]) => element('td', { class: kind, ...(label && { 'data-label': label }) })),
  );
}

function updateRow(row, rig) {
  const { report } = rig;
  const state = stateOf(rig);
  const [pick, name, ...cells] = row.children;
  const box = pick.firstChild;
  box.checked = fleet.selected.has(rig.node);
  box.setAttribute('aria-label', `Select ${rig.name}`);
  say(name.firstChild, rig.name);
  name.firstChild.title = rig.node;
  name.firstChild.setAttribute('aria-expanded', String(fleet.open.has(rig.node)));
  row.dataset.state = state;
  const challenge = report.last_challenge;
  const gpus = gpusOf(rig).length;
  const texts = [
    NAMES[state],
    gpus ? String(gpus) : report.workers.length && report.workers.every((worker) => worker.backend) ? 'CPU' : '–',
    celsius(heat(rig)),
    watts(sum(power(rig))),
    report.version + (report.on_trial ? ' (on trial)' : ''),
    challenge ? `${challenge.passed ? 'passed' : 'failed'} ${moment(challenge.at_ms)}` : 'none yet',
    rig.answers ? coins(report.earned_today) : '–',
    coins(report.balance),
    rig.answers ? 'now' : `${span(fleet.at - rig.seen_ms)} ago`,
  ];
  cells.forEach((cell, place) => say(cell, texts[place]));
}

function makeMore({ node }) {
  return element(
    'tr',
    { class: 'opened', id: `more-${node}` },
    element(
      'td',
      { colspan: String(CELLS.length + 2) },
      element('p', { class: 'said' }),
      element('ul', { class: 'reasons' }),
      element('ul', { class: 'gpus' }),
      element('dl', { class: 'facts' }),
    ),
  );
}

function updateMore(row, rig) {
  const { report } = rig;
  row.dataset.state = stateOf(rig);
  const [said, reasons, gpus, pairs] = row.firstChild.children;
  say(said, rig.answers ? report.headline : `${rig.trouble ?? 'not asked'}; when it was last seen: ${report.headline}`);
  list(
    reasons,
    [
      ...report.reasons,
      ...(report.update_trouble ? [{ text: `no update: ${report.update_trouble}` }] : []),
      ...(report.orders_refused
        ? [{ text: `orders of somebody else that it refused since its start: ${report.orders_refused}` }]
        : []),
    ],
    (reason) => reason.text,
    () => element('li', {}, element('p'), element('dl')),
    (node, reason) => {
      say(node.firstChild, reason.text);
      facts(node.lastChild, [
        ...(reason.value ? [['Value', reason.value]] : []),
        ...(reason.threshold ? [['Threshold', reason.threshold]] : []),
      ]);
    },
  );
  list(
    gpus,
    report.workers.map((worker, place) => ({ ...worker, place })),
    (worker) => worker.place,
    () => element('li', {}, element('b'), ' ', element('span')),
    (node, worker) => {
      say(node.firstChild, worker.device);
      const read = [
        [worker.state, (value) => value, 'state'],
        [worker.temperature_c, (value) => `${value} °C`, 'temperature'],
        [worker.power_mw, watts, 'power'],
        [worker.busy_percent, (value) => `${value} % busy`, 'use'],
        [worker.memory_used_bytes, (value) => `${amount(value, 'B')} of memory used`, 'memory'],
      ];
      const missing = read.filter(([value]) => value === null).map(([, , name]) => name);
      const said = read.filter(([value]) => value !== null).map(([value, words]) => words(value));
      if (missing.length) said.push(`${missing.join(', ')} not measured`);
      say(node.lastChild, said.join(' · '));
    },
  );
  facts(pairs, [
    ['Leases now / in all', `${report.leases} / ${report.leases_taken}`],
    ['Coordinator', report.coordinator === null ? 'none seen' : short(report.coordinator)],
    ['Runs for', span(report.uptime_s * 1_000)],
    ['Address', rig.own ? 'this agent' : (rig.address ?? 'unknown')],
    ['Last seen', rig.answers ? 'now' : moment(rig.seen_ms)],
    ['Node', rig.node, 'whole mono'],
  ]);
}

// ---- orders ----

function mayOrder() {
  const count = fleet.selected.size;
  const shown = shownRigs();
  const idle = !access.token || Boolean(fleet.lost) || fleet.busy || !count;
  say(
    byId('selected'),
    fleet.busy ? 'Telling them…' : count ? `to ${count === 1 ? '1 rig' : `${count} rigs`}` : 'Select the rigs first',
  );
  for (const button of byId('fleet').querySelectorAll('.orders button, .more button'))
    // They stay focusable, so that the keyboard's place is not lost.
    button.setAttribute('aria-disabled', String(idle));
  const all = byId('all');
  all.checked = shown.length > 0 && count === shown.length;
  all.indeterminate = count > 0 && count < shown.length;
}

function openMore(name) {
  for (const button of byId('orders').querySelectorAll('[data-opens]')) {
    const opened = button.dataset.opens === name && button.getAttribute('aria-expanded') !== 'true';
    button.setAttribute('aria-expanded', String(opened));
    show(byId(button.dataset.opens), opened);
  }
}

async function order(name, body) {
  if (fleet.busy || !fleet.selected.size || !access.token) return;
  fleet.busy = true;
  tell(byId('refused'), '');
  mayOrder();
  try {
    const { rigs } = await ask(
      `/api/fleet/${name}`,
      { ...body, rigs: [...fleet.selected] },
      { withinMs: FLEET_WITHIN_MS },
    );
    openMore(null);
    showTold(name, rigs);
  } catch (error) {
    tell(byId('refused'), why(error));
  }
  fleet.busy = false;
  await look();
}

/** What came of an order: rigs that say the same stand together. */
function showTold(name, rigs) {
  const groups = new Map();
  for (const rig of rigs) {
    const done = name === 'update' ? 'looks for the version, and changes when it is good' : rig.headline;
    const text = rig.ok ? done : rig.error;
    const group = groups.get(text) ?? { text, ok: rig.ok, names: [] };
    group.names.push(rig.name);
    groups.set(text, group);
  }
  list(
    byId('told'),
    [...groups.values()],
    ({ text }) => text,
    () => element('li', {}, element('b'), ' ', element('span', { class: 'lines' })),
    (node, { text, ok, names }) => {
      say(node.firstChild, names.join(', '));
      say(node.lastChild, text);
      node.className = ok ? '' : 'bad';
    },
  );
}

byId('orders').addEventListener('click', ({ target }) => {
  const button = target.closest('button');
  if (!button || button.getAttribute('aria-disabled') === 'true') return;
  if (button.dataset.opens) openMore(button.dataset.opens);
  else order(button.dataset.order, {});
});
byId('pause').addEventListener('click', ({ target }) => {
  const button = target.closest('button');
  if (!button || button.getAttribute('aria-disabled') === 'true') return;
  order('pause', { ...JSON.parse(button.dataset.body), gpu: byId('gpu').checked });
});
byId('update').addEventListener('submit', (event) => {
  event.preventDefault();
  const version = byId('wanted').value.trim();
  order('update', version ? { version } : {});
});
addEventListener('keydown', (event) => {
  if (event.key !== 'Escape') return;
  const opened = byId('orders').querySelector('[aria-expanded="true"]');
  openMore(null);
  opened?.focus();
});
byId('filters').addEventListener('click', ({ target }) => {
  const state = target.closest('button')?.dataset.state;
  if (!state) return;
  fleet.filter = state;
  showFleet();
});
byId('rigs').addEventListener('change', ({ target }) => {
  const nodes = target === byId('all') ? shownRigs().map((rig) => rig.node) : [target.value];
  for (const node of nodes)
    if (target.checked) fleet.selected.add(node);
    else fleet.selected.delete(node);
  showRigs();
});
byId('rigs').addEventListener('click', ({ target }) => {
  const node = target.closest('[data-open]')?.dataset.open;
  if (!node) return;
  if (!fleet.open.delete(node)) fleet.open.add(node);
  showRigs();
});

// ---- the rhythm ----

async function look() {
  show(byId('tokenless'), !access.token);
  if (!access.token) {
    say(byId('headline'), 'Your rigs');
    say(byId('live'), 'not allowed');
    for (const id of ['fleet', 'facts', 'keyless', 'silent']) show(byId(id), false);
    return;
  }
  try {
    const said = await ask('/api/fleet', undefined, { secret: true, withinMs: FLEET_WITHIN_MS });
    [fleet.rigs, fleet.at, fleet.lost] = [said.rigs, said.at_ms, 0];
    show(byId('keyless'), said.key === null);
    for (const id of ['fleet', 'facts']) show(byId(id), said.key !== null);
    show(byId('silent'), false);
    say(byId('live'), 'live');
    byId('live').dataset.live = 'yes';
    byId('main').classList.remove('stale');
    if (said.key === null) say(byId('headline'), 'No rigs yet');
    else showFleet();
  } catch (error) {
    // The token is dropped by now, and that is shown.
    if (error.status === 401) return;
    fleet.lost ||= Date.now();
    tell(
      byId('silent'),
      `The agent on this machine does not answer since ${clock(fleet.lost, true)}. What is below is what it said last.`,
    );
    say(byId('live'), 'not answering');
    byId('live').dataset.live = 'no';
    byId('main').classList.add('stale');
    mayOrder();
  }
}

let next;
/** Now, and then once a minute while somebody sees it; sooner when the agent was lost. */
async function rhythm() {
  clearTimeout(next);
  if (document.visibilityState === 'visible') await look();
  clearTimeout(next);
  next = setTimeout(rhythm, fleet.lost ? LOOK_EVERY_MS / 20 : LOOK_EVERY_MS);
}

byId('again').addEventListener('click', rhythm);
document.addEventListener('visibilitychange', () => {
  if (document.visibilityState === 'visible' && Date.now() - fleet.at > LOOK_EVERY_MS) rhythm();
});
access.changed = rhythm;
takeToken();
