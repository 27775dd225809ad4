// Vestibule's client: `fetch` and WebSockets that show who you are. An ES module without dependencies; what it promises
// stands in docs/client.md, and its types in client.d.ts beside it.
//
// A token is asked for each time and kept nowhere: not in a storage, not in a URL, not in a log.

const REFRESH_GAP = 5_000; // never two refreshes within
const LOOK = 5_000; // a timer may have slept with the machine, so the clock is looked at this often
const ASK_AGAIN = 250; // while the provider still loads
const CODES = { stop: 4401, policy: 1008 };
const COMES_BACK = [1006, 1011, 1012, 1013];
const REFRESH_REFUSED = /^(Token refresh failed|Too many refreshes)/;
const REFUSED = ['Invalid token', 'Authentication timeout'];

const installed = []; // the last one decides
let platform; // fetch and WebSocket as they were
let pending = {}; // one question at a time, by whether a fresh token is wanted
let doubt = 0; // of sockets: 1 when a token was refused, so that a fresh one is asked for; 2 when that one was too
let warned = false;

const current = () => installed[installed.length - 1];
const here = () => globalThis.location?.origin;
const base = () => globalThis.location?.href;
const delay = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const plain = (url) => new URL(url, base()); // throws as the platform does
const httpOf = (url) => url.origin !== 'null' && !url.protocol.startsWith('ws') ? url.origin : `${url.protocol === 'wss:' ? 'https' : 'http'}://${url.host}`;
const covers = (url) => (current()?.origins ?? []).includes(httpOf(url));
const isLoopback = ({ hostname }) => /^(localhost|.*\.localhost|127(\.\d+){3}|\[::1\])$/.test(hostname);
const isSafe = (url) => /^(https|wss):$/.test(url.protocol) || isLoopback(url);

/** The `sub` of a token, to tell one user from another; `undefined` of what is no JWT. */
const subject = (token) => {
  try {
    return JSON.parse(atob(token.split('.')[1].replace(/-/g, '+').replace(/_/g, '/'))).sub;
  } catch {
    return undefined;
  }
};

const warn = () => {
  if (!warned) console.warn('Vestibule: no token was at hand in time, so a protected call goes without one');
  warned = true;
};

/** Asks once; who asks meanwhile gets the same answer. A provider that throws has none. */
const ask = (reason, skipCache) => {
  const key = skipCache ? 'fresh' : 'any';
  const asked = pending;
  asked[key] ??= Promise.resolve()
    .then(() => current()?.getToken({ skipCache, reason }))
    .then((token) => token || null, () => null)
    .finally(() => delete asked[key]);
  return asked[key];
};

/** A token, waited for while the provider still loads. */
const tokenFor = async (reason, skipCache = false, isWanted = () => true) => {
  const until = Date.now() + (current()?.wait ?? 10_000);
  for (;;) {
    const asked = pending;
    const token = await ask(reason, skipCache);
    if (token || !current() || !isWanted() || Date.now() >= until) return token;
    // Together with whoever else waits: they share the next question.
    await (pending.tick ??= delay(ASK_AGAIN).finally(() => delete asked.tick));
  }
};

/** Whether a body can be sent twice: a stream cannot. */
const isText = (body) => body == null || typeof body === 'string' || body instanceof URLSearchParams;
const TEXT = /^(text\/|application\/(.*\+)?json|application\/x-www-form-urlencoded)/i;

const authenticatedFetch = async (input, init) => {
  const request = input instanceof Request ? input : undefined;
  const url = plain(request ? request.url : input);
  const headers = new Headers(init?.headers ?? request?.headers);
  const mode = init?.mode ?? request?.mode;
  const fetch = platform.fetch.bind(globalThis);
  if (!covers(url) || !isSafe(url) || mode === 'no-cors' || headers.has('Authorization')) return fetch(input, init);
  const { onUnavailable } = current();
  const token = await tokenFor('request');
  if (!token) {
    warn();
    return fetch(input, init);
  }
  const replaces = init && 'body' in init;
  const twice = replaces ? isText(init.body) : !request?.body || TEXT.test(request.headers.get('Content-Type') ?? '');
  const again = request && twice ? request.clone() : input;
  const send = (what, shown) => {
    headers.set('Authorization', `Bearer ${shown}`);
    return fetch(what, { ...init, headers: new Headers(headers) });
  };
  const answer = await send(input, token);
  if (answer.status === 503) onUnavailable?.();
  if (answer.status !== 401 || !twice) return answer;
  const fresh = await ask('refused', true);
  return fresh && fresh !== token ? send(again, fresh) : answer;
};

const event = (type, init) => {
  const Kind = globalThis[{ message: 'MessageEvent', close: 'CloseEvent' }[type] ?? 'Event'];
  return Kind ? new Kind(type, init) : Object.assign(new Event(type), init);
};

