// Every page of ours that people see while they sign in or out: its status, its accessibility by axe-core, its width on a
// telephone, and that it loads nothing from elsewhere. With SCREENSHOTS set to a folder, a picture of each is kept there.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { chromium } from 'playwright-core';
import { signInAtProvider, startOidcProvider, startSignIn } from './sign_in_fixture.mjs';

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const VIEWS = ['light', 'dark'].flatMap((colorScheme) => [1100, 390].map((width) => ({ colorScheme, width })));

let browser;
before(async () => {
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ['--no-sandbox'] });
});
after(() => browser.close());

/** A browser of its own with one page. */
async function open(t) {
  const context = await browser.newContext();
  t.after(() => context.close());
  const page = await context.newPage();
  const [requests, messages] = [[], []];
  page.on('request', (request) => {
    if (!request.isNavigationRequest()) requests.push({ from: request.frame().url(), to: request.url() });
  });
  page.on('console', (message) => messages.push(message.text()));
  return { context, page, requests, messages };
}

/** Checks the page that is open, in both colour schemes and at both widths. */
async function check({ page, requests, messages }, fixture, name, { title, heading = title }) {
  assert.equal(await page.title(), `${title} · Vestibule`, name);
  assert.equal(await page.getByRole('heading', { level: 1 }).count(), 1, name);
  assert.equal(await page.getByRole('heading', { level: 1 }).textContent(), heading, name);
  assert.equal(await page.getByRole('main').count(), 1, name);
  for (const { colorScheme, width } of VIEWS) {
    await page.emulateMedia({ colorScheme });
    await page.setViewportSize({ width, height: 800 });
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert(overflow <= 0, `${name}: ${overflow} px too wide at ${width}`);
    if (process.env.SCREENSHOTS) {
      await page.screenshot({ path: join(process.env.SCREENSHOTS, `${name}-${colorScheme}-${width}.png`) });
    }
    await page.evaluate(AXE);
    const { violations } = await page.evaluate(() => globalThis.axe.run());
    const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(' ')}`);
    assert.deepEqual(found, [], `${name}, ${colorScheme}, ${width} px`);
  }
  const loaded = requests.filter(({ from, to }) => from.startsWith(fixture.origin) && !to.endsWith('/favicon.ico'));
  assert.deepEqual(loaded, [], name);
  const blocked = messages.filter((text) => text.includes('Content Security Policy'));
  assert.deepEqual(blocked, [], name);
}

/** Opens an address and checks the page there. */
async function visit(window, fixture, path, status, name, expected) {
  const response = await window.page.goto(fixture.origin + path);
  assert.equal(response.status(), status, name);
  await check(window, fixture, name, expected);
}

async function signIn(window, fixture, user = 'alice') {
  await window.page.goto(`${fixture.origin}/lab`);
  await signInAtProvider(window.page, user);
  await window.page.waitForURL((url) => url.origin === fixture.origin);
}

test('signing out', async (t) => {
  const fixture = await startSignIn(t);
  const window = await open(t);
  await signIn(window, fixture);
  await visit(window, fixture, '/.vestibule/logout', 200, 'sign-out', { title: 'Sign out' });
  await visit(window, fixture, '/.vestibule/logout?then=select_account', 200, 'sign-out-other', { title: 'Sign in as someone else' });
  await visit(window, fixture, '/.vestibule/signed-out', 200, 'signed-out', { title: 'Signed out' });
});

test('people who may not enter', async (t) => {
  const denied = await startSignIn(t, {
    rules: 'allow: { users: [bob] }',
    contact: 'help@example.com',
    more: 'routes: [{ path: /admins, require: { role: admin } }]',
  });
  const window = await open(t);
  await signIn(window, denied);
  await check(window, denied, 'not-allowed', { title: 'Access denied' });
  const other = await open(t);
  await signIn(other, denied, 'bob');
  await visit(other, denied, '/admins', 403, 'route-denied', { title: 'Access denied' });
  await other.page.goto(`${denied.origin}/.vestibule/login?prompt=login`);
  await other.page.click('text=Cancel');
  await other.page.waitForURL((url) => url.origin === denied.origin);
  await check(other, denied, 'cancelled', { title: 'You are not signed in' });
});

test('links that lead nowhere', async (t) => {
  const fixture = await startSignIn(t);
  const window = await open(t);
  const title = 'This link does not work';
  await visit(window, fixture, '/.vestibule/login?prompt=never', 400, 'bad-link', { title });
});

test('a browser that keeps no cookies', async (t) => {
  const fixture = await startSignIn(t);
  const window = await open(t);
  await window.page.goto(`${fixture.origin}/lab`);
  await window.context.clearCookies({ domain: 'localhost' });
  await signInAtProvider(window.page);
  for (let turn = 0; turn < 2 && !window.page.url().startsWith(fixture.origin); turn++) {
    await window.context.clearCookies({ domain: 'localhost' });
    await signInAtProvider(window.page);
  }
  await window.page.waitForURL((url) => url.origin === fixture.origin);
  await check(window, fixture, 'cookie-not-sent', { title: 'Your browser did not send our cookie back' });
});

test('a browser that drops the session cookie', async (t) => {
  const fixture = await startSignIn(t, { login: 'renew: auto' });
  const window = await open(t);
  await signIn(window, fixture);
  for (let turn = 0; turn < 3; turn++) {
    const cookies = await window.context.cookies(fixture.origin);
    for (const { name } of cookies.filter(({ name }) => name.startsWith('vestibule') && !name.includes('login'))) {
      await window.context.clearCookies({ name });
    }
    await window.page.goto(`${fixture.origin}/lab`);
    if (window.page.url().startsWith(fixture.idp.issuer)) await signInAtProvider(window.page);
  }
  await window.page.waitForURL((url) => url.origin === fixture.origin);
  await check(window, fixture, 'cookie-not-kept', { title: 'Your browser did not keep our cookie' });
});

test('a callback that another key sealed', async (t) => {
  const fixture = await startSignIn(t, { login: 'renew: auto' });
  const window = await open(t);
  const title = 'This sign-in is over';
  await window.page.goto(`${fixture.origin}/.vestibule/callback?code=a&state=b`);
  await visit(window, fixture, '/.vestibule/callback?code=a&state=b', 400, 'over', { title });
});

test('a provider that answers what cannot be accepted, gives no refresh token, or is down', async (t) => {
  let spoil = (body) => body;
  const fixture = await startSignIn(t, {
    login: 'prompt: consent, renew: required',
    contact: 'https://help.example.com',
    spoil: (body) => spoil(body),
  });
  spoil = ({ id_token, ...body }) => body;
  const first = await open(t);
  await signIn(first, fixture);
  await check(first, fixture, 'unusable', { title: 'The sign-in could not be verified' });
  spoil = ({ refresh_token, ...body }) => body;
  const second = await open(t);
  await signIn(second, fixture);
  await check(second, fixture, 'no-refresh-token', { title: 'You are not signed in' });
  fixture.idp.server.close();
  fixture.idp.server.closeAllConnections();
  const third = await open(t);
  await visit(third, fixture, '/lab', 503, 'provider-down', { title: 'Signing in is not possible now' });
});

test('several providers to choose from', async (t) => {
  const second = await startOidcProvider(t, 'http://localhost:1');
  const fixture = await startSignIn(t, { second });
  const window = await open(t);
  await visit(window, fixture, '/lab', 200, 'chooser', { title: 'Sign in' });
  const { height } = await window.page.getByRole('link', { name: 'Staff' }).boundingBox();
  assert(height >= 40, `a finger needs more than ${height} px`);
  await window.page.click('text=Staff');
  await signInAtProvider(window.page);
  await window.page.waitForURL(`${fixture.origin}/lab`);
  await window.context.clearCookies({ name: /^vestibule-\d+$/ });
  await visit(window, fixture, '/lab', 200, 'chooser-last', { title: 'Sign in' });
});

test('a page that keeps the fragment', async (t) => {
  const fixture = await startSignIn(t, { login: 'keep_fragment: true' });
  const context = await browser.newContext({ javaScriptEnabled: false });
  t.after(() => context.close());
  const page = await context.newPage();
  await page.goto(`${fixture.origin}/lab`);
  assert.equal(await page.getByRole('heading', { level: 1 }).textContent(), 'Sign in');
  assert.equal(await page.getByRole('link', { name: 'Continue' }).count(), 1);
  if (process.env.SCREENSHOTS) await page.screenshot({ path: join(process.env.SCREENSHOTS, 'keep-fragment.png') });
});

test('an application that does not answer, and a page that is not there', async (t) => {
  const fixture = await startSignIn(t, { upstream: 'http://127.0.0.1:1', contact: 'help@example.com', more: '' });
  const window = await open(t);
  await signIn(window, fixture);
  await check(window, fixture, 'no-application', { title: 'The application does not answer' });
  await visit(window, fixture, '/.vestibule/nothing', 404, 'not-found', { title: 'Page not found' });
});
