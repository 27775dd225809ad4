// The parts that the tests of sign-in share: an OpenID provider, the built program that signs people in there, and a
// backend that shows the user.
import { createServer } from 'node:http';
import Provider from 'oidc-provider';
import { WebSocketServer } from 'ws';
import { listening, program, within } from './fixture.mjs';

export const CLIENT = { id: 'vestibule', secret: 'a-client-secret' };
export const SESSION_SECRET = '0123456789abcdef0123456789abcdefXYZ';

/** A free port below those that systems assign by themselves. */
export async function unusedPort() {
  for (;;) {
    const port = 15_000 + Math.floor(Math.random() * 17_000);
    const server = createServer();
    const free = await new Promise((resolve) => {
      server.once('error', () => resolve(false));
      server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
    });
    if (free) return port;
  }
}

/** Counts what a provider reported. */
export function eventLog() {
  const events = [];
  const count = (name, type) => events.filter((event) => event.name === name && (!type || event.type === type)).length;
  return { events, count };
}

function close(server) {
  server.close();
  server.closeAllConnections();
}

/**
 * Starts `oidc-provider`, a certified OpenID provider, in this process. `origin` is the application's. `spoil` changes
 * what the token endpoint answers.
 */
export async function startOidcProvider(t, origin, { tokenLife = 600, client = {}, spoil = (body) => body } = {}) {
  const server = createServer();
  t.after(() => close(server));
  const issuer = `http://127.0.0.1:${await listening(server)}`;
  const { events, count } = eventLog();
  const idp = new Provider(issuer, {
    clients: [
      {
        client_id: CLIENT.id,
        client_secret: CLIENT.secret,
        redirect_uris: [`${origin}/.vestibule/callback`, `${origin}/.vestibule/callback/main`],
        post_logout_redirect_uris: [`${origin}/.vestibule/signed-out`],
        backchannel_logout_uri: `${origin}/.vestibule/backchannel-logout`,
        backchannel_logout_session_required: true,
        grant_types: ['authorization_code', 'refresh_token'],
        response_types: ['code'],
        ...client,
      },
    ],
    cookies: { keys: ['a-key-of-the-provider'] },
    // The provider refuses to call loopback with its own agent.
    fetch: (url, { dispatcher, ...options }) => fetch(url, options),
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    features: {
      devInteractions: { enabled: true },
      pushedAuthorizationRequests: { enabled: true },
      backchannelLogout: { enabled: true },
      rpInitiatedLogout: { enabled: true },
      revocation: { enabled: true },
    },
    rotateRefreshToken: true,
    ttl: { AccessToken: tokenLife, IdToken: tokenLife, RefreshToken: 600, Grant: 600, Session: 600, Interaction: 600 },
  });
  for (const name of [
    'pushed_authorization_request.success',
    'authorization.success',
    'authorization.error',
    'grant.success',
    'grant.error',
    'grant.revoked',
    'end_session.success',
    'backchannel.success',
    'backchannel.error',
  ]) {
    idp.on(name, (ctx, error) => events.push({ name, type: ctx?.oidc?.params?.grant_type, error: error?.message }));
  }
  // What the provider issued, by kind.
  const issued = { access_token: new Set(), id_token: new Set(), refresh_token: new Set(), code: new Set(), state: new Set() };
  const remember = (kind, value) => value && issued[kind].add(value);
  idp.use(async (ctx, next) => {
    await next();
    // The provider has no event for it.
    if (ctx.path === '/token/revocation' && ctx.status === 200) events.push({ name: 'revocation.success' });
    for (const kind of ['access_token', 'id_token', 'refresh_token']) remember(kind, ctx.body?.[kind]);
    if (ctx.path === '/token' && ctx.body?.access_token) ctx.body = spoil(ctx.body);
    const location = ctx.response.get('Location');
    if (!location?.includes('/.vestibule/callback')) return;
    for (const kind of ['code', 'state']) remember(kind, new URL(location).searchParams.get(kind));
  });
  server.on('request', idp.callback());
  return { issuer, server, events, count, issued };
}

