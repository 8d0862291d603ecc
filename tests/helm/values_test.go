package helm

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestBadValues: the schema and the templates say what is wrong, and where.
func TestBadValues(t *testing.T) {
	base := cases(t)["typical"]
	for _, tt := range []struct{ name, set, want string }{
		{"unknown key", "replicaCount: 3", "replicaCount"},
		{"unknown stage", "stages: {parser: {replicas: 2}}", "parser"},
		{"unknown key of a stage", "stages: {parse: {replica: 2}}", "replica"},
		{"unknown section of the configuration", "config: {source: []}", "source"},
		{"replicas as a text", `stages: {parse: {replicas: "2"}}`, "stages/parse/replicas"},
		{"replicas below none", "stages: {parse: {replicas: -1}}", "stages/parse/replicas"},
		{"sources that are no list", "config: {sources: sqs}", "config/sources"},
		{"no address of NATS", "nats: {url: nats.example.com}", "nats/url"},
		{"two replicas of a stream", "nats: {replicas: 2}", "nats/replicas"},
		{"one Secret for all users", "nats: {users: {secret: penstock}}", "nats/users/secret"},
		{"monitoring with a path", "nats: {monitoring: {endpoint: 'http://nats:8222/jsz'}}", "nats/monitoring/endpoint"},
		{"a digest cut off", "image: {digest: 'sha256:0123'}", "image/digest"},
		{"no image", "image: {repository: ''}", "image/repository"},
		{"an unknown scaler", "stages: {parse: {autoscaling: {type: vpa}}}", "stages/parse/autoscaling/type"},
		{"scaling to nothing", "stages: {parse: {autoscaling: {minReplicas: 0}}}", "stages/parse/autoscaling/minReplicas"},
		{"a threshold without quotes", "stages: {parse: {autoscaling: {lagThreshold: 32}}}", "stages/parse/autoscaling/lagThreshold"},
		{"a port that is none", "stages: {ingest: {ports: [{name: hec, port: 80880}]}}", "stages/ingest/ports/0/port"},
		{"a port without a name", "stages: {ingest: {ports: [{port: 8088}]}}", "stages/ingest/ports/0"},
		{"a secret in plain text", "secrets: {env: [{name: SIEM_TOKEN, value: abc}]}", "secrets/env/0"},
		{"a secret for nobody known", "secrets: {env: [{name: A, secret: a, key: a, for: [delivery]}]}", "secrets/env/0/for/0"},
		{"files outside of the folder", "secrets: {files: [{secret: a, keys: [a], path: ../nats}]}", "secrets/files/0/path"},
		{"no time to drain", "drainSeconds: 0", "drainSeconds"},
		{"more memory than there is", "memoryLimitPercent: 120", "memoryLimitPercent"},
		{"a disruption of nothing", "defaults: {podDisruptionBudget: {maxUnavailable: 0}}", "podDisruptionBudget/maxUnavailable"},
		{"a volume without a unit that exists", "console: {persistence: {size: 4GB}}", "console/persistence/size"},
		{"a volume for many", "console: {persistence: {accessMode: ReadWriteMany}}", "console/persistence/accessMode"},

		{"the address of NATS in the configuration", "config: {bus: {url: 'nats://other:4222'}}", "config.bus.url: the chart sets it; use nats.url"},
		{"a password in the configuration", "config: {bus: {password: abc}}", "config.bus.password: the chart sets it; use nats.users"},
		{"another address for probes", "config: {telemetry: {address: ':9090'}}", "config.telemetry.address: the chart sets it"},
		{"the ledger elsewhere", "config: {ledger: {store: /tmp}}", "config.ledger.store: the chart sets it; use console.persistence"},
		{"memory in words", "stages: {parse: {resources: {limits: {memory: 1 gig}}}}", "resources.limits.memory"},
		{"a console for everybody", "console: {ingress: {enabled: true, hosts: [{host: a.example.com}]}}", "nobody could log in; set config.console.users or config.console.oidc"},
		{"an ingress to nowhere", "stages: {ingest: {ingress: {enabled: true}}}", "stages.ingest.ingress.hosts"},
		{"an ingress to a port that is not there", "stages: {ingest: {ports: [{name: hec, port: 8088}], ingress: {enabled: true, hosts: [{host: a.example.com, port: http}]}}}", `port "http" is not one of stages.ingest.ports`},
		{"ingest scaled by nothing", "stages: {ingest: {autoscaling: {enabled: true}}}", "stages.ingest.autoscaling: nothing tells how much waits"},
		{"dedupe scaled without Prometheus", "stages: {dedupe: {autoscaling: {enabled: true}}}", "set keda.prometheus"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := template(t, with(t, base, tt.set), release)
			if err == nil {
				t.Fatalf("%s is taken", tt.set)
			}
			if text := strings.ReplaceAll(err.Error(), "'", ""); !strings.Contains(text, tt.want) {
				t.Errorf("%s: the error does not say %q:\n%s", tt.set, tt.want, text)
			}
		})
	}
}

