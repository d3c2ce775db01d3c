// Jobs on the owner's page: how far they are, their loss and their speed. Served between draw.js and app.js, as one script.
//
// Names and reasons come from strangers: text, never markup. Must never ask for the curve of a job that is not opened.

const JOBS_SHOWN = 50;
// No job is called stalled sooner, however quick its steps were.
const STALLED_AFTER_MS = 120_000;
const STEPS_LOOKED_AT = 6;

const seen = new Map();

/** When the last steps ended, as seen from here. The one that was under way at first ended nobody knows when. */
function stepsSeen(job) {
  const { round, points } = seen.get(job.id) ?? { round: job.round, points: [] };
  const news = round === job.round ? [] : [{ at_ms: Date.now(), tokens: job.tokens }];
  const last = [...points, ...news].slice(-STEPS_LOOKED_AT);
  seen.set(job.id, { round: job.round, points: last });
  return last;
}

/** For how long nobody wonders that no step ends: three times as long as one took lately. */
function patience(points) {
  const gaps = points.slice(1).map((point, place) => point.at_ms - points[place].at_ms);
  gaps.sort((one, other) => one - other);
  return Math.max(STALLED_AFTER_MS, 3 * gaps[gaps.length >> 1]);
}

/** How fast a job is: by its curve, or, if that was ordered elsewhere or is not looked at, by the steps that were seen. */
function pace(job, curve) {
  const now = Date.now();
  const known = [(curve ?? []).slice(-STEPS_LOOKED_AT), stepsSeen(job)];
  const sources = known.filter((points) => points.length > 1);
  if (!sources.length) return null;
  const quiet = now - Math.max(...known.flat().map((point) => point.at_ms));
  if (quiet > patience(sources[0])) return `stalled for ${span(quiet)}`;
  // What was fast before is not fast now.
  const points = sources.find((some) => now - some.at(-1).at_ms <= patience(some));
  if (!points) return null;
  const [first, last] = [points[0], points.at(-1)];
  return last.at_ms > first.at_ms && last.tokens > first.tokens
    ? `${amount(((last.tokens - first.tokens) * 1_000) / (last.at_ms - first.at_ms))}\u00a0tokens/s`
    : null;
}

async function fetchJobs() {
  const jobs = await ask('/api/jobs');
  const ended = (job) => (job.phase === 'running' ? 0 : job.phase === 'waiting' ? 1 : 2);
  agent.jobs = jobs.sort((one, other) => ended(one) - ended(other));
  const shown = agent.jobs.slice(0, JOBS_SHOWN);
  tell(
    byId('jobs-none'),
    jobs.length === 0
      ? 'No jobs are known here.'
      : jobs.length > JOBS_SHOWN
        ? `${jobs.length - JOBS_SHOWN} more that ended are not shown.`
        : '',
  );
  list(byId('jobs'), shown, (job) => job.id, makeJob, showJob);
  await Promise.all([...byId('jobs').children].filter((node) => node.querySelector('details')?.open).map(fetchCurve));
}

function makeJob(job) {
  const node = element(
    'li',
    {},
    element(
      'div',
      { class: 'head' },
      element('span', { class: 'name' }, job.name),
      element('span', { class: 'phase' }),
    ),
    element('progress', { max: '1', 'aria-label': `Progress of ${job.name}` }),
    element('p', { class: 'quiet' }),
    element('p', { class: 'quiet' }),
  );
  node.itsId = job.id;
  if (job.work.kind === 'train') {
    const figure = (caption) =>
      element('figure', {}, element('figcaption', {}, caption), element('div', { class: 'chart' }));
    const curve = element(
      'details',
      { class: 'curve' },
      element('summary', {}, 'Loss and speed'),
      figure('Loss, nats per token'),
      element(
        'div',
        { class: 'legend' },
        element('span', { class: 'one' }, 'held out'),
        element('span', { class: 'two' }, 'training'),
      ),
      figure('Speed, tokens/s'),
      element('p', { class: 'quiet' }),
    );
    curve.open = job.phase === 'running' && !document.querySelector('details.curve[open]');
    curve.addEventListener('toggle', () => curve.open && fetchCurve(node).catch(() => {}));
    node.append(curve);
  }
  return node;
}