/** A WebSocket that says who you are before it is open, and again before its token ends. */
export class AuthenticatedWebSocket extends EventTarget {
  static CONNECTING = 0;
  static OPEN = 1;
  static CLOSING = 2;
  static CLOSED = 3;
  CONNECTING = 0;
  OPEN = 1;
  CLOSING = 2;
  CLOSED = 3;

  #url;
  #protocols;
  #state = 0;
  #inner;
  #queue = [];
  #binaryType = 'blob';
  #handlers = {};
  #user;
  #timer;
  #fresh = false; // this attempt's token was asked for past the cache
  #early = []; // what the upstream said before our token was judged, on a socket that a cookie had opened
  #refreshing = false;
  #refreshed = 0;
  #attempts = 0;
  #left = false;

  constructor(url, protocols) {
    super();
    const to = plain(url);
    if (to.protocol.startsWith('http')) to.protocol = to.protocol.replace('http', 'ws');
    this.#url = to;
    this.#protocols = protocols;
    this.#connect();
  }

  get url() { return this.#url.href; }
  get readyState() { return this.#state; }
  get protocol() { return this.#inner?.protocol ?? ''; }
  get extensions() { return this.#inner?.extensions ?? ''; }
  get bufferedAmount() {
    const size = (data) => (typeof data === 'string' ? new TextEncoder().encode(data).length : (data.byteLength ?? data.size));
    return this.#queue.reduce((sum, data) => sum + size(data), this.#inner?.bufferedAmount ?? 0);
  }
  get binaryType() { return this.#binaryType; }
  set binaryType(kind) {
    this.#binaryType = kind;
    if (this.#inner) this.#inner.binaryType = kind;
  }

  send(data) {
    if (this.#state === 1) this.#inner.send(data);
    // What is said before it is open waits its turn, in order; a plain WebSocket would throw.
    else if (this.#state === 0) this.#queue.push(data);
  }

  close(code, reason) {
    if (code !== undefined && code !== 1000 && !(code >= 3000 && code <= 4999)) {
      throw new DOMException(`${code} is no close code of an application`, 'InvalidAccessError');
    }
    if (this.#state > 1) return;
    this.#left = true;
    this.#state = 2;
    clearTimeout(this.#timer);
    if (this.#inner) this.#inner.close(...(code === undefined ? [] : [code, reason]));
    else queueMicrotask(() => this.#ended({ code: 1006, reason: '', wasClean: false }));
  }

  async #connect() {
    const url = this.#url;
    if (!isSafe(url)) {
      console.error('Vestibule: no token goes over plain ws: to another machine');
      return queueMicrotask(() => this.#failed());
    }
    this.#fresh = doubt > 0;
    const token = await tokenFor(this.#fresh ? 'refused' : 'request', this.#fresh, () => this.#state === 0);
    // Closed before it opened: nothing is opened.
    if (this.#state !== 0) return;
    if (!token) warn();
    const Platform = platform?.WebSocket ?? globalThis.WebSocket;
    let inner;
    try {
      inner = this.#protocols === undefined ? new Platform(url.href) : new Platform(url.href, this.#protocols);
    } catch (problem) {
      console.error(problem);
      return this.#failed();
    }
    this.#inner = inner;
    inner.binaryType = this.#binaryType;
    this.#user = token && (this.#user ?? subject(token));
    let isKnown = !token;
    inner.addEventListener('open', () => {
      if (isKnown) this.#opened();
      else inner.send(JSON.stringify({ type: 'authenticate', token }));
    });
    inner.addEventListener('message', ({ data, origin }) => {
      const said = token && this.#ours(data, isKnown);
      if (!said) return isKnown ? this.dispatchEvent(event('message', { data, origin })) : this.#early.push({ data, origin });
      if (said.expires_in !== undefined) this.#renewIn(said.expires_in);
      if (said.type === 'authenticated' && !isKnown) {
        isKnown = true;
        this.#opened();
      } else if (!isKnown && REFRESH_REFUSED.test(said.message)) inner.close(CODES.stop, 'Invalid token'); // a cookie's user is another
    });
    inner.addEventListener('error', () => this.dispatchEvent(event('error')));
    inner.addEventListener('close', ({ code, reason, wasClean }) => this.#ended({ code, reason, wasClean }));
  }

  /** A message of Vestibule's, which is not the application's: what was asked for, and nothing else. */
  #ours(data, isKnown) {
    if (typeof data !== 'string' || (isKnown && !this.#refreshing) || !/^\{"type":"(auth|error)/.test(data)) return undefined;
    let said;
    try {
      said = JSON.parse(data);
    } catch {
      return undefined;
    }
    if (!isKnown) return said;
    const isAnswer = said.type === 'auth_refreshed' || (said.type === 'error' && REFRESH_REFUSED.test(said.message));
    if (!isAnswer) return undefined;
    this.#refreshing = false;
    // A refused one: the socket stays on its former token, and is asked for again.
    if (said.type === 'error') this.#renewAt(Date.now() + REFRESH_GAP);
    return said;
  }

  #opened() {
    this.#state = 1;
    this.#attempts = 0;
    this.#fresh = false;
    doubt = 0;
    for (const data of this.#queue.splice(0)) this.#inner.send(data);
    this.dispatchEvent(event('open'));
    for (const message of this.#early.splice(0)) this.dispatchEvent(event('message', message));
  }

  /** By the server's own word of how long, not by this machine's clock. */
  #renewIn(seconds) {
    this.#renewAt(Date.now() + (seconds - Math.min(30, seconds / 5)) * 1_000);
  }

  #renewAt(due) {
    clearTimeout(this.#timer);
    const at = Math.max(due, this.#refreshed + REFRESH_GAP);
    const look = () => {
      const left = at - Date.now();
      if (left <= 0) this.#renew();
      else this.#timer = setTimeout(look, Math.min(left, LOOK));
    };
    look();
  }

  async #renew() {
    this.#refreshed = Date.now();
    const token = await ask('expiring', true);
    if (this.#state !== 1) return;
    const user = token && subject(token);
    if (!token || user !== this.#user) {
      this.#left = true;
      return this.#inner.close(CODES.stop, token ? 'Another user' : 'Signed out');
    }
    this.#refreshing = true;
    this.#inner.send(JSON.stringify({ type: 'refresh_auth', token }));
  }

  #failed() {
    this.dispatchEvent(event('error'));
    this.#left = true;
    this.#ended({ code: 1006, reason: '', wasClean: false });
  }

  #ended(close) {
    clearTimeout(this.#timer);
    this.#refreshing = false;
    this.#early = [];
    this.#inner = undefined;
    const install = current();
    // What we closed ourselves nobody has refused.
    const isRefused = !this.#left && (close.code === CODES.stop || (close.code === CODES.policy && REFUSED.includes(close.reason)));
    // Many sockets may be refused the same token at once; only a fresh one that is refused is the last word.
    const isFinal = isRefused && this.#fresh;
    if (isFinal && doubt < 2) install?.onSignedOut?.();
    if (isRefused) doubt = isFinal ? 2 : Math.max(doubt, 1);
    const returns = isRefused ? !isFinal : COMES_BACK.includes(close.code);
    if (install?.reconnect && returns && !this.#left) {
      this.#state = 0;
      const wait = isRefused ? 0 : Math.min(30_000, 500 * 2 ** this.#attempts++) * (0.5 + Math.random());
      this.#timer = setTimeout(() => this.#connect(), wait);
      return;
    }
    this.#state = 3;
    this.dispatchEvent(event('close', close));
  }

  static {
    for (const type of ['open', 'message', 'error', 'close']) {
      Object.defineProperty(this.prototype, `on${type}`, {
        get() { return this.#handlers[type] ?? null; },
        set(handler) {
          if (this.#handlers[type]) this.removeEventListener(type, this.#handlers[type]);
          this.#handlers[type] = typeof handler === 'function' ? handler : undefined;
          if (this.#handlers[type]) this.addEventListener(type, handler);
        },
      });
    }
  }
}

/** `WebSocket` as it was, but for the URLs that are ours. */
const wrapped = (Platform) => new Proxy(Platform, {
  construct(target, [url, protocols], newTarget) {
    const { sockets } = current() ?? { sockets: false };
    const to = plain(url);
    if (covers(to) && (typeof sockets === 'function' ? sockets(to) : sockets)) return new AuthenticatedWebSocket(url, protocols);
    return Reflect.construct(target, protocols === undefined ? [url] : [url, protocols], newTarget);
  },
  get(target, name) {
    if (name === Symbol.hasInstance) return (it) => it instanceof target || it instanceof AuthenticatedWebSocket;
    return Reflect.get(target, name);
  },
});

/** From now on `fetch` and `WebSocket` show who you are to these origins. Returns what undoes it. */
export function installAuth({ getToken, origins = [here()], sockets = true, onSignedOut, onUnavailable, reconnect = false, wait = 10_000 }) {
  const mine = { getToken, origins: origins.filter(Boolean).map((origin) => new URL(origin).origin), sockets, onSignedOut, onUnavailable, reconnect, wait };
  installed.push(mine);
  // What another provider, or another user, was asked is not answered to this one.
  pending = {};
  doubt = 0;
  if (!platform) {
    platform = { fetch: globalThis.fetch, WebSocket: globalThis.WebSocket };
    globalThis.fetch = function fetch(...call) { return authenticatedFetch(...call); };
    if (platform.WebSocket) globalThis.WebSocket = wrapped(platform.WebSocket);
  }
  return () => {
    const at = installed.indexOf(mine);
    if (at < 0) return;
    installed.splice(at, 1);
    pending = {};
    if (installed.length === 0) {
      Object.assign(globalThis, platform);
      platform = undefined;
    }
  };
}
