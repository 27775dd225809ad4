// A real browser before the built program: client.js on a page of ours, sessions by cookie, and what a page elsewhere
// tries with them.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { after, before, test } from 'node:test';
import { chromium } from 'playwright-core';
import { now, startFixture } from './fixture.mjs';

const CONFIGURATION = `
listen: \${LISTEN}
upstream: \${BACKEND_URL}
providers: [{ preset: oidc, issuer: "\${ISSUER}", audience: "\${AUDIENCE}" }]
browser: { session: { max_age: 1h } }
websocket: { grace: 0s }
routes:
  - { path: /page, auth: none }
  - { path: /admins, require: { role: admin } }
  - { path: /lab/**, websocket: { dialect: none } }
`;

let browser;
before(async () => {
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ['--no-sandbox'] });
});
after(() => browser.close());

const echo = (socket) => socket.on('message', (data) => socket.send(`${data}`));

/** The program, with a backend that serves pages and says who asks. */
async function served(t) {
  const asked = [];
  const page = (request, response) => {
    // A browser asks for this on every page, ours among them.
    if (request.url === '/favicon.ico') return response.writeHead(404).end();
    asked.push({ url: request.url, user: request.headers['x-user-id'], method: request.method });
    response.setHeader('Content-Type', 'text/html');
    response.end(`<!doctype html><title>ours</title><p id="user">${request.headers['x-user-id'] ?? 'nobody'}</p>`);
  };
  const here = await startFixture(t, CONFIGURATION, echo, { page });
  const context = await browser.newContext();
  t.after(() => context.close());
  const origin = here.url.replace('ws', 'http').replace('127.0.0.1', 'localhost');
  return { ...here, asked, context, origin };
}

/** Signs in on a page of ours, as a front end would. */
async function signedIn(here, user = 'alice') {
  const page = await here.context.newPage();
  await page.goto(`${here.origin}/page`);
  const status = await page.evaluate(async (token) => {
    const answer = await fetch('/.vestibule/session', { method: 'POST', headers: { Authorization: `Bearer ${token}` } });
    return answer.status;
  }, here.token(user));
  assert.equal(status, 200);
  return page;
}

test('client.js on a page: fetch and sockets show who it is, and renew', async (t) => {
  const here = await served(t);
  const page = await here.context.newPage();
  await page.exposeFunction('mint', () => here.token('alice', { exp: now() + 8 }));
  await page.goto(`${here.origin}/page`);
  const result = await page.evaluate(async () => {
    const { installAuth } = await import('/.vestibule/client.js');
    let [loaded, renewals] = [false, 0];
    setTimeout(() => (loaded = true), 500);
    // As React's Strict Mode does: installed, undone, installed again.
    const options = { getToken: ({ reason }) => (renewals += reason === 'expiring', loaded ? window.mint() : null) };
    installAuth(options)();
    installAuth(options);
    const api = await (await fetch('/api/whoami')).text();
    const socket = new WebSocket(`ws://${location.host}/ws`);
    const heard = [];
    socket.onmessage = ({ data }) => heard.push(data);
    for (let n = 0; n < 10; n++) socket.send(`early ${n}`);
    await new Promise((resolve) => socket.addEventListener('open', resolve));
    const until = performance.now() + 15_000;
    let sent = 10;
    while (performance.now() < until) {
      socket.send(`${sent++}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    while (heard.length < sent) await new Promise((resolve) => socket.addEventListener('message', resolve, { once: true }));
    const inOrder = heard.every((text, n) => text === (n < 10 ? `early ${n}` : `${n}`));
    return { api, sent, heard: heard.length, inOrder, renewals, state: socket.readyState };
  });
  assert.match(result.api, /alice/);
  assert.equal(result.heard, result.sent);
  assert(result.inOrder && result.renewals >= 2 && result.state === 1, JSON.stringify(result));
  assert.equal(here.seen.length, 1);
  here.assertNoTokenLeaked();
});

test('a class that extends the browser\'s WebSocket keeps its methods, with client.js and without it for a URL', async (t) => {
  const here = await served(t);
  const page = await here.context.newPage();
  await page.exposeFunction('mint', () => here.token('alice'));
  await signedIn(here);
  await page.goto(`${here.origin}/page`);
  const heard = await page.evaluate(async () => {
    const { installAuth, AuthenticatedWebSocket } = await import('/.vestibule/client.js');
    installAuth({ getToken: () => window.mint(), sockets: (url) => url.pathname === '/ws' });
    class Mine extends WebSocket {
      constructor(path) {
        super(`ws://${location.host}${path}`);
        this.binaryType = 'arraybuffer';
      }
      send(data) { super.send(`mine: ${data}`); }
      next(type) { return new Promise((resolve) => this.addEventListener(type, resolve, { once: true })); }
    }
    const heard = [];
    for (const path of ['/ws', '/lab/socket']) {
      const socket = new Mine(path);
      await socket.next('open');
      const message = socket.next('message');
      socket.send('hello');
      const isKind = socket instanceof Mine && socket instanceof WebSocket && socket.constructor === Mine;
      heard.push([socket instanceof AuthenticatedWebSocket, isKind, socket.readyState, socket.binaryType, (await message).data instanceof ArrayBuffer]);
      const close = socket.next('close');
      socket.close(1000);
      heard.push((await close).code);
    }
    return heard;
  });
  const [state, kind] = [1, 'arraybuffer'];
  assert.deepEqual(heard, [[true, true, state, kind, false], 1000, [false, true, state, kind, false], 1000]);
});

