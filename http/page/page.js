// The page asks its own node, GET /info every few seconds and GET /events as they come, and draws what
// it is told. Text from the node is only ever set as text.
'use strict';

const $ = id => document.getElementById(id);
const state = {
  token: sessionStorage.getItem('token') || '',
  info: null,
  shown: 100,          // rows of databases
  lag: new Map(),      // series by name: samples, oldest first
  transactions: [],    // times of the latest events of transactions
};

const samplePeriod = 2000; // ms
const maxSamples = 150;
const maxEvents = 200;
const colours = 5;

// ask sends a request to the node. It throws an Error with the node's reason.
async function ask(path, options = {}) {
  const headers = state.token ? { Authorization: 'Bearer ' + state.token } : {};
  const answer = await fetch(path, { ...options, headers, cache: 'no-store' });
  if (!answer.ok) {
    const failure = new Error((await answer.text()).trim() || answer.statusText);
    failure.status = answer.status;
    throw failure;
  }
  return answer;
}

function element(tag, text, className) {
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text;
  if (className) e.className = className;
  return e;
}

function row(...cells) {
  const tr = element('tr');
  for (const cell of cells) {
    const td = element('td', undefined, cell.className);
    if (cell.node) td.append(cell.node); else td.textContent = cell.text;
    tr.append(td);
  }
  return tr;
}

const cell = (text, className) => ({ text: String(text), className });

function notice(text, good) {
  $('notice').textContent = text;
  $('notice').className = good ? 'good' : '';
  $('notice').hidden = !text;
}

function size(bytes) {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let i = 0;
  while (bytes >= 1000 && i < units.length - 1) { bytes /= 1000; i++; }
  return (i ? bytes.toFixed(1) : bytes) + ' ' + units[i];
}

const decimal = hex => BigInt('0x' + (hex || '0')).toString();

function ago(time) {
  const s = Math.max(0, Math.round((Date.now() - new Date(time)) / 1000));
  return s < 2 ? 'now' : s < 120 ? s + ' s ago' : Math.round(s / 60) + ' min ago';
}

function behind(replica) {
  return replica.databases.reduce((sum, db) => sum + db.lagTransactions, 0);
}

// --- drawing ---

function draw() {
  const info = state.info;
  $('main').hidden = false;
  $('login').hidden = true;
  $('role').textContent = info.roleState === 'draining' ? 'draining' : info.role;
  $('role').className = 'badge ' + info.role;
  document.title = 'litefs ' + info.role;
  drawFacts(info);
  drawNodes(info);
  drawDatabases(info);
  drawLag(info);
}

function drawFacts(info) {
  const facts = [
    ['Node', info.nodeID], ['Cluster', info.clusterID || 'not met yet'], ['Epoch', info.epoch],
    ['Mount', info.mount || 'none'], ['I/O', info.passthrough ? 'passthrough' : 'cached'],
  ];
  if (info.role !== 'primary') {
    facts.push(['Lag', info.lagMillis === null ? 'never caught up' : info.lagMillis + ' ms']);
  }
  if (info.inSync) facts.push(['In sync', info.inSync.join(' ') || 'no replica']);
  if (info.roleReason) facts.push(['No candidate', info.roleReason]);
  $('node').replaceChildren(...facts.map(([name, value]) => {
    const div = element('div');
    div.append(element('dt', name), element('dd', value));
    return div;
  }));
}

function drawNodes(info) {
  const rows = [row(cell(info.nodeID, 'mono'), cell(info.role + ' (this node)'), cell(location.host),
    cell(info.role === 'primary' ? '' : info.lagMillis === null ? 'never caught up' : info.lagMillis + ' ms', 'n'),
    cell(info.databases.length, 'n'), cell(''), cell(''))];
  if (info.role !== 'primary' && info.primaryURL) {
    const link = element('a', info.primaryURL);
    link.href = info.primaryURL;
    rows.push(row(cell(info.hostname || 'primary'), cell('primary'), { node: link }, cell('', 'n'), cell('', 'n'), cell(''), cell('')));
  }
  // A node that was the primary knows who followed it then; where they are now is their primary's to say.
  const replicas = info.role === 'primary' ? info.replicas || [] : [];
  for (const r of replicas) {
    rows.push(row(cell(r.nodeID, 'mono'), replicaCell(info, r), cell(r.remote),
      cell(behind(r) + ' tx', 'n'), cell(r.databases.length, 'n'), cell(ago(r.contact)),
      info.roleState && r.connected ? { node: handOverButton(r.nodeID) } : cell('')));
  }
  replaceRows($('nodes'), rows);
}

