// The canvas panel is part of Grafana's server and in no package: this draws its elements
// where their placement says, with their fields' own texts and colours.
import { formattedValueToString, getFieldDisplayName } from '@grafana/data';

function fieldOf(frames, name) {
  for (const frame of frames) {
    const found = frame.fields.find((field) => getFieldDisplayName(field, frame, frames) === name);
    if (found) return found;
  }
  return undefined;
}

function shown(element, frames, theme) {
  const { text, color } = element.config ?? {};
  const plain = theme.visualization.getColorByName(color?.fixed ?? 'text');
  if (text?.mode !== 'field') return { text: text?.fixed ?? '', color: plain };
  const field = fieldOf(frames, text.field);
  if (!field) return { text: 'Field not found', color: plain };
  const value = field.display(field.values[field.values.length - 1]);
  return { text: formattedValueToString(value), color: color.field ? value.color : plain };
}

function Element({ element, frames, theme }) {
  const { left, top, width, height } = element.placement;
  const { text, color } = shown(element, frames, theme);
  const name = (one) => theme.visualization.getColorByName(one?.color?.fixed ?? 'transparent');
  const { align, valign, size } = element.config ?? {};
  return (
    <div style={{
      position: 'absolute', left, top, width, height, background: name(element.background),
      border: `${element.border?.width ?? 0}px solid ${name(element.border)}`,
    }}>
      <div style={{ position: 'absolute', width: '100%', height: '100%', display: 'table' }}>
        <span style={{
          display: 'table-cell', textAlign: align, verticalAlign: valign, fontSize: size, color,
        }}>{text}</span>
      </div>
    </div>
  );
}

// (0, 0) is an element's middle, (1, 1) its upper right corner.
const corner = ({ placement: { left, top, width, height } }, { x, y }) =>
  [left + (width * (1 + x)) / 2, top + (height * (1 - y)) / 2];

function Ways({ elements, theme }) {
  const byName = Object.fromEntries(elements.map((one) => [one.name, one]));
  const ways = elements.flatMap((from) => (from.connections ?? []).map((way) => ({ from, way })));
  return (
    <svg style={{ position: 'absolute', overflow: 'visible', left: 0, top: 0, width: 1, height: 1 }}>
      <defs>
        <marker id="head" viewBox="0 0 10 10" refX="10" refY="5" markerWidth="8" markerHeight="8"
          markerUnits="userSpaceOnUse" orient="auto">
          <path d="M 0 0 L 10 5 L 0 10 z" fill="context-stroke" />
        </marker>
      </defs>
      {ways.map(({ from, way }) => {
        const [x1, y1] = corner(from, way.source);
        const [x2, y2] = corner(byName[way.targetName], way.target);
        return (
          <line key={from.name + way.targetName} x1={x1} y1={y1} x2={x2} y2={y2}
            stroke={theme.visualization.getColorByName(way.color.fixed)}
            strokeWidth={way.size.fixed} markerEnd="url(#head)" />
        );
      })}
    </svg>
  );
}

export function Canvas({ panel, frames, width, height, theme }) {
  const { elements } = panel.options.root;
  const right = Math.max(...elements.map(({ placement: at }) => at.left + at.width));
  const bottom = Math.max(...elements.map(({ placement: at }) => at.top + at.height));
  const left = Math.min(...elements.map(({ placement: at }) => at.left));
  const top = Math.min(...elements.map(({ placement: at }) => at.top));
  const scale = panel.options.zoomToContent
    ? Math.min(width / (right - left), height / (bottom - top)) : 1;
  const x = (width - (right - left) * scale) / 2 - left * scale;
  const y = (height - (bottom - top) * scale) / 2 - top * scale;
  return (
    <div style={{
      position: 'absolute', transformOrigin: '0 0',
      transform: panel.options.zoomToContent ? `translate(${x}px, ${y}px) scale(${scale})` : '',
    }}>
      <Ways elements={elements} theme={theme} />
      {elements.map((element) => (
        <Element key={element.name} element={element} frames={frames} theme={theme} />
      ))}
    </div>
  );
}
