// How the owner's pages ask the agent that served them, and with what right. Served in front of all other scripts.
//
// The token comes in the address' fragment and stays in the browser's tab. Must never ask anybody but the agent, and never
// keep the token longer than the tab.

const ANSWER_WITHIN_MS = 6_000;

const access = {
  token: null,
  /** Called when there is a token, or none any more. */
  changed: () => {},
};

function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get('token');
  if (given) {
    sessionStorage.setItem('token', given);
    history.replaceState(null, '', location.pathname);
  }
  access.token = sessionStorage.getItem('token');
  access.changed();
}

class Refused extends Error {}

/** GET, or POST of `body`. `secret` is for what only the owner may read. */
async function ask(path, body, { secret = false, withinMs = ANSWER_WITHIN_MS } = {}) {
  const headers = {
    ...(body && { 'content-type': 'application/json' }),
    ...((body || secret) && { authorization: `Bearer ${access.token}` }),
  };
  const answer = await fetch(path, {
    method: body ? 'POST' : 'GET',
    headers,
    body: body && JSON.stringify(body),
    cache: 'no-store',
    redirect: 'error',
    signal: AbortSignal.timeout(withinMs),
  });
  const said = await answer.json();
  if (answer.ok) return said;
  if (answer.status === 401 && body) dropToken();
  throw Object.assign(new Refused(said?.error?.message ?? `the agent answered ${answer.status}`), {
    status: answer.status,
  });
}

function dropToken() {
  access.token = null;
  sessionStorage.removeItem('token');
  access.changed();
}

/** Why an order was not carried out, for the owner. */
const why = (error) => (error instanceof Refused ? error.message : 'The agent does not answer.');

addEventListener('hashchange', takeToken);