// replicaCell says what commits at level quorum make of the replica, too: inSync have every acknowledged
// transaction, waitedFor are waited for.
function replicaCell(info, r) {
  const words = ['replica'];
  if (!r.connected) words.push('away');
  const waited = (info.waitedFor || []).includes(r.nodeID);
  if ((info.inSync || []).includes(r.nodeID)) words.push('in sync');
  else if (waited) words.push('waited for');
  return cell(words.join(', '), r.connected ? '' : 'warn');
}

// replaceRows keeps the focus on the button that has it: rows are drawn anew every few seconds.
function replaceRows(table, rows) {
  const focused = document.activeElement && document.activeElement.dataset.node;
  table.tBodies[0].replaceChildren(...rows);
  if (focused) {
    const again = [...table.querySelectorAll('button')].find(b => b.dataset.node === focused);
    if (again) again.focus();
  }
}

function drawDatabases(info) {
  const word = $('filter').value.toLowerCase();
  const failed = (info.failed || []).map(f => ({ name: f.name, error: 'set aside: ' + f.error }));
  const all = failed.concat(info.databases).filter(db => db.name.toLowerCase().includes(word));
  $('db-count').textContent = all.length === info.databases.length ? all.length : all.length + ' of ' + (info.databases.length + failed.length);
  $('dbs').tBodies[0].replaceChildren(...all.slice(0, state.shown).map(db => row(
    cell(db.name), cell(db.txid ? decimal(db.txid) : '', 'n'), cell(db.checksum || '', 'mono'),
    cell(db.pages ? size(db.pages * db.pageSize) : '', 'n'), cell(db.walBytes ? size(db.walBytes) : '', 'n'),
    cell(db.logEntries ? db.logEntries + ' / ' + size(db.logBytes) : '', 'n'), levelCell(db), stateCell(db))));
  $('more').hidden = all.length <= state.shown;
}

function levelCell(db) {
  if (db.levelPending) return cell(db.level + ', pending', 'warn');
  return cell((db.level || '') + (db.levelSet ? ', set here' : ''));
}

function stateCell(db) {
  if (db.error) return cell(db.error, 'bad');
  if (db.repairing) return cell('repairing: ' + db.repairing, 'warn');
  if (db.loadSize) return cell('first copy: ' + Math.floor(100 * db.loadBytes / db.loadSize) + ' %', 'warn');
  if (db.writersHeld) return cell('writers wait: no replica is close enough', 'warn');
  if (db.waiting) return cell('waits for readers of the WAL', 'warn');
  return cell('ok');
}

function sampleLag(info) {
  const now = new Map();
  if (info.role === 'primary') {
    for (const r of info.replicas || []) if (r.connected) now.set(r.nodeID, behind(r));
  } else if (info.lagMillis !== null) {
    now.set(info.nodeID, info.lagMillis);
  }
  for (const name of now.keys()) if (!state.lag.has(name)) state.lag.set(name, []);
  for (const [name, samples] of state.lag) {
    samples.push(now.has(name) ? now.get(name) : null);
    if (samples.length > maxSamples) samples.shift();
    if (samples.every(v => v === null)) state.lag.delete(name);
  }
}

function drawLag(info) {
  const unit = info.role === 'primary' ? 'tx' : 'ms';
  const top = Math.max(1, ...[...state.lag.values()].flat().filter(v => v !== null));
  $('lag-unit').textContent = '(' + (unit === 'tx' ? 'transactions behind' : 'milliseconds') + ', last ' + maxSamples * samplePeriod / 60000 + ' minutes, top ' + top + ')';
  const lines = [], keys = [];
  let i = 0;
  for (const [name, samples] of state.lag) {
    const line = document.createElementNS('http://www.w3.org/2000/svg', 'polyline');
    line.setAttribute('class', 'c' + i % colours);
    line.setAttribute('points', samples.map((v, k) => v === null ? '' :
      (600 - (samples.length - 1 - k) * 600 / (maxSamples - 1)).toFixed(1) + ',' + (116 - 108 * v / top).toFixed(1)).join(' '));
    lines.push(line);
    const key = element('span');
    key.append(element('span', '', 'key c' + i % colours), name + ': ' + (samples.at(-1) === null ? 'away' : samples.at(-1) + ' ' + unit));
    keys.push(key);
    i++;
  }
  $('lag').replaceChildren(...lines);
  $('lag-now').replaceChildren(...(keys.length ? keys : [element('span', 'No replica is connected.')]));
}