/** A backend that answers pages with the user's name and echoes WebSocket messages. */
async function startBackend(t) {
  const requests = [];
  const web = createServer((request, response) => {
    if (request.url === '/favicon.ico') return response.writeHead(404).end();
    requests.push({ url: request.url, user: request.headers['x-user-id'], headers: request.rawHeaders.join(' ') });
    response.setHeader('Content-Type', 'text/html');
    response.end(`<!doctype html><title>ours</title><p id="user">${request.headers['x-user-id'] ?? 'nobody'}</p>`);
  });
  const sockets = new WebSocketServer({ server: web });
  sockets.on('connection', (socket) => socket.on('message', (data) => socket.send(`${data}`)));
  t.after(() => {
    for (const socket of sockets.clients) socket.terminate();
    close(web);
  });
  return { url: `http://127.0.0.1:${await listening(web)}`, requests, sockets };
}

/**
 * Starts a provider, a backend and the program; all of them end with the test.
 *
 * `provider(t, origin, options)` starts the provider. `login`, `rules` (of the provider) and `more` are added to the
 * configuration. `upstream` is the value of that key, by default a backend of ours. `second` is a further provider.
 */
export async function startSignIn(
  t,
  {
    provider = startOidcProvider,
    login = 'prompt: consent',
    rules = '',
    contact = '',
    more = 'websocket: { dialect: none }',
    upstream,
    second,
    log = 'debug',
    admin,
    ...options
  } = {},
) {
  const port = await unusedPort();
  const origin = `http://localhost:${port}`;
  const idp = await provider(t, origin, options);
  const backend = upstream ? { requests: [] } : await startBackend(t);
  const first = `{ name: main, preset: oidc, issuer: "${idp.issuer}", ${second ? 'user_prefix: "staff:", ' : ''}${rules} }`;
  const client = `client_id: ${CLIENT.id}, client_secret: ${CLIENT.secret}`;
  const others = second && `{ name: guests, preset: oidc, issuer: "${second.issuer}", user_prefix: "guest:" }`;
  const logins = [`{ provider: main, label: Staff, ${client}, ${login} }`, second && `{ provider: guests, label: Guests, ${client} }`];
  const list = (entries) => `[${entries.filter(Boolean).join(', ')}]`;
  const yaml = `
listen: 127.0.0.1:${port}
admin: ${admin ? `{ listen: "${admin}" }` : 'null'}
public_url: ${origin}
upstream: ${upstream ?? backend.url}
providers: ${list([first, others])}
browser:
  session: { secret: ${SESSION_SECRET} }
  login: ${second ? list(logins) : logins[0]}
  ${contact && `contact: ${contact}`}
log: { format: json, level: ${log} }
${more}`;
  const { child, log: lines } = await program(yaml, {});
  t.after(() => {
    child.removeAllListeners('exit');
    child.kill('SIGKILL');
  });
  return { origin, idp, log: lines, requests: backend.requests, sockets: backend.sockets };
}

/** Signs in and consents at a page of `oidc-provider`. */
export async function signInAtProvider(page, user = 'alice') {
  await page.waitForSelector('input[name="login"], form[action$="/confirm"], button');
  if (await page.$('input[name="login"]')) {
    await page.fill('input[name="login"]', user);
    await page.fill('input[name="password"]', 'any');
    await Promise.all([page.waitForNavigation(), page.click('button[type="submit"]')]);
  }
  await page.click('button[type="submit"]');
}

/** Opens a WebSocket in a page. `window.ended` resolves with its close code and reason, `window.echo` sends a message. */
export function openSocket(page, path = '/ws') {
  return page.evaluate(async (path) => {
    window.socket = new WebSocket(location.origin.replace('http', 'ws') + path);
    window.ended = new Promise((resolve) => {
      window.socket.onclose = (event) => resolve({ code: event.code, reason: event.reason });
    });
    window.echo = (text) =>
      new Promise((resolve) => {
        window.socket.onmessage = (event) => resolve(event.data);
        window.socket.send(text);
      });
    await new Promise((resolve, reject) => {
      window.socket.onopen = resolve;
      window.socket.onerror = reject;
    });
  }, path);
}

/** Waits until a condition holds. */
export const eventually = (what, holds, limit) =>
  within(
    what,
    (async () => {
      while (!(await holds())) await new Promise((resolve) => setTimeout(resolve, 50));
    })(),
    limit,
  );

/** A browser context of the test's own. */
export async function newContext(t, browser) {
  const context = await browser.newContext();
  t.after(() => context.close());
  return context;
}

/** Opens a page and signs in at the provider on the way. */
export async function openSignedIn(context, fixture, signIn, path = '/lab?x=1') {
  const page = await context.newPage();
  await page.goto(fixture.origin + path);
  await signIn(page);
  await page.waitForURL(fixture.origin + path);
  return { context, page };
}
