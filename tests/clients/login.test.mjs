// Sign-in at a real provider, in a real browser.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { chromium } from 'playwright-core';
import { within } from './house.mjs';
import { consents, loginHouse } from './login_house.mjs';

let browser;
before(async () => {
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ['--no-sandbox'] });
});
after(() => browser.close());

async function context(t) {
  const context = await browser.newContext();
  t.after(() => context.close());
  return context;
}

/** Opens a page and signs in on the way. */
async function signedIn(t, here, path = '/lab?x=1') {
  const its = await context(t);
  const page = await its.newPage();
  await page.goto(here.origin + path);
  await consents(page);
  await page.waitForURL(here.origin + path);
  return { context: its, page };
}

/** A socket on a page, and what became of it. */
async function socket(page) {
  await page.evaluate(async () => {
    window.socket = new WebSocket(location.origin.replace('http', 'ws') + '/ws');
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
  });
}

const until = (what, check) =>
  within(
    what,
    (async () => {
      while (!check()) await new Promise((resolve) => setTimeout(resolve, 50));
    })(),
  );

test('a page leads to the provider and back, with a pushed request', async (t) => {
  const here = await loginHouse(t);
  const { context, page } = await signedIn(t, here);
  assert.equal(await page.textContent('#user'), 'alice');
  assert.equal(here.idp.count('pushed_authorization_request.success'), 1);
  assert.equal(here.idp.count('grant.success', 'authorization_code'), 1);
  const cookies = (await context.cookies(here.origin)).filter((cookie) => cookie.name.startsWith('vestibule'));
  assert(cookies.length === 2 && cookies.every((cookie) => cookie.httpOnly && cookie.value.length < 2_000));
  const text = here.log.join('\n');
  assert(!text.includes('eyJ') && !text.includes('a-client-secret'), text);
  assert(!here.asked.some((asked) => asked.headers.includes('vestibule-')), 'no cookie of ours reached the backend');
});

test('ten tabs opened signed out all arrive', async (t) => {
  const here = await loginHouse(t);
  const its = await context(t);
  const tabs = await Promise.all(Array.from({ length: 10 }, () => its.newPage()));
  await Promise.all(tabs.map((tab, number) => tab.goto(`${here.origin}/tab/${number}`)));
  for (const [number, tab] of tabs.entries()) {
    if (!tab.url().startsWith(here.origin)) await consents(tab);
    await within(`tab ${number}`, tab.waitForURL((url) => url.origin === here.origin || url.pathname.includes('interaction')));
    if (!tab.url().startsWith(here.origin)) await consents(tab);
    await tab.waitForURL(`${here.origin}/tab/${number}`);
    assert.equal(await tab.textContent('#user'), 'alice');
  }
  const cookies = (await its.cookies(here.origin)).filter((cookie) => cookie.name.startsWith('vestibule'));
  assert.equal(cookies.length, 2, JSON.stringify(cookies.map((cookie) => cookie.name)));
});

test('an open socket lives through renewals, one at a time, without a frame', async (t) => {
  const here = await loginHouse(t, { tokenLife: 4 });
  const { page } = await signedIn(t, here);
  await socket(page);
  for (const count of [1, 2, 3]) {
    await until(`renewal ${count}`, () => here.idp.count('grant.success', 'refresh_token') >= count);
    // Requests beside it do not renew a second time: the provider would end the grant.
    const answers = await page.evaluate(() =>
      Promise.all(Array.from({ length: 5 }, () => fetch('/x').then((answer) => answer.status))),
    );
    assert.deepEqual(answers, [200, 200, 200, 200, 200]);
    assert.equal(await page.evaluate((text) => window.echo(text), `after ${count}`), `after ${count}`);
  }
  assert.equal(here.idp.count('grant.error') + here.idp.count('grant.revoked'), 0, JSON.stringify(here.idp.events));
  assert.equal(here.upstream.clients.size, 1);
});

test('the back button and a bookmarked page of the provider lead in, not to an error', async (t) => {
  const here = await loginHouse(t);
  const its = await context(t);
  const page = await its.newPage();
  await page.goto(`${here.origin}/lab`);
  const bookmarked = page.url();
  await consents(page);
  await page.waitForURL(`${here.origin}/lab`);
  await page.goto(`${here.origin}/notes`);
  await page.goBack();
  assert.equal(await page.textContent('#user'), 'alice');
  // Days later, in a browser that is signed in here and still at the provider.
  const late = await its.newPage();
  const answer = await late.goto(bookmarked);
  assert(answer.status() < 500, `the provider's own page: ${answer.status()}`);
  await late.goto(`${here.origin}/.vestibule/callback?code=old&state=old`);
  assert.equal(late.url(), `${here.origin}/`);
  assert.equal(await late.textContent('#user'), 'alice');
});

test('signing out in one tab ends the socket of another, here and at the provider', async (t) => {
  const here = await loginHouse(t);
  const { context, page } = await signedIn(t, here);
  await socket(page);
  const other = await context.newPage();
  await other.goto(`${here.origin}/.vestibule/logout`);
  await other.click('button');
  await other.waitForURL((url) => url.href.startsWith(here.idp.issuer));
  const closed = await within('the socket to close', page.evaluate(() => window.ended));
  assert.deepEqual(closed, { code: 1008, reason: 'Session ended' });
  await other.click('button[value="yes"]');
  await other.waitForURL(`${here.origin}/.vestibule/signed-out`);
  await page.goto(`${here.origin}/lab`);
  assert(page.url().startsWith(here.idp.issuer), 'signed out there too');
  assert.equal(await page.locator('input[name="login"]').count(), 1);
});

test('signing out at the provider ends the session and its sockets here', async (t) => {
  const here = await loginHouse(t);
  const { context, page } = await signedIn(t, here);
  await socket(page);
  const other = await context.newPage();
  await other.goto(`${here.idp.issuer}/session/end`);
  await other.click('button[value="yes"]');
  const closed = await within('the socket to close', page.evaluate(() => window.ended));
  assert.deepEqual(closed, { code: 1008, reason: 'Session ended' });
  await until('the provider to be answered', () => here.idp.count('backchannel.success') === 1);
  await page.goto(`${here.origin}/lab`);
  assert(page.url().startsWith(here.idp.issuer));
});

test('someone who may not enter signs in as someone else', async (t) => {
  const here = await loginHouse(t, { more: 'routes: [{ path: /lab, require: { sub: bob } }]\n' });
  const its = await context(t);
  const page = await its.newPage();
  await page.goto(`${here.origin}/lab`);
  await consents(page, 'alice');
  await page.waitForURL(`${here.origin}/lab`);
  await page.click('text=Sign in as someone else');
  await page.click('button');
  await page.waitForURL((url) => url.href.startsWith(here.idp.issuer));
});
