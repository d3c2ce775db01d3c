// How the owner's pages ask the agent that served them, and with what right. Served in front of all other scripts.
//
// The address' fragment may hold a ticket, which the agent takes once for its token; that stays in the browser's tab. Must never
// ask anybody but the agent, and never keep the token longer than the tab.

const ANSWER_WITHIN_MS = 6_000;

const access = {
  token: null,
  /** Called when there is a token, or none any more. */
  changed: () => {},
};

async function takeToken() {
  access.token = sessionStorage.getItem('token');
  const ticket = new URLSearchParams(location.hash.slice(1)).get('ticket');
  if (ticket) {
    // At once: what is spent has no place in the browser's history.
    history.replaceState(null, '', location.pathname);
    try {
      const { token } = await ask('/api/token', { ticket }, { free: true });
      sessionStorage.setItem('token', token);
      access.token = token;
    } catch (error) {
      // A token that is held already is as good as before.
      console.debug(error);
    }
  }
  access.changed();
}

class Refused extends Error {}

/** GET, or POST of `body`. `secret` is for what only the owner may read, `free` for orders that need no token. */
async function ask(path, body, { secret = false, free = false, withinMs = ANSWER_WITHIN_MS } = {}) {
  const used = access.token;
  const owned = (body || secret) && !free;
  const headers = {
    ...(body && { 'content-type': 'application/json' }),
    ...(owned && { authorization: `Bearer ${used}` }),
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
  // An answer to an older token says nothing about the one that came meanwhile.
  if (answer.status === 401 && owned && access.token === used) dropToken();
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
