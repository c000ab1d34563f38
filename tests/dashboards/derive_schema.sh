#!/usr/bin/env bash
# Derive grafana-schema-VERSION.json, a JSON Schema, from the types of @grafana/schema, and
# grafana-units-VERSION.json, the ids of units that @grafana/data knows.
# Needs node and npm and their registry; no test does.
#     tests/dashboards/derive_schema.sh 13.2.3
set -euo pipefail

version=${1:?usage: derive_schema.sh VERSION}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

npm init -y > npm.log
npm install --no-audit --no-fund typescript@5 ts-json-schema-generator@2 \
    "@grafana/schema@$version" "@grafana/data@$version" esbuild@0.28 >> npm.log

raw=./node_modules/@grafana/schema/dist/types/raw
{
    echo "import type { Dashboard } from '$raw/dashboard/x/types.gen';"
    for panel in bargauge canvas stat table text timeseries; do
        echo "import type { Options as ${panel}Options }" \
            "from '$raw/composable/$panel/panelcfg/x/types.gen';"
    done
    for panel in table timeseries; do
        echo "import type { FieldConfig as ${panel}FieldConfig }" \
            "from '$raw/composable/$panel/panelcfg/x/types.gen';"
    done
    echo 'export interface All { dashboard: Dashboard;'
    for panel in bargauge canvas stat table text timeseries; do
        echo "$panel: ${panel}Options;"
    done
    echo 'tableField: tableFieldConfig; timeseriesField: timeseriesFieldConfig }'
} > all.ts
echo '{"compilerOptions":{"strict":true,"skipLibCheck":true,"moduleResolution":"bundler",
"module":"esnext","target":"es2022"}}' > tsconfig.json
npx ts-json-schema-generator --path all.ts --type All --expose none --tsconfig tsconfig.json \
    --no-type-check --jsDoc none --out out.json

python3 - "$version" > "$here/grafana-schema-$version.json" << 'END'
import json, sys
made = json.load(open("out.json"))
comment = f"Derived from the types of @grafana/schema {sys.argv[1]} (Apache-2.0) by derive_schema.sh."
tree = {"$comment": comment, "$schema": made["$schema"], **made["definitions"]["All"]}
print(json.dumps(tree, separators=(",", ":")))
END

cat > units.js << 'END'
import { getValueFormats } from '@grafana/data';
const ids = getValueFormats().flatMap((one) => one.submenu.map(({ value }) => value));
console.log(JSON.stringify([...new Set(ids)].sort()));
END
npx esbuild units.js --bundle --platform=node --outfile=units.cjs --log-level=error \
    --banner:js='globalThis.navigator ??= { languages: ["en"] };'
node units.cjs > "$here/grafana-units-$version.json"
