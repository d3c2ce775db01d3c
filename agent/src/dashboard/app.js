// The owner's page: asks the agent that served it, shows what it says, and tells it what the owner orders.
//
// Names of programs, jobs and agents come from strangers: whatever is shown is text, never markup. Needs ask.js, draw.js and
// jobs.js in front of it.

const STATUS_EVERY_MS = 2_000;
const SLOW_EVERY_MS = 10_000;
const LOG_EVERY_MS = 60_000;
const COLOURS = ['one', 'two', 'three', 'four'];
const DASHES = ['', ' dash1', ' dash2'];
const STATES = ['working', 'waiting', 'paused', 'trouble'];
const SIGNS = {
  working: 'M19 15 L33 24 L19 33 Z',
  waiting: 'M24 14 V24 L31 28',
  paused: 'M19 16 V32 M29 16 V32',
  trouble: 'M24 13 V26 M24 34 V34.1',
  unknown: 'M15 24 H15.1 M24 24 H24.1 M33 24 H33.1',
};
// Names and meanings as in the agent's settings; one that is not here is shown by its key.
const SETTINGS = {
  user_idle: [
    'Wait until unused for',
    'Work waits until mouse and keyboard have not been touched for so long. For example 3 min, or off.',
  ],
  full_screen: ['Wait for full-screen programs', 'Work waits while a program fills a screen.'],
  game: ['Wait for games', 'Work waits while a game runs.'],
  games: ['Games', 'Programs that are games too, by name. For example factorio, eldenring.exe, or off.'],
  not_games: ['No games', 'Programs that look like games and are none to you, by name.'],
  remote_desktop: ['Wait for remote desktop', 'Work waits while somebody uses this desktop from afar.'],
  gpu_others_memory: [
    'GPU memory of one program',
    'The GPU rests while another program holds more than this share of its memory.',
  ],
  gpu_others_busy: [
    'GPU use by others',
    'The GPU rests while others keep it busier than this.',
  ],
  gpu_memory_taken: [
    'GPU memory of all others',
    'The GPU rests while others together take more than this share of its memory.',
  ],
  gpu_temperature_max: ['Hottest GPU temperature', 'The GPU rests when it is hotter than this.'],
  gpu_temperature_band: ['Cool down by', 'How far a GPU that was too hot must cool below that before it works again.'],
  gpu_power_max: ['Most GPU power', 'The GPU rests when it draws more than this. For example 250 W, or off.'],
  battery: ['Wait on battery', 'Work waits while this machine runs on its battery, however full.'],
  battery_min: ['Least battery', 'Where waiting on battery is off: work waits when the battery is emptier than this.'],
  hours: ['Hours of the week', 'Work is done only in these hours, for example mon-fri 22:00-07:00; off is always.'],
  processor_others: [
    'Processor use by others',
    'Work waits when programs of others keep the processor busier than this.',
  ],
  disk_free_min: ['Least free disk', 'Work waits when less than this is free where the agent keeps its data.'],
  traffic_month_max: [
    'Most traffic in a month',
    'Work waits when the agent has sent and received this much in a calendar month.',
  ],
  rate_max: ['Fastest transfer', 'The agent sends and receives no faster than this.'],
  metered: ['Wait on metered networks', 'Work waits while the network is paid by the byte.'],
  missing: [
    'Sensors that cannot be read',
    'Whether they stop what depends on them (block) or not (ignore).',
    ['ignore', 'block'],
  ],
};

// ---- the agent ----

const agent = {
  orders: 0,
  version: null,
  lost: 0,
  status: null,
  history: [],
  from: Infinity,
  everyMs: SLOW_EVERY_MS,
  hours: 1,
};

// ---- state and orders ----

function mayOrder() {
  show(byId('tokenless'), !access.token);
  const can = {
    pause: true,
    resume: agent.status?.policy.pause || agent.status?.policy.finishing,
    finish: agent.status && !agent.status.policy.finishing,
  };
  for (const button of byId('orders').children) {
    // They stay focusable, so that the keyboard's place is not lost when one of them does its work.
    button.setAttribute('aria-disabled', String(!access.token || Boolean(agent.lost) || !can[button.dataset.order]));
    button.classList.toggle(
      'main',
      button.dataset.order === 'resume' && Boolean(access.token && can.resume && !agent.lost),
    );
  }
  for (const form of byId('settings').querySelectorAll('form')) ready(form);
}