function addEvent(e) {
  let text = e.type;
  if (e.type === 'tx') {
    state.transactions.push(Date.now());
    text = e.db + ' ' + decimal(e.data.txID) + ' (' + e.data.commit + ' pages)';
  } else {
    text = e.data.isPrimary ? 'this node is the primary' : e.data.hostname ? e.data.hostname + ' is the primary' : 'no primary is known';
  }
  const item = element('li', new Date(e.data.timestamp || Date.now()).toLocaleTimeString() + '  ' + text);
  $('events').prepend(item);
  while ($('events').children.length > maxEvents) $('events').lastChild.remove();
}

function drawRate() {
  const from = Date.now() - 10000;
  state.transactions = state.transactions.filter(t => t > from);
  $('rate').textContent = state.transactions.length ? (state.transactions.length / 10).toFixed(1) + ' entries/s' : '';
}

// --- hand-over ---

function handOverButton(node) {
  const button = element('button', 'Hand over');
  button.type = 'button';
  button.dataset.node = node;
  button.setAttribute('aria-label', 'Hand the primary role over to ' + node);
  button.addEventListener('click', () => confirmHandOver(node));
  return button;
}

function confirmHandOver(node) {
  $('confirm-text').textContent = 'Node ' + node + ' becomes the primary. Writers wait for a moment; nothing is lost.';
  const dialog = $('confirm');
  dialog.returnValue = 'no';
  dialog.onclose = () => { if (dialog.returnValue === 'yes') handOver(node); };
  dialog.showModal();
}

async function handOver(node) {
  try {
    await ask('demote?to=' + encodeURIComponent(node), { method: 'POST' });
    notice('Node ' + node + ' is the primary.', true);
  } catch (e) {
    notice('No hand-over: ' + e.message);
  }
  refresh();
}

// --- asking ---

async function refresh() {
  try {
    const info = await (await ask('info')).json();
    if (!state.info || (state.info.role === 'primary') !== (info.role === 'primary')) state.lag.clear();
    state.info = info;
    if ($('notice').dataset.lost) { notice(''); delete $('notice').dataset.lost; }
    return true;
  } catch (e) {
    if (e.status === 401) {
      $('login').hidden = false;
      $('main').hidden = true;
      if (state.token) notice('This is not a token of the node.');
      state.token = '';
      return false;
    }
    notice('The node does not answer: ' + e.message);
    $('notice').dataset.lost = '1';
    return true;
  }
}

async function poll() {
  const begun = Date.now();
  const goOn = await refresh();
  if (goOn && state.info) {
    sampleLag(state.info);
    draw();
    drawRate();
  }
  if (goOn) setTimeout(poll, Math.max(samplePeriod, 5 * (Date.now() - begun)));
}

async function listen() {
  for (;;) {
    try {
      const reader = (await ask('events')).body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = '';
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const lines = (rest + value).split('\n');
        rest = lines.pop();
        for (const line of lines) if (line) addEvent(JSON.parse(line));
      }
    } catch (e) {
      if (e.status === 401) return;
    }
    await new Promise(resolve => setTimeout(resolve, samplePeriod));
  }
}

$('filter').addEventListener('input', () => { state.shown = 100; if (state.info) drawDatabases(state.info); });
$('more').addEventListener('click', () => { state.shown += 200; drawDatabases(state.info); });
$('login').addEventListener('submit', event => {
  event.preventDefault();
  state.token = $('token').value.trim();
  sessionStorage.setItem('token', state.token);
  $('token').value = '';
  notice('');
  poll();
  listen();
});

poll();
listen();