test('a session carries pages, images and sockets, and signing out ends them', async (t) => {
  const here = await served(t);
  const page = await signedIn(here);
  await page.goto(`${here.origin}/lab/tree`);
  assert.equal(await page.textContent('#user'), 'alice');
  assert.equal(await page.evaluate(() => document.cookie), '', 'script cannot read it');
  const cookies = await here.context.cookies();
  assert.deepEqual(cookies.map(({ httpOnly, sameSite }) => [httpOnly, sameSite]), [[true, 'Lax']]);
  const closed = await page.evaluate(async () => {
    const socket = new WebSocket(`ws://${location.host}/lab/socket`);
    await new Promise((resolve, reject) => Object.assign(socket, { onopen: resolve, onerror: reject }));
    const close = new Promise((resolve) => (socket.onclose = ({ code, reason }) => resolve(`${code} ${reason}`)));
    await fetch('/.vestibule/session', { method: 'DELETE' });
    return close;
  });
  assert.equal(closed, '1008 Session ended');
  const answer = await page.goto(`${here.origin}/lab/tree`);
  assert.equal(answer.status(), 401);
  assert.equal(await page.textContent('h1'), 'Please sign in');
});

test('a page elsewhere can do nothing with our cookie', async (t) => {
  const here = await served(t);
  await signedIn(here);
  const before = here.asked.length;
  const elsewhere = createServer((_, response) => response.setHeader('Content-Type', 'text/html').end('<!doctype html><title>evil</title>'));
  elsewhere.listen(0, '127.0.0.1');
  await once(elsewhere, 'listening');
  t.after(() => elsewhere.close());
  const port = elsewhere.address().port;
  // Another site; the same site on another port, which SameSite does not tell apart; and a name that points here.
  for (const host of [`127.0.0.1:${port}`, `localhost:${port}`, `sibling.localhost:${port}`]) {
    const page = await here.context.newPage();
    await page.goto(`http://${host}/`);
    const tried = await page.evaluate(async (origin) => {
      const quiet = (promise) => promise.then((answer) => `${answer.type} ${answer.status}`, () => 'refused');
      const socket = await new Promise((resolve) => {
        const socket = new WebSocket(`${origin.replace('http', 'ws')}/lab/socket`);
        Object.assign(socket, { onopen: () => resolve('open'), onerror: () => resolve('refused') });
      });
      const read = await quiet(fetch(`${origin}/lab/tree`, { credentials: 'include' }));
      const noCors = await quiet(fetch(`${origin}/lab/tree`, { mode: 'no-cors', credentials: 'include', method: 'POST', body: 'a=1' }));
      const session = await quiet(fetch(`${origin}/.vestibule/session`, { method: 'POST', mode: 'no-cors', credentials: 'include' }));
      const gone = await quiet(fetch(`${origin}/.vestibule/session`, { method: 'DELETE', credentials: 'include' }));
      return { socket, read, noCors, session, gone };
    }, here.origin);
    assert.deepEqual([tried.socket, tried.read, tried.gone], ['refused', 'refused', 'refused'], host);
    // A form, which nothing asks before.
    await page.setContent(`<form method="post" action="${here.origin}/lab/tree"><input name="a" value="1"></form>`);
    await Promise.all([page.waitForNavigation(), page.evaluate(() => document.forms[0].submit())]);
    assert.match(await page.textContent('h1, body'), /Access denied|Origin not allowed|Please sign in|missing_token/, host);
    await page.close();
  }
  assert.deepEqual(here.asked.slice(before), [], 'the backend heard none of it');
  assert.equal(here.seen.length, 0);
  // A link from elsewhere is a link, and the session is still there.
  const page = await here.context.newPage();
  await page.goto(`http://127.0.0.1:${port}/`);
  await page.setContent(`<a href="${here.origin}/lab/tree">in</a>`);
  await page.click('a');
  assert.equal(await page.textContent('#user'), 'alice');
});

test('whoever may not open a page can sign out there, and nothing is clipped on a telephone', async (t) => {
  const here = await served(t);
  const page = await signedIn(here);
  await page.setViewportSize({ width: 390, height: 844 });
  const said = [];
  page.on('console', (message) => said.push(message.text()));
  const refused = await page.goto(`${here.origin}/admins`);
  assert.equal(refused.status(), 403);
  assert.equal(await page.getByRole('heading', { level: 1 }).textContent(), 'Access denied');
  assert.match(await page.getByRole('contentinfo').textContent(), /Request id: [0-9a-f]/);
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
  await page.getByRole('button', { name: 'Sign out' }).click();
  await page.getByText('You are signed out.').waitFor();
  assert.equal(await page.getByRole('button').count(), 0);
  assert.deepEqual(said.filter((text) => text.includes('Content Security Policy')), []);
  const again = page.waitForResponse((answer) => answer.url().endsWith('/admins'));
  await page.getByRole('link', { name: 'Open this page again' }).click();
  assert.equal((await again).status(), 401);
  assert.equal(await page.getByRole('heading', { level: 1 }).textContent(), 'Please sign in');
});

test('our pages are not framed, and a name that was pointed here hears 421', async (t) => {
  const here = await served(t);
  const page = await here.context.newPage();
  await page.goto(`${here.origin}/page`);
  const refused = await page.goto(`${here.origin}/lab/tree`);
  assert.match(refused.headers()['content-security-policy'], /frame-ancestors 'none'/);
  const rebound = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ['--no-sandbox', '--host-resolver-rules=MAP rebound.example 127.0.0.1'],
  });
  t.after(() => rebound.close());
  const other = await rebound.newPage();
  const answer = await other.goto(`${here.origin.replace('localhost', 'rebound.example')}/page`);
  assert.equal(answer.status(), 421);
});