async function order(button) {
  if (button.getAttribute('aria-disabled') === 'true') return;
  const refused = byId('refused');
  show(refused, false);
  agent.orders += 1;
  try {
    const policy = await ask(`/api/${button.dataset.order}`, JSON.parse(button.dataset.body));
    agent.orders += 1;
    if (agent.status) agent.status.policy = policy;
    showPolicy(policy);
  } catch (error) {
    tell(refused, why(error));
  }
}

function showPolicy(policy) {
  const state = SIGNS[policy.state] ? policy.state : 'unknown';
  const now = byId('now');
  const news = now.dataset.state !== state;
  now.dataset.state = state;
  byId('sign').setAttribute('d', SIGNS[state]);
  say(byId('state'), policy.state);
  // Most headlines begin with the state, which need not stand there twice.
  show(byId('state'), !policy.headline.toLowerCase().startsWith(state));
  say(byId('headline'), policy.headline);
  document.title = `${policy.state[0].toUpperCase()}${policy.state.slice(1)} – Skein`;
  // Only a change is read aloud: the headline may count seconds.
  if (news) say(byId('announce'), policy.headline);
  const until = policy.pause && (policy.pause.until_ms ? `until ${moment(policy.pause.until_ms)}` : 'until you resume');
  const allowed = [
    policy.pause && `You paused ${policy.pause.blocks === 'gpu' ? 'the GPU' : 'all work'} ${until}.`,
    policy.finishing && 'No new work is taken until you resume.',
    policy.allowed === 'cpu' && 'Work that needs no GPU may go on.',
  ]
    .filter(Boolean)
    .join(' ');
  tell(byId('allowed'), allowed);
  const here = Date.now();
  list(
    byId('reasons'),
    policy.reasons,
    (reason) => reason.rule + reason.blocks,
    () => element('li', {}, element('p'), element('dl')),
    (node, reason) => {
      say(node.firstChild, reason.text);
      const left = reason.look_again_ms - here;
      const pairs = [
        ['now', reason.value],
        ['limit', reason.threshold],
        ['stops', reason.blocks === 'gpu' ? 'the GPU' : 'all work'],
        ['since', moment(reason.since_ms)],
        [
          'looked at again',
          left > 0 ? `in ${span(left)}${left > 60_000 ? ` (${moment(reason.look_again_ms)})` : ''}` : 'now',
        ],
      ];
      list(
        node.lastChild,
        pairs.filter(([, value]) => value),
        ([name]) => name,
        ([name]) => element('div', {}, element('dt', {}, name), element('dd')),
        (pair, [, value]) => say(pair.lastChild, value),
      );
    },
  );
  show(byId('reasons'), policy.reasons.length > 0);
  showSensors(policy.sensors);
  mayOrder();
}

function showSensors(sensors) {
  const groups = new Map([['', []]]);
  for (const sensor of sensors) groups.set(sensor.gpu ?? '', [...(groups.get(sensor.gpu ?? '') ?? []), sensor]);
  list(
    byId('sensors'),
    [...groups],
    ([gpu]) => gpu,
    () => element('div', {}, element('h3'), element('dl')),
    (node, [gpu, members]) => {
      say(node.firstChild, gpu ? `GPU ${gpu}` : 'This machine');
      list(
        node.lastChild,
        members,
        (sensor) => sensor.sensor,
        (sensor) =>
          element(
            'div',
            {},
            element('dt', {}, sensor.sensor.replace(/^gpu_(?=.)/, '').replaceAll('_', ' ')),
            element('dd'),
          ),
        (pair, sensor) => {
          const known = sensor.missing === undefined;
          pair.lastChild.className = known ? '' : 'missing';
          say(pair.lastChild, known ? sensor.value : `missing: ${sensor.missing}`);
        },
      );
    },
  );
  const missing = sensors.filter((sensor) => sensor.missing !== undefined).length;
  say(byId('sensors-count'), `${sensors.length - missing} read${missing ? `, ${missing} missing` : ''}`);
  const none = sensors.find((sensor) => sensor.sensor === 'gpus' && sensor.missing !== undefined);
  agent.noGpu = none && `No GPU is measured: ${none.missing}`;
}

const sum = (workers, field) => workers.reduce((all, worker) => all + worker[field], 0);

