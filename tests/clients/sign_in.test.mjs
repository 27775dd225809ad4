// Sign-in at `oidc-provider`, a certified OpenID provider, in a real browser.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { chromium } from 'playwright-core';
import { within } from './fixture.mjs';
import { CLIENT, eventually, newContext, openSignedIn, openSocket, SESSION_SECRET, signInAtProvider, startSignIn, unusedPort } from './sign_in_fixture.mjs';

let browser;
before(async () => {
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ['--no-sandbox'] });
});
after(() => browser.close());

const openPage = async (t, fixture) => openSignedIn(await newContext(t, browser), fixture, signInAtProvider);

const ourCookies = async (context, origin) =>
  (await context.cookies(origin)).filter((cookie) => cookie.name.startsWith('vestibule'));

test('a page leads to the provider and back, with a pushed authorization request', async (t) => {
  const fixture = await startSignIn(t);
  const { context, page } = await openPage(t, fixture);
  assert.equal(await page.textContent('#user'), 'alice');
  assert.equal(fixture.idp.count('pushed_authorization_request.success'), 1);
  assert.equal(fixture.idp.count('grant.success', 'authorization_code'), 1);
  const cookies = await ourCookies(context, fixture.origin);
  assert(cookies.length === 2 && cookies.every((cookie) => cookie.httpOnly && cookie.value.length < 2_000));
  assert(!fixture.requests.some(({ headers }) => headers.includes('vestibule-')), 'no cookie of ours reached the backend');
});

test('a provider that requires pushed authorization requests', async (t) => {
  const fixture = await startSignIn(t, {
    login: 'prompt: consent, pushed: required',
    client: { require_pushed_authorization_requests: true },
  });
  const { page } = await openPage(t, fixture);
  assert.equal(await page.textContent('#user'), 'alice');
  assert.equal(fixture.idp.count('pushed_authorization_request.success'), 1);
});

test('ten tabs opened signed out all arrive', async (t) => {
  const fixture = await startSignIn(t);
  const context = await newContext(t, browser);
  const tabs = await Promise.all(Array.from({ length: 10 }, () => context.newPage()));
  await Promise.all(tabs.map((tab, number) => tab.goto(`${fixture.origin}/tab/${number}`)));
  for (const [number, tab] of tabs.entries()) {
    if (!tab.url().startsWith(fixture.origin)) await signInAtProvider(tab);
    const isDone = (url) => url.origin === fixture.origin || url.pathname.includes('interaction');
    await within(`tab ${number}`, tab.waitForURL(isDone));
    if (!tab.url().startsWith(fixture.origin)) await signInAtProvider(tab);
    await tab.waitForURL(`${fixture.origin}/tab/${number}`);
    assert.equal(await tab.textContent('#user'), 'alice');
  }
  const cookies = await ourCookies(context, fixture.origin);
  assert.equal(cookies.length, 2, JSON.stringify(cookies.map((cookie) => cookie.name)));
});

test('an open socket stays open through renewals, one at a time, and receives no frame of ours', async (t) => {
  const fixture = await startSignIn(t, { tokenLife: 4 });
  const { page } = await openPage(t, fixture);
  await openSocket(page);
  for (const count of [1, 2, 3]) {
    await eventually(`renewal ${count}`, () => fixture.idp.count('grant.success', 'refresh_token') >= count);
    // A second renewal for the requests beside it would make the provider revoke the grant.
    const statuses = await page.evaluate(() =>
      Promise.all(Array.from({ length: 5 }, () => fetch('/x').then((response) => response.status))),
    );
    assert.deepEqual(statuses, [200, 200, 200, 200, 200]);
    assert.equal(await page.evaluate((text) => window.echo(text), `after ${count}`), `after ${count}`);
  }
  assert.equal(fixture.idp.count('grant.error') + fixture.idp.count('grant.revoked'), 0, JSON.stringify(fixture.idp.events));
  assert(fixture.idp.issued.refresh_token.size >= 4, 'each renewal brings another refresh token');
  assert.equal(fixture.sockets.clients.size, 1);
});

test('twenty requests after the token expired cause one renewal', async (t) => {
  const life = 4;
  const fixture = await startSignIn(t, { tokenLife: life });
  const { page } = await openPage(t, fixture);
  // Nothing renews a session that is not used.
  await new Promise((resolve) => setTimeout(resolve, (life + 1) * 1_000));
  assert.equal(fixture.idp.count('grant.success', 'refresh_token'), 0);
  const statuses = await page.evaluate(() =>
    Promise.all(Array.from({ length: 20 }, (_, n) => fetch(`/x/${n}`).then((response) => response.status))),
  );
  assert.deepEqual([...new Set(statuses)], [200]);
  assert.equal(fixture.idp.count('grant.success', 'refresh_token'), 1);
  assert.equal(fixture.idp.count('grant.error') + fixture.idp.count('grant.revoked'), 0, JSON.stringify(fixture.idp.events));
});

