// The tests: each is a claim, and gets the tools of run.mjs and what the server said about its index.

const cells = (page, column) =>
  page.$$eval(`.row .c-${column}`, (list) => list.map((cell) => cell.textContent));
const ids = (page) => page.$$eval('.row a', (list) => list.map((a) => Number(a.dataset.feature)));
const path = (page) => new URL(page.url()).pathname;
const query = (page) => new URL(page.url()).searchParams;
const overflow = (page) => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);

/** Types into a filter and waits until the table follows. */
async function filter(page, name, text) {
  await page.type(`.table input[name="${name}"]`, text);
  await page.waitForFunction((n, t) => new URLSearchParams(location.search).get(n) === t, { timeout: 5000 }, name, text);
}

export const tests = {
  'the atlas lists the features with the dictionary\u2019s facts': async ({ open, check, shoot }, { manifest }) => {
    const page = await open('/');
    const rows = await page.$$('.row');
    check(rows.length >= Math.min(10, manifest.d_sae), `only ${rows.length} rows are drawn`);
    check(rows.length < 200, `${rows.length} rows are drawn: the table is not virtual`);
    const count = await page.$eval('.table', (table) => Number(table.getAttribute('aria-rowcount')));
    check(count === manifest.d_sae + 1, `the table says that it has ${count} rows`);
    const intro = await page.$eval('.intro', (e) => e.textContent);
    for (const fact of [manifest.model, manifest.hook]) check(intro.includes(fact), `${fact} is not in the header`);
    await shoot(page, 'atlas-light-1440');
  },

  'scrolling to the end draws the last feature': async ({ open, check }, { manifest }) => {
    const page = await open('/');
    await page.evaluate(() => scrollTo(0, document.documentElement.scrollHeight));
    const last = manifest.d_sae - 1;
    await page.waitForSelector(`.row a[data-feature="${last}"]`, { timeout: 5000 });
    check((await page.$$('.row')).length < 200, 'rows that are out of sight stay drawn');
  },

  'a click on a head sorts, a second one turns the order around': async ({ open, check }, { columns }) => {
    const page = await open('/');
    const expected = columns.max.map((v, i) => [v, i]).sort((a, b) => b[0] - a[0] || a[1] - b[1]).map((p) => p[1]);
    await page.click('.c-max .sort');
    check((await ids(page)).slice(0, 5).join() === expected.slice(0, 5).join(), 'the largest maxima are not first');
    check(query(page).get('sort') === 'max', 'the order is not in the address');
    check(await page.$('.c-max[aria-sort="descending"]'), 'aria-sort does not say so');
    await page.click('.c-max .sort');
    const least = Math.min(...columns.max);
    check(columns.max[(await ids(page))[0]] === least, 'the smallest maximum is not first');
  },

  'a filter keeps what passes, and the address keeps the filter': async ({ open, check }, { columns, manifest }) => {
    const page = await open('/');
    const sizes = columns.n_active.filter((n) => n > 0).sort((a, b) => a - b);
    const bound = sizes[Math.floor(sizes.length / 2)];
    await filter(page, 'active', `>=${bound}`);
    const expected = columns.n_active.filter((n) => n >= bound).length;
    const text = () => page.$eval('[role="status"]', (e) => e.textContent.replaceAll(',', ''));
    check((await text()).startsWith(String(expected)), `${await text()}, where ${expected} are expected`);
    await page.reload();
    await page.waitForSelector('.row');
    check((await text()).startsWith(String(expected)), 'the filter is lost on reloading');
    await page.$$eval('button', (all) => all.find((b) => b.textContent === 'Clear filters').click());
    check((await text()).startsWith(String(manifest.d_sae)), 'clearing does not show every feature');
  },

  'a filter that means nothing is marked and filters nothing': async ({ open, check }, { manifest }) => {
    const page = await open('/');
    await filter(page, 'max', 'lots');
    check(await page.$('input[name="max"][aria-invalid="true"]'), 'the field is not marked');
    const text = await page.$eval('[role="status"]', (e) => e.textContent.replaceAll(',', ''));
    check(text.startsWith(String(manifest.d_sae)), text);
  },

  'a filter that nothing passes says so': async ({ open, check }) => {
    const page = await open('/?active=%3E1e15');
    check((await ids(page)).length === 0, 'there are rows');
    check(await page.$eval('.empty', (e) => !e.hidden), 'nothing says that no feature passes');
  },

  'top tokens are found by their text': async ({ open, check }, { columns }) => {
    const index = columns.texts.findIndex((t) => typeof t === 'string' && /^ ?[a-z]{3,}$/.test(t));
    const word = columns.texts[index].trim();
    const page = await open('/');
    await filter(page, 'tokens', word);
    const holds = (i) => columns.top_tokens[i].some((t) => typeof columns.texts[t] === 'string' && columns.texts[t].toLowerCase().includes(word));
    const found = await ids(page);
    check(found.length > 0 && found.every(holds), `of ${found.join()} some have no token like ${word}`);
  },

  'the search box opens a feature by its number': async ({ open, drawn, check }, { feature }) => {
    const page = await open('/');
    await page.keyboard.press('/');
    check(await page.evaluate(() => document.activeElement.id === 'search-input'), 'the slash key does not search');
    await page.keyboard.type(String(feature));
    await page.waitForSelector('#suggestion-0');
    await page.keyboard.press('Enter');
    await drawn(page, `/feature/${feature}`);
    check((await page.$eval('h1', (e) => e.textContent)).includes(String(feature)), 'another feature is shown');
  },

  'keys go down the table and open a row': async ({ open, drawn, check }) => {
    const page = await open('/');
    const [first, second] = await ids(page);
    await page.keyboard.press('j');
    check(await page.evaluate((f) => document.activeElement.dataset.feature === String(f), first), 'j does not reach the first row');
    await page.keyboard.press('j');
    await page.keyboard.press('ArrowUp');
    await page.keyboard.press('ArrowDown');
    await page.keyboard.press('Enter');
    await drawn(page, `/feature/${second}`);
  },

  'the scatter has a dot under the pointer, and dragging selects': async ({ open, check }) => {
    const page = await open('/?state=alive');
    const box = await (await page.$('.scatter')).boundingBox();
    await page.mouse.move(box.x + 60, box.y + 30);
    await page.mouse.down();
    await page.mouse.move(box.x + box.width - 20, box.y + box.height - 40, { steps: 5 });
    await page.mouse.up();
    check(query(page).get('density')?.includes('..') && query(page).get('max')?.includes('..'), `the address is ${page.url()}`);
    await page.goto(page.url().split('?')[0]);
    await page.waitForSelector('.row');
    let shown = false;
    for (let y = box.y + box.height - 38; !shown && y > box.y; y -= 8) {
      for (let x = box.x + 50; !shown && x < box.x + box.width - 15; x += 12) {
        await page.mouse.move(x, y);
        shown = await page.$eval('#tip', (e) => !e.hidden);
      }
    }
    check(shown, 'no place in the scatter shows a feature');
    check(/Feature \d+/.test(await page.$eval('#tip', (e) => e.textContent)), 'the tooltip does not name a feature');
  },

  'a click on a row opens its feature, Escape goes back to the row': async ({ open, drawn, check, shoot }, { feature }) => {
    const page = await open('/?sort=max&dir=desc');
    const opened = (await ids(page))[2];
    await page.click(`.row a[data-feature="${opened}"]`);
    await drawn(page, `/feature/${opened}`);
    check(query(page).get('sort') === 'max', 'the order of the atlas is not kept');
    await page.keyboard.press('Escape');
    await drawn(page, '/');
    check(query(page).get('sort') === 'max', 'the order of the atlas is lost');
    check(await page.evaluate((f) => document.activeElement.dataset.feature === String(f), opened), 'the row is not focused');
    const shown = await open(`/feature/${feature}`);
    await shoot(shown, 'feature-light-1440');
  },

  'a feature\u2019s page shows its examples, values and neighbours': async ({ open, check }, { feature, detail }) => {
    const page = await open(`/feature/${feature}`);
    check((await page.$$('.example')).length > 0, 'no examples');
    check((await page.$$('.histogram rect')).length > 0, 'no bars');
    check((await page.$$('.neighbours li')).length === detail.neighbours.length, 'neighbours are missing');
    const wanted = Math.min(10, detail.top_logits.length) + Math.min(10, detail.bottom_logits.length);
    check((await page.$$('.bars li')).length === wanted, 'logits are missing');
    const facts = await page.$eval('.facts', (e) => e.textContent);
    for (const label of ['Density', 'Max', 'Active tokens']) check(facts.includes(label), `${label} is missing`);
    if (detail.neighbours.length > 0) {
      const to = detail.neighbours[0].feature;
      await page.click('.neighbours a');
      await page.waitForFunction((n) => location.pathname === `/feature/${n}`, {}, to);
    }
  },

  'j and k, and the arrows, go to the next and the previous feature': async ({ open, drawn, check }, { feature }) => {
    const page = await open(`/feature/${feature}`);
    for (const [key, to] of [['j', feature + 1], ['k', feature], ['ArrowRight', feature + 1], ['ArrowLeft', feature]]) {
      await page.keyboard.press(key);
      await drawn(page, `/feature/${to}`);
      check((await page.$eval('h1', (e) => e.textContent)).endsWith(String(to)), `${key} shows another feature`);
    }
    await page.goBack();
    await drawn(page, `/feature/${feature + 1}`);
    await page.keyboard.press('g');
    await drawn(page, '/');
  },

  'in a sorted list j goes along the list': async ({ open, drawn }, { columns }) => {
    const order = columns.max.map((v, i) => [v, i]).sort((a, b) => b[0] - a[0] || a[1] - b[1]).map((p) => p[1]);
    const page = await open(`/feature/${order[0]}?sort=max&dir=desc`);
    await page.keyboard.press('j');
    await drawn(page, `/feature/${order[1]}`);
  },

  'a token under the pointer, or focused, shows its exact value': async ({ open, check, shoot }, { feature, detail }) => {
    const exact = (v) => String(v).replace('-', '\u2212');
    const strongest = detail.strata[0].examples[0];
    const page = await open(`/feature/${feature}`);
    const tip = () => page.$eval('#tip', (e) => (e.hidden ? '' : e.textContent));
    await page.hover('.example .token.peak');
    check((await tip()).includes(exact(strongest.value)), `hovering shows ${await tip()}, not ${exact(strongest.value)}`);
    await shoot(page, 'tooltip');
    await page.mouse.move(5, 5);
    check((await tip()) === '', 'the tooltip stays');
    await page.focus('.example .token.peak');
    check((await tip()).includes(exact(strongest.value)), `focusing shows ${await tip()}`);
    const described = await page.evaluate(() => document.activeElement.getAttribute('aria-describedby'));
    check(described === 'tip', 'the tooltip does not describe the token');
    const before = path(page);
    await page.keyboard.press('ArrowRight');
    await page.keyboard.press('Escape');
    check((await tip()) === '' && path(page) === before, 'Escape does not just close the tooltip');
  },

  'strata and widths are chosen by click and key, and kept in the address': async ({ open, check }, { feature, detail }) => {
    const page = await open(`/feature/${feature}`);
    const tabs = await page.$$eval('[role="tab"]', (list) => list.map((t) => t.id.replace('tab-', '')));
    check(tabs[0] === 'top' && tabs.length >= 2, `tabs: ${tabs}`);
    const numbers = tabs.slice(1).map((t) => Number(t.slice(1)));
    check(numbers.every((n, i) => i === 0 || n < numbers[i - 1]), 'quantiles do not go from high to low');
    await page.click(`#tab-${tabs[1]}`);
    check(query(page).get('stratum') === tabs[1], 'the stratum is not in the address');
    const expected = detail.strata.find((s) => s.stratum === tabs[1]).examples.length;
    check((await page.$$('.example')).length === expected, 'the examples are not those of the stratum');
    await page.keyboard.press('ArrowLeft');
    check(query(page).get('stratum') === null, 'the arrow key does not move along the tabs');
    const near = await page.$eval('.examples', (e) => e.textContent.length);
    await page.click('.segments input[value="whole"]');
    check(query(page).get('width') === 'whole', 'the width is not in the address');
    check((await page.$eval('.examples', (e) => e.textContent.length)) >= near, 'the whole context is shorter than a window');
  },

  'signed codes show both poles': async ({ open, check }, { manifest, columns }) => {
    if (!manifest.signed) return check(true);
    const both = columns.max.findIndex((v, i) => v > 0 && columns.min[i] < 0);
    if (both < 0) return check(true);
    const page = await open(`/feature/${both}`);
    check((await page.$$('.poles section .example')).length > 1, 'the poles are not side by side');
    check((await page.$('.histogram .bar-neg')) && (await page.$('.histogram .bar-pos')), 'the histogram has one pole');
  },

  'the help opens by its key and closes': async ({ open, check }, { feature }) => {
    for (const at of ['/', `/feature/${feature}`]) {
      const page = await open(at);
      await page.keyboard.press('?');
      check(await page.$eval('#help', (e) => e.open), 'the question mark does not open it');
      await page.keyboard.press('Escape');
      check(!(await page.$eval('#help', (e) => e.open)), 'Escape does not close it');
      check(path(page) === at, 'Escape does more than that');
    }
  },

  'the theme follows the system, the key, and the choice after reloading': async ({ open, check, shoot }, { feature }) => {
    const paper = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const light = await paper(await open('/'));
    const page = await open('/', { theme: 'dark' });
    const dark = await paper(page);
    check(light !== dark, 'the system\u2019s theme makes no difference');
    await shoot(page, 'atlas-dark-1440');
    await page.keyboard.press('t');
    check((await paper(page)) === light, 't does not switch');
    await page.reload();
    await page.waitForSelector('.row');
    check((await paper(page)) === light, 'the choice is lost');
    await shoot(await open(`/feature/${feature}`, { theme: 'dark' }), 'feature-dark-1440');
  },

  'a feature or page that does not exist is a kind page with status 404': async ({ open, check, origin }, { manifest }) => {
    for (const at of [`/feature/${manifest.d_sae}`, '/feature/abc', '/nowhere']) {
      check((await fetch(origin + at)).status === 404, `${at} is no 404`);
      const page = await open(at, { expected: ['404'] });
      check(await page.$('.missing a'), `${at} shows no way back`);
    }
  },

  'a dead feature says that it is dead': async ({ open, check }, { columns }) => {
    const dead = columns.n_active.indexOf(0);
    if (dead < 0) return check(true);
    const page = await open(`/feature/${dead}`);
    check((await page.$eval('.feature', (e) => e.textContent)).includes('never active'), 'nothing says so');
  },

  'a server that is gone is said in words': async ({ open, check }, { feature }) => {
    const page = await open(`/feature/${feature}`, { expected: ['Failed to load', 'ERR_'] });
    await page.setOfflineMode(true);
    await page.evaluate(() => {
      history.pushState(null, '', '/feature/0?sort=max');
      dispatchEvent(new PopStateEvent('popstate'));
    });
    await page.waitForFunction(() => document.querySelector('.missing, .feature h1'), { timeout: 10_000 });
    await page.waitForFunction(() => document.querySelector('.missing') || document.querySelector('h1').textContent.endsWith(' 0'));
    check((await page.$eval('main', (e) => e.textContent)).length > 20, 'the page is empty');
  },

  'no width from a phone to a desk scrolls sideways': async ({ open, check, shoot }, { feature }) => {
    for (const width of [390, 820, 1440]) {
      for (const [name, at] of [['atlas', '/'], ['feature', `/feature/${feature}?width=whole`]]) {
        for (const theme of ['light', 'dark']) {
          const page = await open(at, { width, height: width < 500 ? 844 : 900, theme });
          const beyond = await overflow(page);
          check(beyond <= 0, `${name} at ${width}: ${beyond} pixels too wide`);
          if (width < 1000) await shoot(page, `${name}-${theme}-${width}`);
          await page.close();
        }
      }
    }
  },

  'a phone sorts and filters too': async ({ open, check }) => {
    const page = await open('/', { width: 390, height: 844 });
    await page.click('.only-narrow');
    await page.waitForSelector('.table input[name="mean"]', { visible: true });
    await filter(page, 'mean', '>0');
    check((await overflow(page)) <= 0, 'the filters are too wide');
  },

  'axe finds nothing to complain of': async ({ open, check, violations }, { feature, columns }) => {
    const places = ['/', '/?sort=max&dir=desc&tokens=a', `/feature/${feature}`, `/feature/${feature}?width=whole&stratum=q0`];
    const dead = columns.n_active.indexOf(0);
    if (dead >= 0) places.push(`/feature/${dead}`);
    for (const at of places) {
      for (const [width, theme] of [[1440, 'light'], [1440, 'dark'], [390, 'light']]) {
        // axe itself sets styles that the policy forbids; the page under test is the same.
        const page = await open(at, { width, theme, bypass: true });
        const found = await violations(page);
        check(found.length === 0, `${at}, ${theme}, ${width}: ${found.join('\n       ')}`);
        await page.close();
      }
    }
    const page = await open('/', { bypass: true });
    await page.keyboard.press('?');
    const found = await violations(page);
    check(found.length === 0, `help: ${found.join('\n       ')}`);
  },
};