/** What a GPU's sensors said last. */
function warmth(gpu) {
  const { temperature_c: heat, power_mw: power } = agent.history.at(-1)?.gpus.find(({ id }) => id === gpu) ?? {};
  return [heat && `${heat} °C`, power && `${Math.round(power / 1_000)} W`].filter(Boolean).join(', ') || '–';
}

function showStatus(status) {
  const named = new Map((agent.jobs ?? []).map((job) => [job.id, job.name]));
  const leases = status.leases.map((lease) => `${named.get(lease.job) ?? short(lease.job)} ${lease.done}/${lease.of}`);
  showPolicy(status.policy);
  // What the policy says already stands above.
  const idle = status.policy.reasons.length ? [] : status.reasons;
  facts(byId('facts'), [
    ['Earned today', `${coins(status.earned_today)} coins`],
    ['Balance', `${coins(status.ledger.balance)} coins`],
    [
      'Now at work',
      leases.slice(0, 3).join(', ') + (leases.length > 3 ? ` and ${leases.length - 3} more` : '') || 'nothing',
    ],
    ['Peers', String(status.peers.length)],
    [
      'Coordinator',
      status.coordinator === null
        ? 'none yet'
        : status.coordinator === status.node
          ? 'this agent'
          : short(status.coordinator),
    ],
    ...(!status.working && idle.length ? [['Why nothing is at work', idle.join('; '), 'whole']] : []),
  ]);
  say(byId('version'), `${status.version}${status.on_trial ? ' (on trial)' : ''}`);
  say(byId('earned'), coins(status.earned_today));
  show(byId('peers'), status.peers.length > 0);
  show(byId('peers-none'), status.peers.length === 0);
  rows(
    byId('peers'),
    status.peers,
    (peer) => peer.node,
    (peer) => [
      short(peer.node),
      peer.device ?? 'not told yet',
      peer.address,
      peer.round_trip_us === null ? '–' : `${(peer.round_trip_us / 1_000).toFixed(1)} ms`,
    ],
  );
  // One device needs no table.
  show(byId('workers'), status.workers.length > 1);
  rows(
    byId('workers'),
    status.workers,
    (worker) => String(worker.index),
    (worker) => [
      String(worker.index),
      // Cards of one make are told apart by their place, by which the charts name them too.
      `${worker.device || 'not known yet'}${worker.gpu ? ` at ${worker.gpu}` : ''}`,
      worker.headline,
      warmth(worker.gpu),
    ],
  );
  const { offer, host } = status;
  const more = status.workers.length - 1;
  facts(byId('agent'), [
    ['Network', status.network],
    ['Version', status.version],
    ['Listens on', status.listen],
    ['Local API', status.api],
    [
      'Works with',
      offer
        ? `${offer.device} (${offer.backend})${more ? ` and ${more} more` : ''}`
        : status.device_reason || 'nothing yet',
    ],
    ['Matrix product', offer ? amount(sum(offer.workers, 'matrix_mflops') * 1e6, 'FLOP/s') : '–'],
    ['Memory for jobs', offer ? amount(sum(offer.workers, 'memory_bytes'), 'B') : '–'],
    ['System', host.system],
    ['Processor', `${host.processor}, ${host.cores} cores`],
    ['Memory', amount(host.memory_bytes, 'B')],
    ['Disk free', host.disk_free_bytes === null ? 'unknown' : amount(host.disk_free_bytes, 'B')],
    ['Sent / received', `${amount(status.bytes_sent, 'B')} / ${amount(status.bytes_received, 'B')}`],
    [
      more ? 'Workers' : 'Worker',
      status.workers.map(({ pid }) => (pid === null ? 'not running' : `process ${pid}`)).join(', '),
    ],
    ['Node', status.node, 'whole mono'],
  ]);
}

// ---- over time ----

async function fetchHistory() {
  const from = Date.now() - agent.hours * HOUR_MS;
  // Only what is not here yet; a longer range than before is asked for as a whole.
  const since = agent.from <= from ? (agent.history.at(-1)?.at_ms ?? from) : from;
  const { every_s: every, points } = await ask(`/api/history?since_ms=${Math.floor(since)}`);
  // Of a long time, or of many GPUs, fewer moments are told at first than are added later.
  agent.everyMs = since === from ? every * 1_000 : Math.max(agent.everyMs, every * 1_000);
  const oldest = Date.now() - 24 * HOUR_MS;
  agent.history = [...agent.history.filter((point) => point.at_ms <= since && point.at_ms > oldest), ...points];
  agent.from = Math.min(agent.from, from);
  showHistory();
}