test('the back button and a bookmarked page of the provider lead in, not to an error', async (t) => {
  const fixture = await startSignIn(t);
  const context = await newContext(t, browser);
  const page = await context.newPage();
  await page.goto(`${fixture.origin}/lab`);
  const bookmarked = page.url();
  await signInAtProvider(page);
  await page.waitForURL(`${fixture.origin}/lab`);
  await page.goto(`${fixture.origin}/notes`);
  await page.goBack();
  assert.equal(await page.textContent('#user'), 'alice');
  // Days later, in a browser that is signed in here and still at the provider.
  const late = await context.newPage();
  const response = await late.goto(bookmarked);
  assert(response.status() < 500, `the provider's own page: ${response.status()}`);
  await late.goto(`${fixture.origin}/.vestibule/callback?code=old&state=old`);
  assert.equal(late.url(), `${fixture.origin}/`);
  assert.equal(await late.textContent('#user'), 'alice');
});

test('signing out in one tab ends the socket of another, here and at the provider', async (t) => {
  const fixture = await startSignIn(t);
  const { context, page } = await openPage(t, fixture);
  await openSocket(page);
  const other = await context.newPage();
  await other.goto(`${fixture.origin}/.vestibule/logout`);
  await other.click('button');
  await other.waitForURL((url) => url.href.startsWith(fixture.idp.issuer));
  const closed = await within('the socket to close', page.evaluate(() => window.ended));
  assert.deepEqual(closed, { code: 1008, reason: 'Session ended' });
  await other.click('button[value="yes"]');
  await other.waitForURL(`${fixture.origin}/.vestibule/signed-out`);
  assert.equal(fixture.idp.count('end_session.success'), 1);
  await eventually('the refresh token to be revoked', () => fixture.idp.count('revocation.success') === 1);
  await page.goto(`${fixture.origin}/lab`);
  assert(page.url().startsWith(fixture.idp.issuer), 'signed out there too');
  assert.equal(await page.locator('input[name="login"]').count(), 1);
});

test('signing out at the provider ends the session and its sockets here', async (t) => {
  const fixture = await startSignIn(t);
  const { context, page } = await openPage(t, fixture);
  await openSocket(page);
  const other = await context.newPage();
  await other.goto(`${fixture.idp.issuer}/session/end`);
  await other.click('button[value="yes"]');
  const closed = await within('the socket to close', page.evaluate(() => window.ended));
  assert.deepEqual(closed, { code: 1008, reason: 'Session ended' });
  await eventually('the provider to be answered', () => fixture.idp.count('backchannel.success') === 1);
  await page.goto(`${fixture.origin}/lab`);
  assert(page.url().startsWith(fixture.idp.issuer));
});

test('someone who may not enter signs in as someone else', async (t) => {
  const fixture = await startSignIn(t, { more: 'routes: [{ path: /lab, require: { sub: bob } }]' });
  const context = await newContext(t, browser);
  const page = await context.newPage();
  await page.goto(`${fixture.origin}/lab`);
  await signInAtProvider(page, 'alice');
  await page.waitForURL(`${fixture.origin}/lab`);
  await page.click('text=Sign in as someone else');
  await page.click('button');
  await page.waitForURL((url) => url.href.startsWith(fixture.idp.issuer));
});

test('no code, state, token or secret is in a log at trace, on a page, in a metric or at the backend', async (t) => {
  const admin = `127.0.0.1:${await unusedPort()}`;
  const fixture = await startSignIn(t, { tokenLife: 4, log: 'trace', admin });
  const { context, page } = await openPage(t, fixture);
  await openSocket(page);
  await eventually('a renewal', () => fixture.idp.count('grant.success', 'refresh_token') >= 1);
  await page.evaluate(() => fetch('/after'));
  const cookies = await ourCookies(context, fixture.origin);
  // Every page of ours on the way out, and what a callback that cannot be finished says.
  const pages = [];
  const other = await context.newPage();
  other.on('response', async (response) => {
    if (response.url().startsWith(fixture.origin)) pages.push(await response.text().catch(() => ''));
  });
  await other.goto(`${fixture.origin}/.vestibule/logout`);
  await other.click('button');
  await other.click('button[value="yes"]');
  await other.waitForURL(`${fixture.origin}/.vestibule/signed-out`);
  await eventually('the refresh token to be revoked', () => fixture.idp.count('revocation.success') === 1);
  const [state] = fixture.idp.issued.state;
  const [code] = fixture.idp.issued.code;
  const stranger = await newContext(t, browser);
  for (const query of [`code=${code}&state=${state}`, `error=access_denied&state=${state}`]) {
    const response = await stranger.request.get(`${fixture.origin}/.vestibule/callback?${query}`, { maxRedirects: 0 });
    pages.push(await response.text());
  }
  const metrics = await (await fetch(`http://${admin}/metrics`)).text();
  assert.match(metrics, /vestibule_sign_ins_total/);
  const issued = Object.values(fixture.idp.issued).map((values) => [...values]);
  assert(issued.every((values) => values.length > 0), JSON.stringify(fixture.idp.issued));
  const secrets = [...issued.flat(), ...cookies.map(({ value }) => value), CLIENT.secret, SESSION_SECRET];
  const places = { log: fixture.log.join('\n'), pages: pages.join('\n'), metrics, backend: JSON.stringify(fixture.requests) };
  assert.match(places.log, /"event":"sign_in"/);
  for (const [place, text] of Object.entries(places)) {
    for (const secret of secrets) assert(!text.includes(secret), `${place} holds ${secret}:\n${text}`);
    assert(!text.includes('eyJ'), `${place}: ${text}`);
  }
});
