// Drives a running `sae serve` as a reader would, in headless Chromium.
//
//   node tests/browser/run.mjs URL [--out DIR]
//
// Needs `npm ci` here and a Chromium (CHROMIUM names it if it is not in the path). Screenshots go to DIR. Ends with
// `N passed, N failed`, and with status 1 if anything failed.

import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { tests as ofRuns } from './runs.mjs';
import { tests as ofIndexes } from './tests.mjs';
import puppeteer from 'puppeteer-core';

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

function usage(problem) {
  console.error(`error: ${problem}\nusage: node run.mjs URL [--out DIR]`);
  process.exit(2);
}

function chromium() {
  if (process.env.CHROMIUM) return process.env.CHROMIUM;
  for (const name of ['chromium', 'chromium-browser', 'google-chrome']) {
    try {
      return execFileSync('which', [name], { encoding: 'utf8' }).trim();
    } catch {
      // The next name, then.
    }
  }
  return usage('no Chromium in the path; install it, or set CHROMIUM to its program');
}

const args = process.argv.slice(2);
const outAt = args.indexOf('--out');
const out = outAt < 0 ? null : args.splice(outAt, 2)[1];
if (args.length !== 1 || (outAt >= 0 && !out)) usage('one URL is needed');
const origin = new URL(args[0]).origin;
if (out) mkdirSync(out, { recursive: true });

const browser = await puppeteer.launch({
  executablePath: chromium(),
  // Runs as root in a container, where Chromium's own sandbox cannot; it opens nothing but this server.
  args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--hide-scrollbars'],
  protocolTimeout: 180_000,
});

/** What any page did that it must not have: each test asks that this stays empty. */
let complaints = [];

/** A fresh page at `path`, drawn. */
async function open(path, { width = 1440, height = 900, theme = 'light', expected = [], bypass = false } = {}) {
  const context = await browser.createBrowserContext();
  const page = await context.newPage();
  const complain = (text) => expected.some((e) => text.includes(e)) || complaints.push(text);
  page.on('console', (m) => ['error', 'warn', 'assert'].includes(m.type()) && complain(`console ${m.type()}: ${m.text()}`));
  page.on('pageerror', (e) => complain(`uncaught: ${e.message}`));
  page.on('request', (r) => new URL(r.url()).origin === origin || complain(`request outside the origin: ${r.url()}`));
  page.on('response', (r) => {
    if (r.status() >= 400) complain(`status ${r.status()}: ${r.url()}`);
    const policy = r.headers()['content-security-policy'] ?? '';
    if (!policy.includes("default-src 'none'") || policy.includes('unsafe')) complain(`no strict policy: ${r.url()}`);
    if (r.headers()['x-content-type-options'] !== 'nosniff') complain(`no nosniff: ${r.url()}`);
  });
  if (bypass) await page.setBypassCSP(true);
  await page.setViewport({ width, height });
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: theme }]);
  await page.goto(origin + path);
  await drawn(page);
  return page;
}

/** Waits until the page shows what its address says; `path` is an expected beginning of it. */
async function drawn(page, path) {
  await page.waitForFunction(
    (wanted) => {
      const ready = document.getElementById('main')?.dataset.ready;
      return ready !== undefined && (wanted === undefined || ready.split('?')[0] === wanted);
    },
    { timeout: 30_000 },
    path,
  ).catch(() => {
    throw new Error(`${path ?? 'the page'} was not drawn within 30 s; the address is ${page.url()}`);
  });
}

/** Violations that axe finds, as lines. */
async function violations(page) {
  await page.evaluate(AXE);
  const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }));
  return found.violations.map((v) => `${v.id}: ${v.help}; ${v.nodes.slice(0, 3).map((n) => n.html.slice(0, 120)).join(' | ')}`);
}

const shoot = async (page, name) => out && page.screenshot({ path: join(out, `${name}.png`) });

function check(condition, text) {
  if (!condition) throw new Error(text);
}

const tools = { origin, open, drawn, violations, shoot, check };
let passed = 0;
const failed = [];
try {
  const facts = await learn();
  for (const [name, test] of Object.entries(facts.runs ? ofRuns : ofIndexes)) {
    complaints = [];
    const problems = [];
    try {
      await test(tools, facts);
    } catch (error) {
      problems.push(error.message);
    }
    problems.push(...new Set(complaints));
    if (problems.length === 0) passed += 1;
    else failed.push(name);
    console.log(`${problems.length === 0 ? 'ok  ' : 'FAIL'} ${name}`);
    for (const problem of problems) console.log(`       ${problem}`);
    for (const context of browser.browserContexts()) if (context.id) await context.close();
  }
} catch (error) {
  failed.push('start');
  console.log(`FAIL ${error.message}`);
} finally {
  await browser.close();
}
console.log(`${passed} passed, ${failed.length} failed`);
process.exit(failed.length > 0 || passed === 0 ? 1 : 0);

/** What is served: tests hold for any index, so they ask the server what it has. */
async function learn() {
  const get = async (path) => {
    const response = await fetch(origin + path);
    if (!response.ok) throw new Error(`${path} answered ${response.status}`);
    return response.json();
  };
  const indexes = await get('/api/indexes').catch((e) => {
    throw new Error(`${origin} is no sae serve: ${e.message}`);
  });
  if (indexes.length === 0) {
    const runs = await get('/api/runs');
    if (runs.length === 0) throw new Error('no run has begun: there is nothing to test on');
    return { runs };
  }
  const [{ id, manifest }] = indexes;
  const columns = await get(`/api/indexes/${id}/summaries`);
  const alive = columns.n_active.flatMap((n, i) => (n > 0 ? [i] : []));
  // One with a next, and with something to see.
  const feature = alive.find((i) => columns.n_active[i] >= 20 && i + 1 < manifest.d_sae) ?? alive[0];
  if (feature === undefined) throw new Error('every feature is dead: there is nothing to test on');
  return { id, manifest, columns, alive, feature, detail: await get(`/api/indexes/${id}/features/${feature}`) };
}