function showHistory() {
  const to = Date.now();
  const from = to - agent.hours * HOUR_MS;
  const points = agent.history.filter((point) => point.at_ms >= from);
  const gpus = [...new Set(points.flatMap((point) => point.gpus.map((gpu) => gpu.id)))].sort();
  // A fifth card has the first one's colour, and dashes.
  const look = (place) =>
    COLOURS[place % COLOURS.length] + DASHES[Math.floor(place / COLOURS.length) % DASHES.length];
  const lines = (field, scale) =>
    gpus.map((id, place) => ({
      kind: 'line',
      colour: look(place),
      gap: agent.everyMs * 3,
      name: id,
      points: points.map((point) => {
        const value = point.gpus.find((gpu) => gpu.id === id)?.[field] ?? null;
        return [point.at_ms, value === null ? null : value / scale];
      }),
    }));
  const common = { from, to, byTime: true, stride: agent.everyMs };
  const one = (holder, name, unit, series, range) => {
    const known = series.flatMap((line) => line.points.map(([, value]) => value)).filter((value) => value !== null);
    const read = (at) => {
      if (!known.length) return 'not measured';
      const about = at ?? points.at(-1).at_ms;
      // A card that said nothing then has a dash, not what it said long before.
      const found = series
        .map((line) => nearest(line.points, about))
        .map((point) => (point && Math.abs(point[0] - about) <= agent.everyMs * 3 ? point : null));
      const first = found.find(Boolean);
      if (!first) return at === undefined ? '' : `${clock(at)} not measured`;
      return `${at === undefined ? '' : `${clock(first[0], agent.hours === 1)} · `}${found.map((point) => (point ? Math.round(point[1]) : '–')).join(' | ')} ${unit}`;
    };
    chart(byId(holder), {
      ...common,
      name,
      series,
      range: range(
        known.length ? known.reduce((a, b) => Math.min(a, b)) : 0,
        known.length ? known.reduce((a, b) => Math.max(a, b)) : 1,
      ),
      read,
      show: (value) => String(Math.round(value)),
    });
  };
  show(byId('gpu-charts'), gpus.length > 0);
  tell(byId('gpu-missing'), gpus.length ? '' : (agent.noGpu ?? 'No GPU was measured in this time.'));
  if (gpus.length) {
    one('c-busy', 'GPU use', '%', lines('busy_percent', 1), () => [0, 100]);
    one('c-heat', 'Temperature', '°C', lines('temperature_c', 1), (low, high) => [
      Math.floor((low - 5) / 10) * 10,
      Math.ceil((high + 5) / 10) * 10,
    ]);
    one('c-power', 'Power', 'W', lines('power_mw', 1_000), (_, high) => [0, Math.max(20, Math.ceil(high / 20) * 20)]);
  }
  const runs = [];
  for (const { at_ms: at, state } of points) {
    const last = runs.at(-1);
    const near = last && at - last.to <= agent.everyMs * 3;
    if (near) last.to = Math.max(last.to, at);
    if (near && last.state === state) last.to = Math.min(to, at + agent.everyMs);
    else runs.push({ state, from: at, to: Math.min(to, at + agent.everyMs) });
  }
  const share = STATES.map((state) => [
    state,
    runs.filter((run) => run.state === state).reduce((sum, run) => sum + run.to - run.from, 0),
  ]).filter(([, ms]) => ms > 0);
  chart(byId('c-state'), {
    ...common,
    band: true,
    name: 'State',
    range: [0, 1],
    series: runs.map((run) => ({ kind: 'band', colour: run.state, points: [[run.from, run.to, 1]] })),
    read: (at) => {
      if (at === undefined) return '';
      const run = runs.find((run) => run.from <= at && at <= run.to);
      return `${clock(at)} · ${run ? `${run.state}, ${clock(run.from)} to ${clock(run.to)}` : 'the agent was not running'}`;
    },
  });
  const legend = (holder, entries) =>
    list(
      byId(holder),
      entries,
      ([, colour]) => colour,
      ([, colour]) => element('span', { class: colour }),
      (node, [name]) => say(node, name),
    );
  legend('legend', gpus.length > 1 ? gpus.map((id, place) => [`GPU ${id}`, look(place)]) : []);
  legend(
    'shares',
    share.map(([state, ms]) => [`${state} ${span(ms)}`, state]),
  );
}

