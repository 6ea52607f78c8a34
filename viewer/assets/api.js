// Asking the server. What was asked for once is kept: an open index does not change.

export class Failure extends Error {
  /** `status` is 0 if there was no answer at all. */
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function get(path) {
  let response;
  try {
    response = await fetch(path, { headers: { accept: 'application/json' } });
  } catch {
    throw new Failure(0, 'The server does not answer. It may have been stopped; start it again with \u201csae serve\u201d.');
  }
  const body = await response.json().catch(() => null);
  if (!response.ok || body === null) {
    throw new Failure(response.status, body?.error ?? `The server answered with status ${response.status}.`);
  }
  return body;
}

/** Remembers the last `limit` answers of `ask`; failures are forgotten, so that asking again helps. */
function remember(limit, ask) {
  const kept = new Map();
  return (...key) => {
    const name = key.join('/');
    const known = kept.get(name);
    kept.delete(name);
    const answer = known ?? ask(...key);
    kept.set(name, answer);
    if (!known) answer.catch(() => kept.delete(name));
    if (kept.size > limit) kept.delete(kept.keys().next().value);
    return answer;
  };
}

/** Every index: `[{ id, manifest }]`, the default first. */
export const indexes = remember(1, () => get('/api/indexes'));

/** The statistics of all features, as columns. */
export const summaries = remember(4, (id) => get(`/api/indexes/${encodeURIComponent(id)}/summaries`));

/** Every training run as it is now; never kept. */
export const runs = () => get('/api/runs');

/** A training run as it is now, with the lines of its log from a number of bytes on. */
export const run = (id, from) => get(`/api/runs/${encodeURIComponent(id)}?from=${from}`);

/**
 * Calls `read` every so many milliseconds while somebody looks at the page, until `signal` aborts. A request that failed goes to
 * `failed`. Either ends it by saying true.
 */
export async function poll(every, signal, read, failed) {
  while (!signal.aborted) {
    await new Promise((go) => setTimeout(go, every));
    if (signal.aborted) return;
    if (document.hidden) continue;
    try {
      if (await read()) return;
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      if (failed(error)) return;
    }
  }
}

/** Everything about one feature. */
export const feature = remember(64, (id, n) => get(`/api/indexes/${encodeURIComponent(id)}/features/${n}`));
