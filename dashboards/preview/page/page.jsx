// A dashboard of window.answers, drawn by Grafana's components in its dark theme.
import './fonts.css';
import { createTheme, dateTimeFormat, locationUtil, ThemeContext } from '@grafana/data';
import { initPluginTranslations } from '@grafana/i18n';
import { GlobalStyles, PanelChrome, PortalContainer } from '@grafana/ui';
import { createRoot } from 'react-dom/client';
import { dataOf } from './data.js';
import { KINDS } from './panels.jsx';

const CELL = 30;
const GAP = 8;
const MARGIN = 16;
const HEAD = 96;
const theme = createTheme({ colors: { mode: 'dark' } });

locationUtil.initialize({
  config: { appSubUrl: '' }, getTimeRangeForUrl: () => ({}), getVariablesUrlParams: () => ({}),
});

function place({ x, y, w, h }, width) {
  const column = (width - 2 * MARGIN + GAP) / 24;
  return {
    left: MARGIN + x * column, top: HEAD + y * (CELL + GAP),
    width: w * column - GAP, height: h * (CELL + GAP) - GAP,
  };
}

function Head({ answers }) {
  const at = (ms) => dateTimeFormat(ms, { timeZone: 'utc', format: 'YYYY-MM-DD HH:mm:ss' });
  const box = { background: theme.colors.background.secondary, padding: '6px 10px' };
  return (
    <div style={{ padding: MARGIN, width: window.innerWidth - 2 * MARGIN, color: theme.colors.text.primary }}>
      <div style={{ display: 'flex', justifyContent: 'space-between', fontSize: 18 }}>
        <span>{answers.dashboard.title}</span>
        <span style={{ fontSize: 13, color: theme.colors.text.secondary }}>
          {at(answers.from)} to {at(answers.to)} UTC
        </span>
      </div>
      <div style={{ display: 'flex', gap: 8, marginTop: 8, fontSize: 12 }}>
        {answers.dashboard.templating.list.filter(({ name }) => answers.shown[name]).map((one) => (
          <span key={one.name} style={box}>
            <b style={{ fontWeight: 500 }}>{one.label}</b>
            <span style={{ marginLeft: 12, color: theme.colors.text.secondary }}>
              {answers.shown[one.name]}
            </span>
          </span>
        ))}
      </div>
    </div>
  );
}

function Panel({ panel, frames, answers, width }) {
  const { left, top, ...size } = place(panel.gridPos, width);
  const Kind = KINDS[panel.type];
  return (
    <div style={{ position: 'absolute', left, top, width: size.width, height: size.height }}>
      <PanelChrome title={panel.title} description={panel.description || undefined} {...size}>
        {(w, h) => (
          <Kind panel={panel} frames={frames} answers={answers} width={w} height={h} theme={theme} />
        )}
      </PanelChrome>
    </div>
  );
}

async function draw(answers) {
  // It is the moment of the answers: what was seconds ago then is not minutes ago.
  Date.now = () => answers.to;
  await initPluginTranslations('preview', []);
  await document.fonts.load('14px Inter');
  await document.fonts.load('500 14px Inter');
  const { panels } = answers.dashboard;
  const frames = await Promise.all(panels.map((panel) => dataOf(panel, answers, { theme })));
  const rows = Math.max(...panels.map(({ gridPos }) => gridPos.y + gridPos.h));
  const width = window.innerWidth;
  document.body.style.height = `${HEAD + rows * (CELL + GAP) + MARGIN - GAP}px`;
  createRoot(document.getElementById('page')).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <Head answers={answers} />
      {panels.map((panel, at) => (
        <Panel key={panel.id} panel={panel} frames={frames[at]} answers={answers} width={width} />
      ))}
      <PortalContainer />
    </ThemeContext.Provider>,
  );
}

draw(window.answers);