function showJob(node, job) {
  const [head, progress, told, note] = node.children;
  const work = job.work;
  node.itsJob = job;
  head.lastChild.dataset.phase = job.phase;
  const words = [];
  let done = 0;
  if (work.kind === 'train') {
    done = job.phase === 'done' ? 1 : (job.round + (job.steps ? job.step / job.steps : 0)) / Math.max(1, work.rounds);
    words.push(
      `step ${job.round} of ${work.rounds}`,
      job.held_out_micronats !== null &&
        `loss ${nats(job.held_out_micronats)}${job.start_loss_micronats !== null ? ` (began at ${nats(job.start_loss_micronats)})` : ''}`,
      `${amount(job.tokens)} tokens`,
      job.phase === 'running' && pace(job, node.itsCurve),
    );
  } else {
    done = job.stages.length ? 1 : 0;
    words.push(
      job.stages.length
        ? `serving in ${job.stages.length} ${job.stages.length === 1 ? 'stage' : 'stages'}`
        : 'not serving yet',
    );
  }
  done = Math.min(1, done);
  if (job.phase === 'running' || job.phase === 'waiting')
    words.push(`${job.agents} ${job.agents === 1 ? 'agent' : 'agents'}`);
  if (!job.digests_equal) words.push('agents computed different results');
  say(
    head.lastChild,
    `${work.kind === 'train' ? 'training' : 'serving'}, ${job.phase}${work.kind === 'train' && job.phase !== 'done' ? ` · ${Math.floor(done * 100)} %` : ''}`,
  );
  progress.value = done;
  show(progress, work.kind === 'train');
  // A dot ends a line, and begins none.
  say(told, words.filter(Boolean).join('\u00a0· '));
  tell(note, job.reason ?? job.note ?? '');
}

async function fetchCurve(node) {
  const job = node.itsJob;
  // A curve grows by whole steps, once their loss is measured: as long as nothing of this changes, it is what it was.
  const stage = [job.phase, job.round, job.held_out_micronats].join();
  if (node.itsStage === stage) return;
  node.itsStage = stage;
  let points;
  try {
    points = await ask(`/api/jobs/${encodeURIComponent(node.itsId)}/metrics`);
  } catch (error) {
    if (node.itsStage === stage) node.itsStage = null;
    throw error;
  }
  // Overtaken by one that was asked for later.
  if (node.itsStage !== stage) return;
  node.itsCurve = points;
  showJob(node, node.itsJob);
  const details = node.querySelector('details');
  const [losses, speeds] = details.querySelectorAll('figure');
  const none = points.length < 2 ? 'Not measured twice yet; curves are kept by the agent that ordered the job.' : '';
  for (const part of details.querySelectorAll('figure, .legend')) show(part, !none);
  tell(details.lastChild, none);
  if (none) return;
  const [from, to] = [points[0].round, Math.max(points.at(-1).round, points[0].round + 1)];
  const line = (colour, field) => ({
    kind: 'line',
    colour,
    points: points
      .map((point) => [point.round, point[field] === null ? null : point[field] / 1e6])
      .filter(([, value]) => value !== null),
  });
  const series = [line('one', 'held_out_micronats'), line('two', 'loss_micronats')];
  const values = series.flatMap((one) => one.points.map(([, value]) => value));
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const step = steps(least, Math.max(most, least + 0.01), 4);
  chart(losses.lastChild, {
    name: `Loss of ${job.name}`,
    from,
    to,
    stride: 1,
    series,
    range: [Math.floor(least / step) * step, Math.ceil(most / step + 1e-9) * step || step],
    show: (value, each) => value.toFixed(Math.max(0, Math.min(4, Math.ceil(-Math.log10(each || 1) - 1e-9)))),
    read: (at) => {
      const found = series.map((one) => [one.colour, nearest(one.points, at)]).filter(([, point]) => point);
      return found.length
        ? `step ${found[0][1][0]} · ${found.map(([, point]) => point[1].toFixed(3)).join(' | ')}`
        : '';
    },
  });
  const speed = points
    .slice(1)
    .map((point, place) => [
      point.round,
      point.at_ms > points[place].at_ms
        ? Math.max(0, ((point.tokens - points[place].tokens) * 1_000) / (point.at_ms - points[place].at_ms))
        : null,
    ]);
  const fastest = Math.max(1, ...speed.map(([, value]) => value ?? 0));
  const each = steps(0, fastest, 4);
  chart(speeds.lastChild, {
    name: `Tokens per second of ${job.name}`,
    from,
    to,
    stride: 1,
    range: [0, Math.ceil(fastest / each) * each],
    series: [{ kind: 'line', colour: 'three', points: speed }],
    read: (at) => {
      const found = nearest(speed, at);
      return found ? `step ${found[0]} · ${found[1] >= 10 ? Math.round(found[1]) : found[1].toFixed(1)} tokens/s` : '';
    },
  });
}
