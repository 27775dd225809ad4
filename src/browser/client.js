// Vestibule's client: `fetch` and WebSockets that show who you are. An ES module without dependencies; what it promises
// stands in docs/client.md, and its types in client.d.ts beside it.
//
// A token is asked for each time and kept nowhere: not in a storage, not in a URL, not in a log.

const REFRESH_GAP = 5_000; // the least time between two refreshes of one socket
const MAX_TIMER = 5_000; // the longest single timer: a page's timers sleep with the machine, and wrap beyond 2^31 ms
const ASK_AGAIN = 250; // while the provider still loads
const ASK_LIMIT = 30_000; // a provider that is silent for so long has not answered
const STABLE = 10_000; // a socket that was open for so long counts as a success
const BACKOFF = { first: 500, most: 30_000 };
const CODES = { stop: 4401, policy: 1008 };
const RECONNECTABLE = [1006, 1011, 1012, 1013];
const REFRESH_REFUSED = /^(Token refresh failed: |Too many refreshes$)/;
const PAGE_HANDSHAKE = /"type"\s*:\s*"(authenticate|refresh_auth)"/;
const TOKEN_REFUSED = ['Invalid token', 'Token expired', 'Authentication timeout'];
const NO_CLOSE = { code: 1006, reason: '', wasClean: false };

const installed = []; // the last one decides
let platform; // fetch and WebSocket as they were
let pending = {}; // one question at a time, by whether a fresh token is wanted
let doubt = 0; // of sockets: 1 when a token was refused, so that a fresh one is asked for; 2 when that one was too; 0 once one was stable
const renewals = new Set(); // what looks whether a renewal is due, for each socket that waits for one
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

/** The issuer and `sub` of a token, to tell one user from another; `undefined` of what is no JWT. */
const userOf = (token) => {
  try {
    const { iss, sub } = JSON.parse(atob(token.split('.')[1].replace(/-/g, '+').replace(/_/g, '/')));
    return JSON.stringify([iss, sub]);
  } catch {
    return undefined;
  }
};

// Timers do not run while a machine sleeps, and `performance.now()` may not count that time. The wall clock does, so it is
// looked at when the page wakes, and only then: at any other time a step of it is somebody setting the clock.
for (const type of ['online', 'pageshow', 'visibilitychange']) {
  globalThis.addEventListener?.(type, () => renewals.forEach((look) => look(true)));
}

const warn = (consequence) => {
  if (!warned) console.warn(`Vestibule: no token was at hand in time, so ${consequence}`);
  warned = true;
};

/**
 * Asks the provider. Who asks meanwhile gets the same answer: a token, `null` when nobody is signed in, or `undefined` when
 * there was no answer: it threw, or took too long.
 */
const ask = (reason, skipCache) => {
  const key = skipCache ? 'fresh' : 'any';
  const asked = pending;
  if (!asked[key]) {
    let timer;
    const late = new Promise((resolve) => (timer = setTimeout(resolve, ASK_LIMIT)));
    const answer = Promise.resolve()
      .then(() => current()?.getToken({ skipCache, reason }))
      .then((token) => (token === undefined ? undefined : token || null), () => undefined);
    asked[key] = Promise.race([answer, late]).finally(() => {
      clearTimeout(timer);
      delete asked[key];
    });
  }
  return asked[key];
};

