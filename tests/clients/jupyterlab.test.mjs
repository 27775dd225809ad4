// JupyterLab in a real browser, started as `vestibule check` says. People sign in with tokens that live a third of the time
// that a cell runs, which JUPYTERLAB_SECONDS sets.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { chromium } from 'playwright-core';
import { within } from './fixture.mjs';
import { eventually, signInAtProvider, startSignIn, unusedPort } from './sign_in_fixture.mjs';

const TOKEN = 'the-backends-own-token-9a8b7c';
const UPSTREAM = (port) =>
  `{ url: "http://127.0.0.1:${port}", preset: jupyter, credential: { header: Authorization, value: "token ${TOKEN}" } }`;
/** What JupyterLab shows may take long on a machine that is busy. */
const PATIENCE = { timeout: 120_000 };
const SECONDS = Number(process.env.JUPYTERLAB_SECONDS ?? 24);
const TOKEN_LIFE = SECONDS / 3;

const CELLS = [
  'import os, time\nkept = os.getpid()\nprint("kernel", kept)',
  `for n in range(${SECONDS}):\n    print("line", n, flush=True)\n    time.sleep(1)`,
  'print("kept", kept == os.getpid())',
];

let browser;
before(async () => {
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ['--no-sandbox'] });
});
after(() => browser.close());

/** The configuration file of Jupyter Server that `check` prints. */
function printedConfiguration() {
  const yaml = `upstream: ${UPSTREAM(8888)}\nproviders: [{ preset: oidc, issuer: "http://127.0.0.1:1", audience: a }]\n`;
  const printed = execFileSync(process.env.VESTIBULE, ['check'], {
    env: { VESTIBULE_CONFIG_YAML: yaml },
    encoding: 'utf8',
  });
  const [, file] = printed.split('\n# jupyter_server_config.py\n');
  assert(file, printed);
  return file;
}

/** Starts JupyterLab with one notebook in a folder of its own. */
async function startJupyterLab(t) {
  const folder = mkdtempSync(join(tmpdir(), 'vestibule-jupyterlab-'));
  const cells = CELLS.map((source) => ({ cell_type: 'code', source, metadata: {}, outputs: [], execution_count: null }));
  const kernelspec = { name: 'python3', display_name: 'Python 3', language: 'python' };
  const notebook = { cells, metadata: { kernelspec }, nbformat: 4, nbformat_minor: 4 };
  writeFileSync(join(folder, 'slow.ipynb'), JSON.stringify(notebook));
  writeFileSync(join(folder, 'jupyter_server_config.py'), printedConfiguration());
  const port = await unusedPort();
  const flags = ['ip=127.0.0.1', `port=${port}`, 'port_retries=0', 'open_browser=False', 'allow_remote_access=True', 'allow_root=True'];
  const child = spawn(
    process.env.PYTHON,
    ['-m', 'jupyterlab', ...flags.map((flag) => `--ServerApp.${flag}`), '--config=jupyter_server_config.py'],
    {
      cwd: folder,
      env: { ...process.env, HOME: folder, JUPYTER_TOKEN: TOKEN, JUPYTER_RUNTIME_DIR: join(folder, 'runtime') },
      stdio: ['ignore', 'ignore', 'pipe'],
      // A group of its own: kernels are children of the server.
      detached: true,
    },
  );
  t.after(() => {
    process.kill(-child.pid, 'SIGKILL');
    rmSync(folder, { recursive: true, force: true });
  });
  let errors = '';
  child.stderr.on('data', (data) => (errors += data));
  const answers = () => fetch(`http://127.0.0.1:${port}/api`).then(({ ok }) => ok, () => false);
  await eventually('JupyterLab to answer', () => {
    assert.equal(child.exitCode, null, errors);
    return answers();
  }, PATIENCE.timeout);
  return port;
}

/** The kernel's WebSockets of a page: how many were opened and how many closed. */
function watchKernelSockets(page) {
  const sockets = { opened: 0, closed: 0, received: 0 };
  page.on('websocket', (socket) => {
    if (!socket.url().includes('/api/kernels/')) return;
    sockets.opened += 1;
    socket.on('framereceived', () => (sockets.received += 1));
    socket.on('close', () => (sockets.closed += 1));
  });
  return sockets;
}

const kernels = (page) => page.evaluate(async () => (await (await fetch('/api/kernels')).json()).map(({ id }) => id));