async function fetchEarnings() {
  const earnings = await ask('/api/earnings');
  const hour = new Date();
  hour.setMinutes(0, 0, 0);
  const to = hour.getTime() + HOUR_MS;
  const bars = Array.from({ length: 24 }, (_, place) => [to - (24 - place) * HOUR_MS, to - (23 - place) * HOUR_MS, 0]);
  for (const earned of earnings) {
    const bar = bars.find(([from, end]) => from <= earned.started_at_ms && earned.started_at_ms < end);
    if (bar) bar[2] += Number(earned.amount);
  }
  const sum = bars.reduce((total, bar) => total + bar[2], 0);
  const high = bars.reduce((most, bar) => Math.max(most, bar[2]), 0) || 1;
  const top = steps(0, high, 4);
  chart(byId('c-earned'), {
    name: 'Earnings by hour',
    byTime: true,
    from: bars[0][0],
    to,
    stride: HOUR_MS,
    range: [0, Math.ceil(high / top) * top],
    series: [{ kind: 'bar', colour: 'bar', points: bars }],
    show: (value, step) => value.toFixed(Math.max(0, Math.min(8, Math.ceil(-Math.log10(step || 1))))),
    read: (at) => {
      const bar = at === undefined ? undefined : bars.find(([from, end]) => from <= at && at <= end);
      return bar
        ? `${clock(bar[0])}–${clock(bar[1])} · ${coins(bar[2].toFixed(8))}`
        : `${coins(sum.toFixed(8))} in all`;
    },
  });
}

// ---- log and settings ----

async function fetchLog() {
  const log = await ask('/api/log');
  const node = byId('log');
  if (log.verified === null) {
    node.dataset.verified = 'unknown';
    say(node, 'Being verified');
    // Asked again with the next status.
    due.delete(fetchLog);
    return;
  }
  node.dataset.verified = log.verified ? 'yes' : 'no';
  say(node, log.verified ? 'Verified' : 'Not verified');
  facts(byId('log-facts'), [
    ['Entries', log.entries === null ? 'unknown' : String(log.entries)],
    ['Checked at', clock(log.checked_at_ms, true)],
    ['Result', log.message, 'whole'],
    ['Root', log.root ?? 'none', 'whole mono'],
  ]);
}

function showSettings(settings) {
  // In the order of the table above, where related ones are together; what it does not know comes last.
  const known = Object.keys(SETTINGS);
  const place = ([key]) => (known.includes(key) ? known.indexOf(key) : known.length);
  list(
    byId('settings'),
    Object.entries(settings).sort((one, other) => place(one) - place(other)),
    ([key]) => key,
    makeSetting,
    (node, [, value]) => {
      const form = node.firstChild;
      // What the owner is writing is his.
      if (form.itsValue === form.elements.value.value) form.elements.value.value = value;
      form.itsValue = value;
      ready(form);
    },
  );
}

function makeSetting([key, value]) {
  const [name, meaning, choices] = SETTINGS[key] ?? [key, ''];
  const id = `set-${key}`;
  const options =
    choices ?? (value === 'on' || (value === 'off' && /^Wait (for|on)/.test(name)) ? ['on', 'off'] : null);
  const field = options
    ? element('select', {}, ...options.map((option) => element('option', {}, option)))
    : element('input', { type: 'text', autocomplete: 'off', spellcheck: 'false', maxlength: '200' });
  for (const [attribute, text] of [
    ['id', id],
    ['name', 'value'],
    ['aria-describedby', `${id}-meaning ${id}-bad`],
  ])
    field.setAttribute(attribute, text);
  field.value = value;
  const form = element(
    'form',
    { autocomplete: 'off' },
    element('label', { for: id, title: key }, name),
    field,
    element('button', { 'aria-label': `Save ${name}` }, 'Save'),
    element('p', { class: 'quiet meaning', id: `${id}-meaning` }, meaning),
    element('p', { class: 'bad', id: `${id}-bad`, role: 'alert', hidden: '' }),
  );
  form.itsValue = value;
  field.addEventListener('input', () => ready(form));
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    save(form, key);
  });
  return element('li', {}, form);
}

