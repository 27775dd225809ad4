// The npm package as its own command builds it, from a copy of the sources, and projects that take it from its tarball.
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';

const ROOT = process.env.ROOT;
const run = (command, args, cwd, environment) => {
  const env = { ...process.env, ...environment };
  return execFileSync(command, args, { cwd, env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
};

/** A tool of the installed packages. */
export const tool = (name, args, cwd, environment) => run(process.execPath, [resolve('node_modules', name), ...args], cwd, environment);

/** Packs the client below `folder`; returns where the repository's copy and the tarball are. */
export function packed(folder) {
  const repository = resolve(folder, 'repository');
  rmSync(folder, { recursive: true, force: true });
  for (const path of ['src/browser', 'packages/client']) {
    const filter = (source) => !/node_modules|dist$|\.tgz$/.test(source.slice(ROOT.length));
    cpSync(join(ROOT, path), join(repository, path), { recursive: true, filter });
  }
  const where = join(repository, 'packages/client');
  const name = run('npm', ['pack', '--silent'], where).trim().split('\n').at(-1);
  return { repository, tarball: join(where, name) };
}

/** A project with these files. */
export function project(folder, files, tarball) {
  const where = resolve(folder);
  for (const [path, text] of Object.entries({ 'package.json': '{ "type": "module", "private": true }', ...files })) {
    mkdirSync(join(where, path, '..'), { recursive: true });
    writeFileSync(join(where, path), text);
  }
  if (tarball) run('npm', ['install', '--no-audit', '--no-fund', '--ignore-scripts', '--offline', tarball], where);
  return where;
}