/** A token, waited for while the provider still loads. */
const tokenFor = async (reason, skipCache = false, isWanted = current) => {
  const until = performance.now() + (current()?.wait ?? 10_000);
  for (;;) {
    const token = await ask(reason, skipCache);
    if (token || !isWanted() || performance.now() >= until) return token;
    // Together with others that wait: they share the next question.
    const asked = pending;
    await (asked.tick ??= delay(ASK_AGAIN).finally(() => delete asked.tick));
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
    warn('a protected call goes without one');
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

/** What `send` was given, as it is now: the caller may write over a buffer afterwards. */
const copied = (data) => {
  if (data instanceof ArrayBuffer) return data.slice(0);
  if (ArrayBuffer.isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice();
  return globalThis.Blob && data instanceof Blob ? data : String(data);
};

const parsed = (data) => {
  try {
    return JSON.parse(data);
  } catch {
    return undefined;
  }
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
  #user; // whose token it was first, as the token says and as the server says
  #userId;
  #timer; // of the next attempt, or of the next renewal
  #look;
  #stableTimer;
  #isFresh = false; // this attempt's token was asked for past the cache
  #isRefused = false; // a token was refused, and no connection has been stable since
  #wasOpen = false; // this attempt's connection
  #early = []; // what the upstream said before our token was judged, on a socket that a cookie had opened
  #isRefreshing = false;
  #refreshedAt = -Infinity;
  #retries = 0; // of a renewal
  #pageHandshakes = false; // the page says `authenticate` or `refresh_auth` itself
  #attempts = 0;
  #isLeft = false; // closed by the page, or by us for good
  #lastClose; // while it comes back: how the connection that was open ended

  constructor(url, protocols) {
    super();
    const to = plain(url);
    if (to.protocol.startsWith('http')) to.protocol = to.protocol.replace('http', 'ws');
    this.#url = to;
    this.#protocols = protocols;
    this.#connect();
  }

  /** Also of a class that extends the global `WebSocket`, whose prototypes are its own. */
  static [Symbol.hasInstance](it) {
    const isPlain = this === AuthenticatedWebSocket;
    return isPlain ? typeof it === 'object' && it !== null && #state in it : Function.prototype[Symbol.hasInstance].call(this, it);
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
    if (typeof data === 'string' && PAGE_HANDSHAKE.test(data)) this.#pageHandshakes = true;
    if (this.#state === 1) this.#inner.send(data);
    // What is sent before it is open waits its turn, in order; a plain WebSocket would throw.
    else if (this.#state === 0) this.#queue.push(copied(data));
  }

  close(code, reason) {
    if (code !== undefined && code !== 1000 && !(code >= 3000 && code <= 4999)) {
      throw new DOMException(`${code} is no close code of an application`, 'InvalidAccessError');
    }
    if (this.#state > 1) return;
    this.#isLeft = true;
    this.#state = 2;
    this.#clearTimers();
    if (this.#inner) this.#inner.close(...(code === undefined ? [] : [code, reason]));
    else queueMicrotask(() => this.#ended(NO_CLOSE));
  }

  async #connect() {
    if (this.#isForeign()) return queueMicrotask(() => this.#state === 0 && this.#failed());
    const skipCache = this.#isRefused || doubt > 0;
    this.#isFresh = skipCache;
    const token = await tokenFor(skipCache ? 'refused' : 'request', skipCache, () => this.#state === 0);
    // Closed before it opened: nothing is opened.
    if (this.#state !== 0) return;
    // Without a token nothing is opened: not for someone signed out, nor while the provider cannot be reached.
    if (!token) warn('a socket is not opened');
    if (token === null) return this.#stop('Signed out');
    if (!token) return this.#ended(NO_CLOSE, true);
    if (this.#isForeign()) return this.#failed();
    const user = userOf(token);
    // What waits here was written by another user, and is not sent as this one.
    if (this.#user && user !== this.#user.of) return this.#stop('Another user');
    this.#user = { of: user };
    const Platform = platform?.WebSocket ?? globalThis.WebSocket;
    let inner;
    try {
      inner = this.#protocols === undefined ? new Platform(this.#url.href) : new Platform(this.#url.href, this.#protocols);
    } catch (problem) {
      console.error(problem);
      return this.#failed();
    }
    this.#inner = inner;
    inner.binaryType = this.#binaryType;
    let [isKnown, hasFailed] = [false, false];
    inner.addEventListener('open', () => inner.send(JSON.stringify({ type: 'authenticate', token })));
    inner.addEventListener('message', ({ data, origin }) => {
      if (this.#state > 1 && !isKnown) return;
      const said = isKnown ? this.#refreshAnswer(data) : this.#handshakeAnswer(data);
      if (!said) {
        if (!isKnown) return void this.#early.push({ data, origin });
        // The page's own token may have ended sooner than ours, and the socket with it.
        if (this.#pageHandshakes) this.#renewIn(this.#pageAnswer(data)?.expires_in);
        this.#dispatch('message', { data, origin });
      } else if (isKnown) {
        this.#refreshed(said);
      } else if (said.type === 'error') {
        inner.close(CODES.stop, 'Invalid token'); // a cookie opened it, and its user is another
      } else if (this.#userId !== undefined && said.user_id !== this.#userId) {
        this.#stop('Another user');
      } else {
        isKnown = true;
        this.#userId = said.user_id;
        this.#opened(said);
      }
    });
    inner.addEventListener('error', () => (hasFailed = true));
    inner.addEventListener('close', ({ code, reason, wasClean }) => this.#ended({ code, reason, wasClean }, hasFailed));
  }

  /** Whether no token may go there. */
  #isForeign() {
    const isSafeUrl = isSafe(this.#url);
    if (!isSafeUrl) console.error('Vestibule: no token goes over plain ws: to another machine');
    const isNamed = !current()?.origins.length || covers(this.#url);
    if (!isNamed) console.error(`Vestibule: ${this.#url.host} is not one of the origins that get a token`);
    return !isSafeUrl || !isNamed;
  }

  /**
   * The answer to our `authenticate`. On a socket that a cookie opened the upstream's messages come before it; they are the
   * application's, whatever they begin with. Refusals of a socket that nothing had opened are followed by their close code.
   */
  #handshakeAnswer(data) {
    const said = typeof data === 'string' && /^\{"type":"(authenticated|error)"/.test(data) ? parsed(data) : undefined;
    const isAnswer = said?.type === 'authenticated' ? typeof said.user_id === 'string' && 'expires_in' in said : isRefreshRefusal(said);
    return isAnswer ? said : undefined;
  }

  /** The answer to our own refresh, and nothing else: the page may refresh by itself. */
  #refreshAnswer(data) {
    if (!this.#isRefreshing || typeof data !== 'string' || !/^\{"type":"(auth_refreshed|error)"/.test(data)) return undefined;
    const said = parsed(data);
    return (said?.type === 'auth_refreshed' && 'expires_in' in said) || isRefreshRefusal(said) ? said : undefined;
  }

  /** The answer to a handshake of the page's own. */
  #pageAnswer(data) {
    const said = typeof data === 'string' && /^\{"type":"(authenticated|auth_refreshed)"/.test(data) ? parsed(data) : undefined;
    return said?.type === 'auth_refreshed' || said?.user_id === this.#userId ? said : undefined;
  }

  #opened(said) {
    this.#state = 1;
    this.#wasOpen = true;
    this.#lastClose = undefined;
    this.#stableTimer = setTimeout(() => this.#succeeded(), STABLE);
    this.#retries = 0;
    this.#renewIn(said.expires_in);
    for (const data of this.#queue.splice(0)) this.#inner.send(data);
    this.#dispatch('open');
    for (const message of this.#early.splice(0)) {
      if (this.#state === 1) this.#dispatch('message', message);
    }
  }

  #succeeded() {
    this.#attempts = 0;
    this.#isRefused = false;
    doubt = 0;
  }

  #refreshed(said) {
    this.#isRefreshing = false;
    if (said.type === 'auth_refreshed') {
      this.#retries = 0;
      this.#renewIn(said.expires_in);
    } else {
      // The socket stays on its former token. Five refusals in a row would end it before that token does.
      this.#renewAfter(Math.min(BACKOFF.most, REFRESH_GAP * 2 ** this.#retries++));
    }
  }

  /** By the server's own word of how long, not by this machine's clock. */
  #renewIn(seconds) {
    if (Number.isFinite(seconds)) this.#renewAfter((seconds - Math.min(30, seconds / 5)) * 1_000);
  }

  #renewAfter(delay) {
    this.#clearRenewal();
    const started = performance.now();
    const due = Math.max(started + delay, this.#refreshedAt + REFRESH_GAP);
    const wallDue = Date.now() + due - started;
    this.#look = (isAwake = false) => {
      clearTimeout(this.#timer);
      const left = isAwake ? Math.min(due - performance.now(), wallDue - Date.now()) : due - performance.now();
      if (left > 0) this.#timer = setTimeout(this.#look, Math.min(left, MAX_TIMER));
      else this.#renew();
    };
    renewals.add(this.#look);
    this.#timer = setTimeout(this.#look, Math.min(Math.max(due - started, 0), MAX_TIMER));
  }

  async #renew() {
    this.#clearRenewal();
    const inner = this.#inner;
    const token = await ask('expiring', true);
    if (this.#state !== 1 || this.#inner !== inner) return;
    // The provider cannot be reached, as after a sleep: nobody has signed out.
    if (token === undefined) return this.#renewAfter(Math.min(REFRESH_GAP, 1_000 * 2 ** this.#retries++));
    if (token === null) return this.#stop('Signed out');
    if (userOf(token) !== this.#user.of) return this.#stop('Another user');
    this.#refreshedAt = performance.now();
    this.#isRefreshing = true;
    inner.send(JSON.stringify({ type: 'refresh_auth', token }));
    // Should no answer come.
    this.#renewAfter(BACKOFF.most);
  }

  #clearRenewal() {
    clearTimeout(this.#timer);
    renewals.delete(this.#look);
  }

  #clearTimers() {
    this.#clearRenewal();
    clearTimeout(this.#stableTimer);
  }

  /** Ends it for good, by us. */
  #stop(reason) {
    this.#isLeft = true;
    this.#lastClose = undefined;
    this.#state = 2;
    if (this.#inner) this.#inner.close(CODES.stop, reason);
    else this.#ended({ code: CODES.stop, reason, wasClean: true });
  }

  #failed() {
    this.#isLeft = true;
    this.#ended(NO_CLOSE, true);
  }

  #ended(close, hasFailed = false) {
    this.#clearTimers();
    this.#isRefreshing = false;
    this.#early = [];
    this.#inner = undefined;
    const install = current();
    if (this.#wasOpen && (this.#isLeft || close.code === 1000)) this.#succeeded();
    // What we closed ourselves nobody has refused. The code of a refused token can be set; its reason stays.
    const namesToken = TOKEN_REFUSED.includes(close.reason) && (close.code === CODES.policy || close.code >= 4000);
    const isRefused = !this.#isLeft && (close.code === CODES.stop || namesToken);
    // Many sockets may be refused the same token at once; only a fresh one that is refused is the last word.
    const isFinal = isRefused && this.#isFresh;
    if (isFinal && doubt < 2) install?.onSignedOut?.();
    if (isRefused) {
      doubt = isFinal ? 2 : Math.max(doubt, 1);
      this.#isRefused = true;
    }
    // Refused before it was open, it is tried once more, whichever side reconnects: a page that is told 1008 does not come back.
    const returns = isRefused
      ? !isFinal && (install?.reconnect || (install && !this.#wasOpen))
      : install?.reconnect && RECONNECTABLE.includes(close.code);
    if (returns && !this.#isLeft) {
      if (this.#wasOpen) this.#lastClose = close;
      this.#wasOpen = false;
      this.#state = 0;
      // A refusal is followed by at most one attempt without a pause: its token is a fresh one.
      const pause = Math.min(BACKOFF.most, BACKOFF.first * 2 ** this.#attempts) * (0.75 + Math.random() / 2);
      if (!isRefused) this.#attempts += 1;
      this.#timer = setTimeout(() => this.#connect(), isRefused ? 0 : pause);
      return;
    }
    // While it came back the page knew of one end only: that of the connection that was open.
    const isKnownEnd = this.#isLeft && this.#lastClose;
    this.#state = 3;
    this.#queue = [];
    if (hasFailed && !isKnownEnd) this.#dispatch('error');
    this.#dispatch('close', isKnownEnd || close);
  }

  #dispatch(type, init) {
    EventTarget.prototype.dispatchEvent.call(this, event(type, init));
  }

  static {
    for (const type of ['open', 'message', 'error', 'close']) {
      Object.defineProperty(this.prototype, `on${type}`, {
        configurable: true,
        enumerable: true,
        get() { return this.#handlers[type] ?? null; },
        set(handler) {
          const { addEventListener, removeEventListener } = EventTarget.prototype;
          if (this.#handlers[type]) removeEventListener.call(this, type, this.#handlers[type]);
          this.#handlers[type] = typeof handler === 'function' ? handler : undefined;
          if (this.#handlers[type]) addEventListener.call(this, type, handler);
        },
      });
    }
  }
}

/** Whether it is Vestibule's own refusal of a refresh: those two members, and its text. */
function isRefreshRefusal(said) {
  return said?.type === 'error' && REFRESH_REFUSED.test(said.message) && Object.keys(said).length === 2;
}

/**
 * What a class that extends the global `WebSocket` inherits: each member works on a socket of ours and on one of the
 * platform's, since either can come of its constructor.
 */
const sharedPrototype = (Platform, constructor) => {
  const isTarget = Platform.prototype instanceof EventTarget;
  const prototype = Object.create(isTarget ? Platform.prototype : EventTarget.prototype);
  // An emulation, as in Node.js before 22, may be no EventTarget, which ours must be.
  for (let from = Platform.prototype; !isTarget && from !== Object.prototype; from = Object.getPrototypeOf(from)) {
    for (const name of Reflect.ownKeys(from)) {
      if (!Object.hasOwn(prototype, name)) Object.defineProperty(prototype, name, Object.getOwnPropertyDescriptor(from, name));
    }
  }
  Object.defineProperty(prototype, 'constructor', { value: constructor, writable: true, configurable: true });
  for (const source of [EventTarget.prototype, AuthenticatedWebSocket.prototype]) {
    for (const [name, ours] of Object.entries(Object.getOwnPropertyDescriptors(source))) {
      if (name === 'constructor') continue;
      const shared = { configurable: true, enumerable: true };
      const isOurs = (it) => it instanceof AuthenticatedWebSocket;
      if (ours.get) {
        shared.get = function get() { return isOurs(this) ? ours.get.call(this) : Reflect.get(Platform.prototype, name, this); };
        shared.set = function set(value) {
          if (isOurs(this)) ours.set?.call(this, value);
          else Reflect.set(Platform.prototype, name, value, this);
        };
      } else {
        shared.writable = true;
        shared.value = function method(...call) { return (isOurs(this) ? ours.value : Platform.prototype[name]).apply(this, call); };
      }
      Object.defineProperty(prototype, name, shared);
    }
  }
  return prototype;
};

/** `WebSocket` as it was, but for the URLs that are ours. It can be extended, as the platform's can. */
const wrapped = (Platform) => {
  function WebSocket(...call) {
    if (!new.target) throw new TypeError("Class constructor WebSocket cannot be invoked without 'new'");
    const { sockets } = current() ?? { sockets: false };
    const to = plain(call[0]);
    const isOurs = covers(to) && (typeof sockets === 'function' ? sockets(to) : sockets);
    const Kind = isOurs ? AuthenticatedWebSocket : Platform;
    return Reflect.construct(Kind, call, new.target === WebSocket ? Kind : new.target);
  }
  WebSocket.prototype = sharedPrototype(Platform, WebSocket);
  Object.defineProperty(WebSocket, Symbol.hasInstance, {
    value(it) {
      const isOurs = this === WebSocket && (it instanceof AuthenticatedWebSocket || it instanceof Platform);
      return isOurs || Function.prototype[Symbol.hasInstance].call(this, it);
    },
  });
  // Whatever else stands on the platform's.
  for (const [name, value] of Object.entries(Object.getOwnPropertyDescriptors(Platform))) {
    if (!Object.hasOwn(WebSocket, name)) Object.defineProperty(WebSocket, name, value);
  }
  return Object.setPrototypeOf(WebSocket, EventTarget);
};

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
