package security

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/penstock/penstock/tests/harness"
)

// everySecret is a configuration with every kind of source and destination and a secret
// in every key that takes one. <name> is a canary, «name» something of the test. A third
// of the secrets stands in the file, one comes from the environment, one from files.
const everySecret = `
bus:
  store: «store»
  disk: 256 MiB
  drain_timeout: 2s
«bus»
sources:
  - {name: censor, type: censornet, url: "«far»/streaming", key: <censornet key>, products: [web], format: {type: censornet, product: web}, period: 1s, jitter: 0s}
  - {name: history, type: cloudtrail_api, regions: [eu-west-1], period: 1s, jitter: 0s, aws: «aws cloudtrail_api»}
  - {name: groups, type: cloudwatch_logs, regions: [eu-west-1], log_groups: [/a], period: 1s, jitter: 0s, start_time: 2026-01-31T00:00:00Z, aws: «aws cloudwatch_logs»}
  - {name: metrics, type: cloudwatch_metrics, regions: [eu-west-1], metric_namespaces: [AWS/EC2], statistics: [Average], request_period_in_seconds: 300, aws: «aws cloudwatch_metrics»}
  - {name: findings, type: guardduty, regions: [eu-west-1], period: 1s, jitter: 0s, start_time: 2026-01-31T00:00:00Z, aws: «aws guardduty»}
  - {name: listing, type: s3, bucket: some-bucket, period: 1s, start_time: 2026-01-31T00:00:00Z, aws: «aws s3»}
  - {name: trail, type: sqs, queue_url: "«far»/000000000000/trail", buckets: [some-bucket], wait_time: 1s, aws: «aws sqs», bucket_aws: «aws sqs bucket»}
  - name: push
    type: http
    address: «listen»
    tls: {cert_file: «cert», key_file: «key»}
    auth:
      tokens: [<http token scalar>, {name: agents, token: <http token>}]
      basic: [{username: u, password: <http basic>}]
      signatures: [{scheme: hmac, header: X-Sign, secrets: [<http signature>]}]
    endpoints:
      - {path: /in, kind: json, format: json}
      - {path: "/t/{token}", kind: json, format: json}
      - {kind: splunk_hec, query_token: true}
      - path: /own
        kind: json
        format: json
        auth:
          tokens: [<endpoint token scalar>, {name: agents, token: <endpoint token>}]
          basic: [{username: u, password: <endpoint basic>}]
          signatures: [{scheme: hmac, header: X-Sign, secrets: [<endpoint signature>]}]
routes:
  - name: hide
    types: [">"]
    mask: {fields: [who], method: hash, key: <route mask>}
destinations:
  - {name: devo, type: devo, address: «deaf», mask: «mask devo», tls: {ca_file: «cert», cert_file: «cert», key_file: «key»}}
  - name: mail
    type: email
    address: «smtp»
    encryption: starttls
    tls: {ca_file: «cert»}
    username: penstock
    password: <email password>
    from: penstock <penstock@example.org>
    to: [soc@example.org]
    group_wait: 0s
    select: {types: ["*.>"]}
    mask: «mask email»
  - {name: archive, type: file, path: «out», mask: «mask file»}
  - {name: form, type: form_post, url: "«far»/form?token=<form query>&x=1", username: u, password: <form password>, headers: {x-api-key: <form header>}, mask: «mask form_post»}
  - {name: form2, type: form_post, url: "«far»/form", bearer_token: <form bearer>}
  - {name: web, type: http, url: "«far»/in?token=<http query>", bearer_token: <http bearer>, headers: {x-api-key: "Key <http header>"}, mask: «mask http»}
  - {name: web2, type: http, url: "«far»/in", username: u, password: <http password>}
  - {name: web3, type: http, url: "«far tls»/in?sig=<http tls query>", bearer_token: <http tls bearer>}
  - {name: web4, type: http, url: "http://siem.example.com/in?sig=<http proxied query>", bearer_token: <http proxied bearer>}
  - {name: web5, type: http, url: "«refused»/in?sig=<http refused query>", bearer_token: <http refused bearer>}
  - {name: bus1, type: nats, url: "nats://«nats»", user: u, password: <nats password>, subject: "siem.{type}", mask: «mask nats»}
  - {name: bus2, type: nats, url: "nats://«nats»", token: <nats token>, subject: "siem.{type}"}
  - {name: search, type: opensearch, urls: ["«far»"], api_key: <opensearch api key>, mask: «mask opensearch», headers: {x-h: <opensearch header>}}
  - {name: search2, type: opensearch, urls: ["«far»"], bearer_token: <opensearch bearer>}
  - {name: search3, type: opensearch, urls: ["«far»"], username: u, password: <opensearch password>}
  - {name: search4, type: opensearch, urls: ["«far»"], aws: «signed opensearch»}
  - {name: collector, type: otlp, endpoint: "«far»", headers: {x-api-key: <otlp header>}, mask: «mask otlp»}
  - {name: collector2, type: otlp, protocol: grpc, endpoint: "«far»", headers: {x-api-key: <otlp grpc header>}}
  - {name: lake, type: s3, bucket: some-bucket, aws: «aws s3 sink», mask: «mask s3», batch: {age: 0s}}
  - {name: splunk, type: splunk_hec, url: "«far»", token: <hec token>, headers: {x-h: <hec header>}, mask: «mask splunk_hec»}
  - {name: queue, type: sqs, queue_url: "«far»/000000000000/out", oversize: s3, overflow_bucket: some-bucket, aws: «aws sqs sink», overflow_aws: «aws sqs overflow», mask: «mask sqs»}
  - {name: screen, type: stdout, mask: «mask stdout»}
  - {name: sys, type: syslog, transport: tcp, address: «deaf», mask: «mask syslog»}
  - {name: pull, type: webhook_pull, address: «pull», mask: «mask webhook_pull»}
  - {name: hook, type: webhook_push, url: "«far»/hook?k=<webhook query>", bearer_token: <webhook bearer>, secrets: ["whsec_«webhook secret»"], headers: {x-h: <webhook header>}, mask: «mask webhook_push»}
  - {name: hook2, type: webhook_push, url: "«far»/hook", username: u, password: <webhook password>, secrets: ["whsec_«webhook secret»"]}
console:
  address: «console»
  users:
    - {name: ada, role: operator, password_hash: "«password hash»"}
  oidc:
    issuer: «far»
    client_id: penstock
    client_secret: <oidc secret>
    url: http://«console»
    read_only: ["*"]
telemetry:
  address: «health»
  private_address: «private»
  log_format: «log format»
`

