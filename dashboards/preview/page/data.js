// From Prometheus' answers to what a panel is given: frames, transformed, with every option
// of the panel's JSON applied by Grafana's own code.
import {
  applyFieldOverrides, booleanOverrideProcessor, createDataFrame, dataLinksOverrideProcessor,
  displayNameOverrideProcessor, FieldColorModeId, FieldConfigOptionsRegistry, FieldType,
  identityOverrideProcessor, numberOverrideProcessor, standardTransformers,
  standardTransformersRegistry, stringOverrideProcessor, thresholdsOverrideProcessor,
  transformDataFrame, unitOverrideProcessor, valueMappingsOverrideProcessor,
} from '@grafana/data';
import { firstValueFrom } from 'rxjs';

standardTransformersRegistry.setInit(() =>
  // Some stand there under two names.
  [...new Map(Object.values(standardTransformers).map((one) => [one.id, one])).values()].map(
    (one) => ({ id: one.id, name: one.name, transformation: () => Promise.resolve(one) }),
  ),
);

const NAMED = (labels, format) =>
  format.replace(/{{\s*(\w+)\s*}}/g, (_, label) => labels[label] ?? '');

// As Prometheus' data source of Grafana does it: one frame a series, its legend as the name;
// with format table one frame of all, each label a column.
function framesOf(target, answer, step, count) {
  if (target.format === 'table') {
    const labels = [...new Set(answer.flatMap((one) => Object.keys(one.metric)))].sort();
    const value = count > 1 ? `Value #${target.refId}` : 'Value';
    return [createDataFrame({
      refId: target.refId,
      fields: [
        { name: 'Time', type: FieldType.time, values: answer.map((one) => one.value[0] * 1000) },
        ...labels.map((name) => ({
          name, type: FieldType.string, values: answer.map((one) => one.metric[name] ?? ''),
          config: { filterable: true },
        })),
        { name: value, type: FieldType.number, values: answer.map((one) => +one.value[1]) },
      ],
    })];
  }
  return answer.map((one) => {
    const points = one.values ?? [one.value];
    const { __name__: metric, ...labels } = one.metric;
    const name = target.legendFormat ? NAMED(one.metric, target.legendFormat) : undefined;
    return createDataFrame({
      refId: target.refId,
      name,
      fields: [
        {
          name: 'Time', type: FieldType.time, values: points.map(([at]) => at * 1000),
          config: one.values ? { interval: step } : {},
        },
        {
          name: 'Value', type: FieldType.number, labels,
          values: points.map(([, value]) => +value),
          config: name ? { displayNameFromDS: name } : {},
        },
      ],
    });
  });
}

const OPTION = (id, process, more = {}) => ({
  id, path: id, name: id, process, shouldApply: () => true, override: () => null,
  editor: () => null, ...more,
});

// Grafana's server page makes this list; @grafana/data has what each entry does.
const REGISTRY = new FieldConfigOptionsRegistry(() => [
  OPTION('displayName', displayNameOverrideProcessor),
  OPTION('unit', unitOverrideProcessor),
  OPTION('min', numberOverrideProcessor),
  OPTION('max', numberOverrideProcessor),
  OPTION('decimals', numberOverrideProcessor),
  OPTION('thresholds', thresholdsOverrideProcessor),
  OPTION('mappings', valueMappingsOverrideProcessor),
  OPTION('noValue', stringOverrideProcessor),
  OPTION('links', dataLinksOverrideProcessor),
  OPTION('color', identityOverrideProcessor),
  OPTION('filterable', booleanOverrideProcessor),
  ...['width', 'minWidth', 'align', 'cellOptions', 'wrapText', 'filterable', 'inspect', 'hideFrom',
    'lineWidth', 'fillOpacity', 'stacking', 'lineStyle', 'showPoints', 'axisPlacement',
    'axisSoftMax'].map((id) =>
    OPTION(`custom.${id}`, identityOverrideProcessor, { path: id, isCustom: true })),
]);

// What a time series' lines are where its panel does not say.
const LINES = {
  drawStyle: 'line', lineInterpolation: 'linear', lineWidth: 1, fillOpacity: 0,
  gradientMode: 'none', barAlignment: 0, showPoints: 'auto', pointSize: 5, spanNulls: false,
  axisPlacement: 'auto', axisLabel: '', axisColorMode: 'text', axisBorderShow: false,
  axisCenteredZero: false, scaleDistribution: { type: 'linear' },
  stacking: { mode: 'none', group: 'A' }, thresholdsStyle: { mode: 'off' },
  hideFrom: { tooltip: false, viz: false, legend: false },
};

// Only links have variables in them, and in a picture nobody follows one.
export const replaceVariables = (text) => text;

export async function dataOf(panel, answers, context) {
  const asked = panel.targets.flatMap((target) =>
    framesOf(target, answers.panels[panel.id][target.refId], answers.step, panel.targets.length));
  const transformed = await firstValueFrom(transformDataFrame(panel.transformations ?? [], asked));
  const { defaults, overrides } = panel.fieldConfig;
  const custom = panel.type === 'timeseries' ? { ...LINES, ...defaults.custom } : defaults.custom;
  return applyFieldOverrides({
    data: transformed,
    fieldConfig: {
      defaults: { color: { mode: FieldColorModeId.PaletteClassic }, ...defaults, custom },
      overrides,
    },
    replaceVariables,
    fieldConfigRegistry: REGISTRY,
    theme: context.theme,
    timeZone: 'utc',
  });
}