// TestSchemaIsWhole: each key of values.yaml is described, and nothing else may be said.
func TestSchemaIsWhole(t *testing.T) {
	data, err := os.ReadFile(chartDir + "/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(data, &schema); err != nil {
		t.Fatal(err)
	}
	resolve := func(node map[string]any) map[string]any {
		if ref, ok := node["$ref"].(string); ok {
			return schema["definitions"].(map[string]any)[ref[strings.LastIndex(ref, "/")+1:]].(map[string]any)
		}
		return node
	}
	var described func(path string, node map[string]any)
	described = func(path string, node map[string]any) {
		node = resolve(node)
		if path != "" && node["description"] == nil && node["enum"] == nil && node["type"] != "string" && node["type"] != "object" {
			t.Errorf("%s has no description", path)
		}
		properties, has := node["properties"].(map[string]any)
		if has && node["additionalProperties"] != false {
			t.Errorf("%s takes unknown keys", path)
		}
		for key, p := range properties {
			if resolve(p.(map[string]any))["description"] == nil {
				t.Errorf("%s.%s has no description", path, key)
			}
			described(path+"."+key, p.(map[string]any))
		}
		if items, ok := node["items"].(map[string]any); ok {
			described(path+"[]", items)
		}
	}
	described("", schema)

	text, err := os.ReadFile(chartDir + "/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.UnmarshalStrict(text, &values); err != nil {
		t.Fatal(err)
	}
	// What may be said has a place in values.yaml, where people look.
	for key := range schema["properties"].(map[string]any) {
		if _, ok := values[key]; !ok && key != "global" {
			t.Errorf("values.yaml does not show %s", key)
		}
	}
	for key := range resolve(schema["properties"].(map[string]any)["defaults"].(map[string]any))["properties"].(map[string]any) {
		if _, ok := values["defaults"].(map[string]any)[key]; !ok {
			t.Errorf("values.yaml does not show defaults.%s", key)
		}
	}
}

// TestCopies: Helm reads nothing outside of the chart, so the chart has copies of the alert
// rules and the dashboard.
func TestCopies(t *testing.T) {
	for copied, from := range map[string]string{"penstock.rules.yaml": "../../deploy/prometheus/penstock.rules.yaml", "penstock.json": "../../deploy/grafana/penstock.json"} {
		want, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, chartDir+"/files/"+copied, string(want))
	}
}

// TestRules: what the operator of Prometheus gets is what promtool has tried.
func TestRules(t *testing.T) {
	files, err := template(t, cases(t)["everything"], release)
	if err != nil {
		t.Fatal(err)
	}
	var rule struct{ Spec any }
	for _, doc := range strings.Split(files["penstock/templates/metrics.yaml"], "\n---\n") {
		if strings.Contains(doc, "kind: PrometheusRule") {
			if err := yaml.Unmarshal([]byte(doc), &rule); err != nil {
				t.Fatal(err)
			}
		}
	}
	data, err := os.ReadFile("../../deploy/prometheus/penstock.rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var want any
	if err := yaml.Unmarshal(data, &want); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(rule.Spec) != fmt.Sprint(want) {
		t.Errorf("the rules are others:\n%v\nwant:\n%v", rule.Spec, want)
	}
	if !strings.Contains(fmt.Sprint(want), "{{ $labels.destination }}") {
		t.Error("the rules have no templates of Prometheus: then this shows nothing of how Helm treats them")
	}
}
