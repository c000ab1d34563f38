// Each kind of panel by Grafana's component of that kind.
import {
  cacheFieldDisplayNames, dateTime, getDisplayValueAlignmentFactors, getFieldDisplayValues,
} from '@grafana/data';
import { BigValue, TimeSeries, VizRepeater } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { Canvas } from './canvas.jsx';
import { replaceVariables } from './data.js';

function Stat({ panel, frames, width, height, theme }) {
  const { options, fieldConfig } = panel;
  const values = () => getFieldDisplayValues({
    fieldConfig, reduceOptions: options.reduceOptions, replaceVariables, theme, data: frames,
    sparkline: options.graphMode !== 'none', timeZone: 'utc',
  });
  return (
    <VizRepeater
      getValues={values}
      getAlignmentFactors={(found) => getDisplayValueAlignmentFactors(found)}
      renderValue={({ value, alignmentFactors, width: w, height: h, count }) => (
        <BigValue
          value={value.display} count={count} sparkline={value.sparkline} width={w} height={h}
          colorMode={options.colorMode} graphMode={options.graphMode} theme={theme}
          justifyMode={options.justifyMode} textMode={options.textMode}
          alignmentFactors={alignmentFactors} disableWideLayout={!options.wideLayout}
        />
      )}
      width={width} height={height} source={frames} itemSpacing={3} renderCounter={0} autoGrid
      orientation={options.orientation}
    />
  );
}

// Marks are drawn by Grafana's server page, not by its package: dashed lines, as there.
function mark(builder, times, theme) {
  builder.addHook('draw', (plot) => {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = theme.visualization.getColorByName('purple');
    ctx.setLineDash([5, 5]);
    ctx.lineWidth = 2;
    for (const time of times) {
      const x = plot.valToPos(time, 'x', true);
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  });
}

// The first moment of each run of points: where a change was seen first.
function beginnings(answers) {
  const times = answers.marks.flat().flatMap(({ values }) => values.map(([at]) => at * 1000));
  const sorted = [...new Set(times)].sort((a, b) => a - b);
  return sorted.filter((at, i) => i === 0 || at - sorted[i - 1] > 2 * answers.step);
}

function Lines({ panel, frames, width, height, theme, answers }) {
  if (!frames.length) return <Empty panel={panel} />;
  const range = { from: dateTime(answers.from), to: dateTime(answers.to) };
  return (
    <TimeSeries
      frames={frames} width={width} height={height} theme={theme} timeZone="utc"
      timeRange={{ ...range, raw: range }} legend={panel.options.legend} options={panel.options}
      structureRev={1}
    >
      {(builder) => { mark(builder, beginnings(answers), theme); return null; }}
    </TimeSeries>
  );
}

function Rows({ panel, frames, width, height }) {
  const { options } = panel;
  if (!frames.length || !frames[0].length) return <Empty panel={panel} />;
  cacheFieldDisplayNames(frames);
  return (
    <TableNG
      data={frames[options.frameIndex ?? 0]} width={width} height={height}
      noHeader={!options.showHeader} cellHeight={options.cellHeight} sortBy={options.sortBy}
      fieldConfig={panel.fieldConfig} enableVirtualization={false} structureRev={1}
    />
  );
}

const Empty = ({ panel }) => (
  <div style={{ height: '100%', display: 'grid', placeItems: 'center' }}>
    {panel.fieldConfig.defaults.noValue ?? 'No data'}
  </div>
);

export const KINDS = { canvas: Canvas, stat: Stat, table: Rows, timeseries: Lines };