/** Whether there is something to save, and somebody who may. */
function ready(form) {
  const field = form.elements.value;
  form
    .querySelector('button')
    .setAttribute('aria-disabled', String(!access.token || Boolean(agent.lost) || field.value === form.itsValue));
  // Without the token nothing can be written, so nothing is asked for.
  if (field.tagName === 'SELECT') field.disabled = !access.token;
  else field.readOnly = !access.token;
}

async function save(form, key) {
  const [field, bad] = [form.elements.value, form.lastChild];
  if (form.querySelector('button').getAttribute('aria-disabled') === 'true') return;
  try {
    const settings = await ask('/api/settings', { key, value: field.value });
    form.itsValue = field.value;
    show(bad, false);
    field.removeAttribute('aria-invalid');
    showSettings(settings);
  } catch (error) {
    tell(bad, why(error));
    field.setAttribute('aria-invalid', 'true');
  }
}

/** The way to the owner's other machines, if there are any. Who may not see them is not told that they are there. */
async function fetchRigs() {
  if (!access.token) return show(byId('fleet'), false);
  const { rigs } = await ask('/api/fleet?ask=false', undefined, { secret: true });
  const others = rigs.filter((rig) => !rig.own).length;
  say(byId('fleet'), others === 1 ? '1 rig' : `${others} rigs`);
  show(byId('fleet'), others > 0);
}

// ---- the rhythm ----

function lose() {
  agent.lost ||= Date.now();
  tell(
    byId('silent'),
    `The agent does not answer since ${clock(agent.lost, true)}. What is below is what it said last. It is asked again every ${STATUS_EVERY_MS / 1_000} s.`,
  );
  say(byId('live'), 'not answering');
  byId('live').dataset.live = 'no';
  byId('main').classList.add('stale');
  document.title = 'Not answering – Skein';
  mayOrder();
}

function found() {
  if (agent.lost) due.clear();
  agent.lost = 0;
  show(byId('silent'), false);
  say(byId('live'), 'live');
  byId('live').dataset.live = 'yes';
  byId('main').classList.remove('stale');
}

const due = new Map();
const parts = [
  [fetchHistory, SLOW_EVERY_MS],
  [fetchJobs, SLOW_EVERY_MS / 2],
  [fetchEarnings, SLOW_EVERY_MS],
  [fetchLog, LOG_EVERY_MS],
  [fetchRigs, LOG_EVERY_MS],
  [async () => showSettings(await ask('/api/settings')), SLOW_EVERY_MS],
];

async function look() {
  const orders = agent.orders;
  try {
    const status = await ask('/api/status?brief=true');
    const { version } = agent;
    agent.version = status.version;
    // Another version of the agent brings another version of the page.
    if (version && version !== status.version) return location.reload();
    found();
    // An answer from before an order says nothing about what came of it.
    if (orders === agent.orders) {
      agent.status = status;
      showStatus(status);
    }
  } catch {
    return lose();
  }
  for (const [fetchPart, every] of parts) {
    if ((due.get(fetchPart) ?? 0) > Date.now()) continue;
    due.set(fetchPart, Date.now() + every);
    // A part that fails is asked for again; whether the agent is there, the status tells.
    fetchPart().catch((error) => console.debug(error));
  }
}

byId('orders').addEventListener(
  'click',
  (event) => event.target.closest('button') && order(event.target.closest('button')),
);
byId('ranges').addEventListener('click', (event) => {
  const hours = Number(event.target.dataset?.hours);
  if (!hours) return;
  agent.hours = hours;
  for (const button of byId('ranges').children) button.setAttribute('aria-pressed', String(button === event.target));
  showHistory();
  fetchHistory().catch(() => {});
});
document.addEventListener('visibilitychange', () => document.visibilityState === 'visible' && look());
// Sensors and settings are long: closed at first where the page is narrow.
for (const id of ['d-sensors', 'd-settings']) byId(id).open = !matchMedia('(max-width: 520px)').matches;
access.changed = () => {
  mayOrder();
  due.delete(fetchRigs);
};
/** A page that nobody sees asks nothing; once it is seen, it catches up. */
async function live() {
  if (document.visibilityState !== 'hidden') await look();
  setTimeout(live, STATUS_EVERY_MS);
}
takeToken().then(live);
