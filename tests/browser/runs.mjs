// The tests of training runs: each is a claim, and gets the tools of run.mjs and the list of runs that are served.

const overflow = (page) => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
const address = (runs) => (runs.length === 1 ? '/' : `/run/${runs[0].id}`);

export const tests = {
  'a run\u2019s page says what it is and how far, and draws every part of the loss': async ({ open, check, shoot, origin }, { runs }) => {
    const page = await open(address(runs));
    const [run] = runs;
    const text = await page.$eval('main', (e) => e.textContent);
    for (const fact of [run.name, run.config['sae.d_sae'], run.step.toLocaleString('en-US')]) check(text.includes(fact), `${fact} is not on the page`);
    const { metrics } = await (await fetch(`${origin}/api/runs/${run.id}`)).json();
    const parts = Object.keys(metrics.lines.at(-1).parts);
    const titles = await page.$$eval('.chart h2', (list) => list.map((e) => e.textContent));
    for (const title of [...parts, 'variance unexplained', 'L0', 'Dead latents', 'Learning rate', 'Density']) {
      check(titles.some((one) => one.includes(title)), `no chart of ${title} among ${titles}`);
    }
    check((await page.$$('.plot .line')).length >= 5, 'lines are missing');
    const bars = await page.$$('.density rect');
    check(bars.length > 2, `the histogram of densities has ${bars.length} bars`);
    await shoot(page, 'run-light-1440');
  },

  'the slider shows the densities of earlier evaluations': async ({ open, check }, { runs }) => {
    const page = await open(address(runs));
    const said = () => page.$eval('.density + p', (e) => e.textContent);
    const newest = await said();
    await page.focus('.chart input[type="range"]');
    await page.keyboard.press('Home');
    const first = await said();
    check(first !== newest && first.startsWith('Step '), `${newest} and ${first} are the same`);
    await page.keyboard.press('End');
    check((await said()) === newest, 'the newest does not come back');
  },

  'a chart says its values under the pointer': async ({ open, check }, { runs }) => {
    const page = await open(address(runs));
    const plot = await page.$('.plot');
    await plot.hover();
    const tip = await page.$eval('#tip', (e) => (e.hidden ? '' : e.textContent));
    check(/^step [\d,]+/.test(tip), `the tip says ${tip}`);
  },

  'a run is whole in dark and light, on wide and narrow screens, without violations': async ({ open, check, shoot, violations }, { runs }) => {
    for (const [width, theme] of [[1440, 'dark'], [1440, 'light'], [390, 'light'], [390, 'dark']]) {
      const page = await open(address(runs), { width, height: width < 500 ? 844 : 900, theme, bypass: true });
      check((await overflow(page)) <= 0, `at ${width} the page is wider than the screen`);
      const found = await violations(page);
      check(found.length === 0, `${theme} ${width}: ${found.join('\n       ')}`);
      await shoot(page, `run-${theme}-${width}`);
    }
  },

  'a list of several runs leads to each of them and back': async ({ open, check, drawn, shoot, violations }, { runs }) => {
    if (runs.length < 2) return;
    const page = await open('/', { bypass: true });
    const names = await page.$$eval('.runs tbody th', (list) => list.map((e) => e.textContent));
    check(names.join() === runs.map((r) => r.name).join(), `the list has ${names}`);
    check((await violations(page)).length === 0, (await violations(page)).join());
    await shoot(page, 'runs-light-1440');
    await page.click(`.runs a[href="/run/${runs[1].id}"]`);
    await drawn(page, `/run/${runs[1].id}`);
    check((await page.$eval('h1', (e) => e.textContent)) === runs[1].name, 'another run was opened');
    await page.goBack();
    await drawn(page, '/');
    const narrow = await open('/', { width: 390, height: 844, theme: 'dark' });
    check((await overflow(narrow)) <= 0, 'the list is wider than a narrow screen');
    await shoot(narrow, 'runs-dark-390');
  },

  'an address without a run says so kindly': async ({ open, check }) => {
    const page = await open('/run/no-such-run', { expected: ['404'] });
    check((await page.$eval('h1', (e) => e.textContent)) === 'There is no such run', 'it does not say so');
  },
};