// busSecret is the bus of a server elsewhere.
const busSecret = `  url: nats://«nats»
  user: u
  password: <bus password>`

var (
	canaryPlace = regexp.MustCompile(`<([a-z0-9_ ]+)>`)
	testPlace   = regexp.MustCompile(`«([a-z0-9_ ]+)»`)
)

// filled is a configuration that was written.
type filled struct {
	path  string
	env   []string
	text  string
	files []string
}

// fill writes a configuration with canaries, and the files and variables that it refers to.
func fill(t *testing.T, v *vault, text, dir, name string, given map[string]string) filled {
	t.Helper()
	f := filled{path: filepath.Join(dir, name+".yaml")}
	text = testPlace.ReplaceAllStringFunc(text, func(at string) string {
		what := strings.Trim(at, "«»")
		if value, ok := given[what]; ok {
			return value
		}
		if kind, ok := strings.CutPrefix(what, "mask "); ok {
			return "[{fields: [mine], method: hash, key: <mask " + kind + ">}]"
		}
		if kind, ok := strings.CutPrefix(what, "aws "); ok {
			return fmt.Sprintf("{endpoint_url: %q, region: eu-west-1, access_key: AKIAEXAMPLE, access_secret: <%s secret>, session_token: <%s session>}", given["far"], kind, kind)
		}
		if kind, ok := strings.CutPrefix(what, "signed "); ok {
			return fmt.Sprintf("{region: eu-west-1, access_key: AKIAEXAMPLE, access_secret: <%s secret>, session_token: <%s session>}", kind, kind)
		}
		t.Fatalf("nothing is given for %s", at)
		return ""
	})
	text = testPlace.ReplaceAllStringFunc(text, func(at string) string { return given[strings.Trim(at, "«»")] })
	n, spot := 0, 0
	text = canaryPlace.ReplaceAllStringFunc(text, func(at string) string {
		spot += strings.Index(text[spot:], at)
		defer func() { spot += len(at) }()
		where := name + " " + strings.Trim(at, "<>")
		word := v.plant(where)
		inURL := strings.Contains(where, "query")
		if n++; strings.Contains(where, "variable") {
			n += 3 - n%3 + 1
		}
		if inURL || n%3 == 0 {
			return word
		}
		quote := `"`
		if strings.Count(text[strings.LastIndexByte(text[:spot], '\n')+1:spot], quote)%2 == 1 {
			quote = "" // it stands in a text
		}
		if n%3 == 1 {
			key := fmt.Sprintf("CANARY_%s_%d", strings.ToUpper(name), n)
			f.env = append(f.env, key+"="+word)
			return quote + `${` + key + `}` + quote
		}
		file := filepath.Join(dir, fmt.Sprintf("%s-secret-%d", name, n))
		if err := os.WriteFile(file, []byte(word+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		f.files = append(f.files, file)
		return quote + `${file:` + file + `}` + quote
	})
	f.text = text
	if err := os.WriteFile(f.path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f.files = append(f.files, f.path)
	return f
}

// secretKeys are the keys of the schema that hold secrets: sources/http/auth/tokens/token.
func secretKeys(t *testing.T, schema any) []string {
	t.Helper()
	found := map[string]bool{}
	var walk func(n any, at []string)
	walk = func(n any, at []string) {
		m, ok := n.(map[string]any)
		if !ok {
			return
		}
		if m["writeOnly"] == true {
			found[strings.Join(at, "/")] = true
			return
		}
		if props, ok := m["properties"].(map[string]any); ok {
			for key, value := range props {
				walk(value, append(slices.Clone(at), key))
			}
		}
		walk(m["items"], at)
		walk(m["additionalProperties"], append(slices.Clone(at), "*"))
		for _, word := range []string{"anyOf", "oneOf", "allOf"} {
			list, _ := m[word].([]any)
			for _, one := range list {
				here := at
				if kind := kindIn(one); kind != "" {
					here = append(slices.Clone(at), kind)
				}
				walk(one, here)
			}
		}
	}
	walk(schema, nil)
	return slices.Sorted(maps.Keys(found))
}

// kindIn is the const of the property type.
func kindIn(n any) string {
	m, _ := n.(map[string]any)
	props, _ := m["properties"].(map[string]any)
	kind, _ := props["type"].(map[string]any)
	name, _ := kind["const"].(string)
	return name
}

// plantedKeys are the keys of a configuration that hold canaries, in the form of secretKeys.
func plantedKeys(t *testing.T, v *vault, f filled) []string {
	t.Helper()
	var top any
	if err := yaml.Unmarshal([]byte(f.text), &top); err != nil {
		t.Fatal(err)
	}
	holds := func(s string) bool {
		if strings.Contains(s, "${") || strings.HasPrefix(s, "whsec_") || strings.HasPrefix(s, "$argon2id$") {
			return true
		}
		for _, word := range v.words {
			if strings.Contains(s, word) {
				return true
			}
		}
		return false
	}
	found := map[string]bool{}
	var walk func(n any, at []string)
	walk = func(n any, at []string) {
		switch n := n.(type) {
		case string:
			if holds(n) {
				found[strings.Join(at, "/")] = true
			}
		case []any:
			for _, one := range n {
				walk(one, at)
			}
		case map[string]any:
			here := at
			if kind, ok := n["type"].(string); ok && len(at) == 1 {
				here = append(slices.Clone(at), kind)
			}
			for key, value := range n {
				if at := len(here); at > 0 && here[at-1] == "headers" {
					key = "*"
				}
				walk(value, append(slices.Clone(here), key))
			}
		}
	}
	walk(top, nil)
	return slices.Sorted(maps.Keys(found))
}

// Every key that takes a secret has a canary in these tests, and those that come later
// will have to: the schema knows them all.
func TestEverySecretHasACanary(t *testing.T) {
	t.Parallel()
	out, errOut, code := harness.Run(t, nil, "config", "schema")
	if code != 0 {
		t.Fatal(errOut)
	}
	var schema any
	if err := json.Unmarshal([]byte(out), &schema); err != nil {
		t.Fatal(err)
	}
	v, dir := &vault{}, t.TempDir()
	planted := map[string]bool{}
	for _, bus := range []string{busSecret, "  url: nats://«nats»\n  token: <bus token>"} {
		f := fill(t, v, everySecret, dir, "all", stage(t, dir, map[string]string{"bus": bus, "far": "http://127.0.0.1:1"}))
		for _, key := range plantedKeys(t, v, f) {
			planted[key] = true
		}
	}
	keys := secretKeys(t, schema)
	if len(keys) < 60 {
		t.Errorf("the schema has %d secrets: is it still read rightly?", len(keys))
	}
	for _, key := range keys {
		if !planted[key] {
			t.Errorf("%s takes a secret and has no canary: add it to everySecret", key)
		}
	}
}

// stage is what a configuration needs beside its secrets, with addresses that nobody
// listens at but where given says otherwise.
func stage(t *testing.T, dir string, given map[string]string) map[string]string {
	t.Helper()
	all := map[string]string{
		"store": filepath.Join(dir, "store"), "out": filepath.Join(dir, "out.ndjson"), "bus": "",
		"listen": harness.FreeAddr(t), "pull": harness.FreeAddr(t), "console": harness.FreeAddr(t), "health": harness.FreeAddr(t), "private": harness.FreeAddr(t),
		"nats": "127.0.0.1:1", "deaf": "127.0.0.1:1", "smtp": "127.0.0.1:1", "far": "http://127.0.0.1:1", "far tls": "https://127.0.0.1:1", "refused": "http://127.0.0.1:1",
		"cert": filepath.Join(dir, "cert.pem"), "key": filepath.Join(dir, "key.pem"), "log format": "json",
		"password hash": passwordHash, "webhook secret": "Q255bm90YXJlYWxrZXlidXRsb25nZW5vdWdo",
	}
	maps.Copy(all, given)
	return all
}

// A password, and its argon2id hash.
const (
	password     = "correct horse battery staple"
	passwordHash = "$argon2id$v=19$m=65536,t=1,p=1$tNAtKohP/B4db5eYWKLKKg$d8mb8Zpsz/XstCmyae7gZuxWAf6eDjAnStS8472vLUI"
)
