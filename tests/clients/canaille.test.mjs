// Sign-in at Canaille, in a real browser: a provider of another make, with neither pushed authorization requests nor
// back-channel logout, and with a page of its own before it signs people out.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { chromium } from 'playwright-core';
import { signInAtCanaille, startCanaille } from './canaille_fixture.mjs';
import { within } from './fixture.mjs';
import { eventually, newContext, openSignedIn, openSocket, startSignIn } from './sign_in_fixture.mjs';

const TOKEN = 'POST /oauth/token 200';

let browser;
before(async () => {
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ['--no-sandbox'] });
});
after(() => browser.close());

async function canailleContext(t) {
  const context = await newContext(t, browser);
  // Canaille keeps its session in a cookie, which the answer to a picture that comes late may set back.
  await context.route('**/static/**', (route) => route.abort());
  return context;
}

const openPage = async (t, fixture) => openSignedIn(await canailleContext(t), fixture, signInAtCanaille);

test('a page leads to the provider and back, and the provider signs out', async (t) => {
  const fixture = await startSignIn(t, { provider: startCanaille, login: 'renew: required' });
  const { context, page } = await openPage(t, fixture);
  assert.equal(await page.textContent('#user'), 'alice');
  assert.equal(fixture.idp.count(TOKEN, 'authorization_code'), 1);
  await openSocket(page);
  const other = await context.newPage();
  await other.goto(`${fixture.origin}/.vestibule/logout`);
  await other.click('button');
  const closed = await within('the socket to close', page.evaluate(() => window.ended));
  assert.deepEqual(closed, { code: 1008, reason: 'Session ended' });
  await other.waitForURL(`${fixture.origin}/.vestibule/signed-out`);
  await eventually('the refresh token to be revoked', () => fixture.idp.count('POST /oauth/revoke 200') === 1);
  await page.goto(`${fixture.origin}/lab`);
  assert(page.url().startsWith(fixture.idp.issuer), 'signed out there too');
  assert.equal(await page.locator('input[name="login"]').count(), 1);
});

test('an open socket stays open through renewals with rotated refresh tokens', async (t) => {
  const fixture = await startSignIn(t, { provider: startCanaille, login: 'renew: required', tokenLife: 4 });
  const { page } = await openPage(t, fixture);
  await openSocket(page);
  for (const count of [1, 2, 3]) {
    await eventually(`renewal ${count}`, () => fixture.idp.count(TOKEN, 'refresh_token') >= count);
    const statuses = await page.evaluate(() =>
      Promise.all(Array.from({ length: 5 }, () => fetch('/x').then((response) => response.status))),
    );
    assert.deepEqual(statuses, [200, 200, 200, 200, 200]);
    assert.equal(await page.evaluate((text) => window.echo(text), `after ${count}`), `after ${count}`);
  }
  // Each refresh token is good once: a second use would be refused.
  const refused = fixture.idp.events.filter(({ name }) => name.startsWith('POST /oauth/token') && name !== TOKEN);
  assert.deepEqual(refused, []);
  assert.equal(fixture.sockets.clients.size, 1);
});

test('denied consent is a page, and another account is chosen at the provider', async (t) => {
  const fixture = await startSignIn(t, { provider: startCanaille, login: 'renew: auto' });
  const context = await canailleContext(t);
  const denied = await context.newPage();
  await denied.goto(`${fixture.origin}/lab`);
  await signInAtCanaille(denied, 'alice', '#deny');
  await denied.waitForURL((url) => url.pathname === '/.vestibule/callback');
  assert.match(await denied.textContent('main'), /access_denied/);
  const { page } = await openPage(t, fixture);
  await page.goto(`${fixture.origin}/.vestibule/login?prompt=select_account&return_path=/lab`);
  // It does not ask a second user of one browser for consent.
  await signInAtCanaille(page, 'bob', null);
  await page.waitForURL(`${fixture.origin}/lab`);
  assert.equal(await page.textContent('#user'), 'bob');
});

test('a provider that went away stops sign-ins alone', async (t) => {
  const fixture = await startSignIn(t, { provider: startCanaille, login: 'renew: auto' });
  const { page } = await openPage(t, fixture);
  await fixture.idp.stop();
  await page.goto(`${fixture.origin}/lab`);
  assert.equal(await page.textContent('#user'), 'alice');
});
