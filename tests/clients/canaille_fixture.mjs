// Canaille, an OpenID provider written in Python on Authlib, as a process beside the test.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { within } from './fixture.mjs';
import { CLIENT, eventLog, unusedPort } from './sign_in_fixture.mjs';

/** Starts the provider. `origin` is the application's. Each request to it is an event named by its path. */
export async function startCanaille(t, origin, { tokenLife = 600 } = {}) {
  const port = await unusedPort();
  const given = { port, origin, client_id: CLIENT.id, client_secret: CLIENT.secret, token_life: tokenLife };
  const script = join(process.env.ROOT, 'tests/clients/canaille_provider.py');
  const child = spawn(process.env.PYTHON, [script, JSON.stringify(given)], {
    env: { ...process.env, AUTHLIB_INSECURE_TRANSPORT: '1', PYTHONWARNINGS: 'ignore' },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  t.after(() => child.kill('SIGKILL'));
  const { events, count } = eventLog();
  let errors = '';
  child.stderr.on('data', (data) => (errors += data));
  const issuer = await within(
    'Canaille to be ready',
    new Promise((resolve, reject) => {
      createInterface({ input: child.stdout }).on('line', (line) => {
        const { ready, method, path, grant, status } = JSON.parse(line);
        if (ready) resolve(ready);
        else events.push({ name: `${method} ${path} ${status}`, type: grant });
      });
      child.on('exit', (code) => reject(new Error(`Canaille ended with ${code}: ${errors}`)));
    }),
  );
  const stop = async () => {
    child.kill('SIGKILL');
    await once(child, 'exit');
  };
  return { issuer, events, count, stop };
}

/** Signs in at a page of Canaille and answers its question for consent, where it asks one. */
export async function signInAtCanaille(page, user = 'alice', answer = '#accept') {
  await page.fill('input[name="login"]', user);
  await page.press('input[name="login"]', 'Enter');
  await page.fill('input[name="password"]', 'correct horse battery staple');
  await page.press('input[name="password"]', 'Enter');
  if (answer) await page.click(answer);
}