test('a cell runs on while its tokens end; a sign-out in another tab ends its socket', async (t) => {
  const port = await startJupyterLab(t);
  const fixture = await startSignIn(t, { upstream: UPSTREAM(port), more: '', tokenLife: TOKEN_LIFE });
  const context = await browser.newContext({ viewport: { width: 1100, height: 900 } });
  context.setDefaultTimeout(PATIENCE.timeout);
  t.after(() => context.close());
  const page = await context.newPage();
  const sockets = watchKernelSockets(page);
  await page.goto(`${fixture.origin}/lab/tree/slow.ipynb`);
  await signInAtProvider(page);
  await page.waitForURL(`${fixture.origin}/lab/tree/slow.ipynb`, PATIENCE);
  // JupyterLab drops what is run before the kernel has answered on the socket.
  await eventually('the kernel to answer', () => sockets.received > 0, PATIENCE.timeout);
  await page.getByText('Python 3 (ipykernel) | Idle').waitFor(PATIENCE);
  const outputs = page.locator('.jp-OutputArea-output pre');
  await page.locator('.jp-Notebook .jp-Cell').first().click();
  await page.getByRole('menuitem', { name: 'Run', exact: true }).click();
  await page.getByRole('menuitem', { name: 'Run All Cells', exact: true }).click();
  await outputs.filter({ hasText: 'kernel' }).waitFor(PATIENCE);
  const before = { ids: await kernels(page), opened: sockets.opened };
  assert.deepEqual([before.ids.length, sockets.closed], [1, 0]);
  // Each renewal happens without a request of the page: the open socket causes it.
  await outputs.filter({ hasText: 'kept True' }).waitFor({ timeout: SECONDS * 1_000 + PATIENCE.timeout });
  const text = (await outputs.allTextContents()).join('');
  const lines = [...text.matchAll(/^line (\d+)$/gm)].map(([, number]) => Number(number));
  assert.deepEqual(lines, Array.from({ length: SECONDS }, (_, n) => n));
  assert.deepEqual({ ids: await kernels(page), opened: sockets.opened }, before, 'the kernel and its socket are the same');
  assert.equal(sockets.closed, 0);
  const renewals = fixture.idp.count('grant.success', 'refresh_token');
  assert(renewals >= 3, `${renewals} renewals`);
  assert.equal(fixture.idp.count('grant.error'), 0, JSON.stringify(fixture.idp.events));
  if (process.env.SCREENSHOTS) await page.screenshot({ path: join(process.env.SCREENSHOTS, 'jupyterlab.png') });
  const other = await context.newPage();
  await other.goto(`${fixture.origin}/.vestibule/logout`);
  await other.click('button');
  await other.waitForURL((url) => url.href.startsWith(fixture.idp.issuer));
  await eventually('the socket to close', () => sockets.closed >= 1);
  const status = await page.evaluate(() => fetch('/api/kernels').then((response) => response.status));
  assert.equal(status, 401);
});

test('ten tabs of JupyterLab opened signed out all arrive', async (t) => {
  const port = await startJupyterLab(t);
  const fixture = await startSignIn(t, { upstream: UPSTREAM(port), more: '' });
  const context = await browser.newContext();
  context.setDefaultTimeout(PATIENCE.timeout);
  t.after(() => context.close());
  // Whether the page arrives is what counts; ten applications at once would keep the processor.
  await context.route('**/static/**', (route) => route.abort());
  const tabs = await Promise.all(Array.from({ length: 10 }, () => context.newPage()));
  const address = (number) => `${fixture.origin}/lab/workspaces/tab-${number}`;
  await Promise.all(tabs.map((tab, number) => tab.goto(address(number), PATIENCE)));
  await signInAtProvider(tabs[0]);
  for (const [number, tab] of tabs.entries()) {
    // A tab whose page at the provider was open meanwhile is asked again, or is signed in by now.
    if (number > 0 && !tab.url().startsWith(fixture.origin)) await signInAtProvider(tab);
    const isPage = (url) => url.href.startsWith(address(number)) || url.pathname.includes('interaction');
    await within(`tab ${number}`, tab.waitForURL(isPage, { waitUntil: 'commit' }), PATIENCE.timeout);
    if (!tab.url().startsWith(fixture.origin)) await signInAtProvider(tab);
    await tab.waitForURL((url) => url.href.startsWith(address(number)), { waitUntil: 'commit', ...PATIENCE });
    await tab.waitForSelector('#jupyter-config-data', { state: 'attached', ...PATIENCE });
  }
});
