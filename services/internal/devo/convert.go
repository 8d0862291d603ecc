package devo

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Note is something that was not carried over as it stands.
type Note struct {
	// Line in the collector's file.
	Line int
	Text string
}

// Convert returns the configuration of penstock that does what the collector did,
// and what it could not carry over. Secrets are not written into it: it names
// variables of the environment.
func (c *Collector) Convert() (text []byte, notes []Note, err error) {
	w := &converter{}
	sources := &yaml.Node{Kind: yaml.SequenceNode}
	for i := range c.Inputs {
		in := &c.Inputs[i]
		if !in.Enabled {
			w.note(in.Line, "input %s is switched off and left out", in.Name)
			continue
		}
		for k := range in.Services {
			w.service(sources, in, &in.Services[k])
		}
	}
	top := mapping("sources", sources)
	if list := w.outputs(c); list != nil {
		add(top, "destinations", list)
	}
	if c.Debug {
		add(top, "telemetry", mapping("log_level", scalar("debug")))
	}
	for _, r := range c.rest {
		w.note(r.line, "%s has no counterpart: penstock keeps what it needs in its streams, and is watched by its metrics", r.path)
	}
	slices.SortStableFunc(w.notes, func(a, b Note) int { return a.Line - b.Line })
	var body bytes.Buffer
	e := yaml.NewEncoder(&body)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(&yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{top}}), e.Close()); err != nil {
		return nil, nil, err
	}
	var out bytes.Buffer
	out.WriteString("# Made of a configuration of Devo's AWS collector by penstock config import devo.\n")
	if len(w.secrets) > 0 {
		out.WriteString("# Set these variables of the environment, or write ${file:/path} instead:\n")
		for _, name := range w.secrets {
			out.WriteString("#   " + name + "\n")
		}
	}
	out.Write(body.Bytes())
	return out.Bytes(), w.notes, nil
}

type converter struct {
	notes   []Note
	secrets []string
	names   map[string]int
}

func (w *converter) note(line int, format string, args ...any) {
	w.notes = append(w.notes, Note{line, fmt.Sprintf(format, args...)})
}

// name makes a name that no other source has.
func (w *converter) name(parts ...string) string {
	if w.names == nil {
		w.names = map[string]int{}
	}
	name := notInName.ReplaceAllString(strings.Join(parts, "-"), "-")
	name = strings.Trim(name[:min(len(name), 56)], "-")
	if w.names[name]++; w.names[name] > 1 {
		name += "-" + strconv.Itoa(w.names[name])
	}
	return name
}

var (
	notInName  = regexp.MustCompile(`[^A-Za-z0-9_-]+`)
	notInVar   = regexp.MustCompile(`[^A-Za-z0-9]+`)
	namesAList = []string{"regions", "types"}
)

// secret names the variable that holds a secret.
func (w *converter) secret(parts ...string) *yaml.Node {
	name := strings.ToUpper(notInVar.ReplaceAllString(strings.Join(parts, "_"), "_"))
	if !slices.Contains(w.secrets, name) {
		w.secrets = append(w.secrets, name)
	}
	return scalar("${" + name + "}")
}

// service adds the sources of a service: one for each type, and where there are
// queues one for each region.
func (w *converter) service(list *yaml.Node, in *Input, s *Service) {
	if !s.Enabled {
		w.note(s.Line, "service %s of input %s is switched off and left out", s.Name, in.Name)
		return
	}
	regions := texts(s.get("regions"))
	for _, kind := range s.types() {
		t, ok := s.target(kind)
		if !ok {
			w.note(s.Line, "service %s with type %q has no counterpart; the types are %s", s.Name, kind, strings.Join(legalTypes(), ", "))
			continue
		}
		if t.source != "sqs" {
			list.Content = append(list.Content, w.poller(in, s, t, regions))
			continue
		}
		if len(regions) == 0 {
			w.note(s.Line, "service %s names no regions, so the region of its queue is not known: mend its URL", s.Name)
			regions = []string{"REGION"}
		}
		for _, region := range regions {
			list.Content = append(list.Content, w.queue(in, s, t, region, len(regions) > 1))
		}
	}
	w.leftover(in, s)
}

// target is what a type of a service becomes. queues are words by which the key
// that names its queue is told from that of another type of the same service.
type target struct {
	source, format, short string
	queues                []string
}

// targets are the services and their types; those without a service hold in any.
var targets = map[string]target{
	"service-events-all/":      {"sqs", "eventbridge", "events", nil},
	"sqs-cloudwatch-consumer/": {"sqs", "securityhub", "securityhub", nil},
	"/audits_api":              {"cloudtrail_api", "", "audit-api", nil},
	"/audit_apis":              {"cloudtrail_api", "", "audit-api", nil},
	"/audits_s3":               {"sqs", "cloudtrail", "audit", []string{"trail", "audit"}},
	"/logs":                    {"cloudwatch_logs", "", "logs", nil},
	"/flowlogs":                {"sqs", "vpcflow", "flow", []string{"flow", "vpc"}},
	"/cloudfrontlogs":          {"sqs", "cloudfront", "cloudfront", []string{"cloudfront"}},
	"/metrics":                 {"cloudwatch_metrics", "", "metrics", nil},
	"metrics-all/":             {"cloudwatch_metrics", "", "metrics", nil},
	"aws-guardduty/":           {"guardduty", "", "guardduty", nil},
	"cisco-umbrella/":          {"sqs", "umbrella", "umbrella", nil},
}

// target finds what a type of the service becomes.
func (s *Service) target(kind string) (target, bool) {
	if t, ok := targets[s.Name+"/"+kind]; ok {
		return t, true
	}
	if kind == "" {
		return target{}, false
	}
	t, ok := targets["/"+kind]
	return t, ok
}

// defaultTypes are what a service collects when it names no types.
var defaultTypes = map[string]string{"audit-events-all": "audits_api", "custom_service": "logs", "non-cloudwatch-logs": "flowlogs"}

func legalTypes() []string {
	var all []string
	for key := range targets {
		if kind, ok := strings.CutPrefix(key, "/"); ok && kind != "audit_apis" {
			all = append(all, kind)
		}
	}
	slices.Sort(all)
	return all
}

// queue makes a source that reads a queue.
func (w *converter) queue(in *Input, s *Service, t target, region string, several bool) *yaml.Node {
	parts := []string{in.Name, t.short}
	if several {
		parts = append(parts, region)
	}
	n := mapping("name", scalar(w.name(parts...)), "type", scalar("sqs"))
	_, queue := s.queue(t.queues...)
	switch {
	case queue != nil && strings.Contains(queue.Value, "://"):
		add(n, "queue_url", scalar(queue.Value))
	case queue != nil:
		add(n, "queue_url", scalar(w.queueURL(in, s, region, queue.Value)))
	default:
		w.note(s.Line, "service %s names no queue: add queue_url to the source", s.Name)
	}
	if t.format == "umbrella" {
		add(n, "format", mapping("type", scalar(t.format), "devo_types", scalarAs(&yaml.Node{Value: "true"})))
	} else {
		add(n, "format", scalar(t.format))
	}
	if t.format == "eventbridge" || t.format == "securityhub" {
		add(n, "body", scalar("events"))
	} else {
		body := "notifications"
		if queue != nil && strings.HasSuffix(queue.Value, ".fifo") {
			body = "auto" // by EventBridge, if at all
			w.note(queue.Line, "S3 sends notifications to no FIFO queue: check queue %s", queue.Value)
		}
		add(n, "body", scalar(body))
		add(n, "buckets", &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle, Content: []*yaml.Node{scalar("*")}})
		w.note(s.Line, "the collector fetches from every bucket that a message names; write those of source %s into its buckets instead of \"*\"", n.Content[1].Value)
	}
	w.tags(n, s)
	w.credentials(n, in)
	return n
}

// queueURL makes the URL of a queue of which the collector knows the name. Its
// account is that of the role by which it is read.
func (w *converter) queueURL(in *Input, s *Service, region, queue string) string {
	account, domain := "", "amazonaws.com"
	for _, role := range []string{"target_assume_role", "base_assume_role"} {
		if m := roleForm.FindStringSubmatch(in.Credentials[role]); m != nil && account == "" {
			account = m[1]
		}
	}
	if account == "" {
		account = w.secret(in.Name, "account").Value
		w.note(s.Line, "the account of queue %s is not in the file: set the variable %s", queue, account)
	}
	if strings.HasPrefix(region, "cn-") {
		domain += ".cn"
	}
	return "https://sqs." + region + "." + domain + "/" + account + "/" + queue
}

var roleForm = regexp.MustCompile(`^arn:[a-z-]+:iam::(\d{12}):role/`)

// poller makes a source that calls an API.
func (w *converter) poller(in *Input, s *Service, t target, regions []string) *yaml.Node {
	n := mapping("name", scalar(w.name(in.Name, t.short)), "type", scalar(t.source))
	if len(regions) > 0 {
		add(n, "regions", list(regions...))
	} else {
		w.note(s.Line, "service %s names no regions: add regions to the source", s.Name)
	}
	copyText := func(from, to string) {
		if v := s.get(from); v != nil && v.Kind == yaml.ScalarNode && v.Value != "" {
			add(n, to, scalarAs(v))
		}
	}
	copyList := func(from, to string, drop ...string) {
		all := slices.DeleteFunc(texts(s.get(from)), func(v string) bool { return slices.Contains(drop, v) })
		if len(all) > 0 {
			add(n, to, list(all...))
		}
	}
	copyText("start_time", "start_time")
	switch t.source {
	case "cloudtrail_api":
		copyList("sources", "sources", "all_sources")
		copyList("drop_event_names", "drop_event_names")
		if v := s.get("gap_until_now_in_minutes"); v != nil {
			add(n, "gap_until_now", scalar(v.Value+"m"))
		}
		if v := s.get("time_slot_in_hours"); v != nil {
			add(n, "time_slot", scalar(v.Value+"h"))
		}
	case "cloudwatch_logs":
		groups := append(texts(s.get("log_group")), texts(s.get("log_groups"))...)
		if v := s.get("log_groups"); v != nil && v.Kind == yaml.SequenceNode {
			for _, item := range v.Content { // also as mappings of one key each
				groups = append(groups, texts(get(follow(item), "log_group"))...)
			}
		}
		add(n, "log_groups", list(groups...))
		copyText("use_first_optimized_retrieval", "use_first_optimized_retrieval")
	case "cloudwatch_metrics":
		copyList("metric_namespaces", "metric_namespaces")
		copyText("request_period_in_seconds", "request_period_in_seconds")
	}
	if v := s.get("request_period_in_seconds"); v != nil && t.source != "cloudwatch_metrics" {
		add(n, "period", scalar(v.Value+"s"))
	}
	if v := s.get("requests_per_second"); v != nil {
		add(n, "requests_per_second", scalarAs(v))
	} else if in.RequestsPerSecond != "" {
		add(n, "requests_per_second", scalarAs(&yaml.Node{Value: in.RequestsPerSecond}))
	}
	w.tags(n, s)
	w.credentials(n, in)
	return n
}

// tags carries over what names the tables.
func (w *converter) tags(n *yaml.Node, s *Service) {
	for _, key := range []string{"auto_event_type", "tag", "environment"} {
		if v := s.get(key); v != nil && v.Kind == yaml.ScalarNode && v.Value != "" {
			add(n, key, scalarAs(v))
		}
	}
	for key, v := range pairs(s.get("module_properties")) {
		switch key.Value {
		case "tag_base", "event_type_default", "event_type_source_field_name", "event_type_extracting_regex":
			add(n, key.Value, scalarAs(v))
		default:
			w.note(key.Line, "module_properties.%s of service %s: penstock's formats have it built in", key.Value, s.Name)
		}
	}
}

// credentials carries over the names of roles and keys; secrets stay out.
func (w *converter) credentials(n *yaml.Node, in *Input) {
	if len(in.Credentials) == 0 {
		return
	}
	aws := mapping()
	for _, name := range slices.Sorted(maps.Keys(in.Credentials)) {
		switch name {
		case "access_key":
			add(aws, name, scalar(in.Credentials[name]))
		case "access_secret":
			add(aws, name, w.secret(in.Name, "access_secret"))
		case "base_assume_role", "target_assume_role", "assume_role_external_id":
			add(aws, name, scalar(in.Credentials[name]))
		default:
			w.note(in.Line, "credentials.%s of input %s has no counterpart", name, in.Name)
		}
	}
	add(n, "aws", aws)
}

// leftover notes the keys of a service that nothing looked at.
func (w *converter) leftover(in *Input, s *Service) {
	for key := range pairs(s.node) {
		if !s.used[key.Value] && !slices.Contains(namesAList, key.Value) {
			w.note(key.Line, "%s of service %s in input %s has no counterpart", key.Value, s.Name, in.Name)
		}
	}
}

// outputs carries over where events go to.
func (w *converter) outputs(c *Collector) *yaml.Node {
	out := &yaml.Node{Kind: yaml.SequenceNode}
	for i := range c.Outputs {
		o := &c.Outputs[i]
		switch o.Type {
		case "console", "stdout":
			out.Content = append(out.Content, mapping("name", scalar(w.name(o.Name)), "type", scalar("stdout")))
		case "devo_platform", "relay", "in_house_relay", "syslog", "sidecar":
			out.Content = append(out.Content, w.devo(o, c.senders))
		default:
			w.note(o.Line, "output %s of type %s is not carried over: add a destination; see penstock destinations", o.Name, o.Type)
		}
	}
	if len(out.Content) == 0 {
		return nil
	}
	return out
}

// Keys of outputs that may also stand among the global settings.
const (
	concurrentKey = "concurrent_connections"
	gzipKey       = "threshold_for_using_gzip_in_transport_layer"
)

// devo makes a destination of an output. Types other than devo_platform and relay write
// the same lines to an in-house relay without TLS, whatever their name.
func (w *converter) devo(o *Output, senders map[string]string) *yaml.Node {
	used := map[string]bool{"type": true} // SSL or TCP, which the collector does not heed
	get := func(keys ...string) string {
		value := ""
		for _, key := range keys {
			used[key] = true
			if value == "" {
				value = o.Config[key]
			}
		}
		if value == "" {
			value = senders[keys[0]]
		}
		return value
	}
	n := mapping("name", scalar(w.name(o.Name)), "type", scalar("devo"))
	address, port := get("address", "url", "location"), get("port")
	if address == "" || port == "" {
		w.note(o.Line, "output %s lacks an address or a port: mend the address of the destination", o.Name)
		address, port = cmp.Or(address, "ADDRESS"), cmp.Or(port, "443")
	}
	add(n, "address", scalar(net.JoinHostPort(address, port)))
	secure := o.Type == "devo_platform" || o.Type == "relay"
	if o.Type != "devo_platform" {
		add(n, "relay", scalarAs(&yaml.Node{Value: "true"}))
	}
	if !secure {
		add(n, "transport", scalar("tcp"))
	}
	w.sender(n, o, get)
	if secure {
		add(n, "tls", w.certificates(o, get))
	}
	for _, key := range slices.Sorted(maps.Keys(o.Config)) {
		if !used[key] {
			w.note(o.Line, "%s of output %s has no counterpart", key, o.Name)
		}
	}
	return n
}

// sender carries over how an output sends.
func (w *converter) sender(n *yaml.Node, o *Output, get func(keys ...string) string) {
	// A share of the collector's queue from which on it compresses; above 1 is never.
	if text := get(gzipKey); text != "" {
		if share, err := strconv.ParseFloat(text, 64); err != nil || share <= 1 {
			add(n, "gzip", scalarAs(&yaml.Node{Value: "true"}))
		}
	}
	if text := get("sending_timeout"); text != "" {
		if seconds, err := strconv.ParseUint(text, 10, 16); err == nil && seconds > 0 && seconds <= 3600 {
			add(n, "timeout", scalar(text+"s"))
		} else {
			w.note(o.Line, "sending_timeout of output %s is no number of seconds up to 3600", o.Name)
		}
	}
	if text := get(concurrentKey); text != "" {
		if count, err := strconv.ParseUint(text, 10, 16); err == nil && count > 0 {
			add(n, "concurrency", scalarAs(&yaml.Node{Value: strconv.FormatUint(min(count, 256), 10)}))
		} else {
			w.note(o.Line, "%s of output %s is no number of connections", concurrentKey, o.Name)
		}
	}
}

// certificates carries over the names of files. The collector looks for them in its
// folder certs.
func (w *converter) certificates(o *Output, get func(keys ...string) string) *yaml.Node {
	files, relative := mapping(), false
	for _, k := range [][2]string{{"chain", "ca_file"}, {"cert", "cert_file"}, {"key", "key_file"}} {
		name := get(k[0], k[0]+"_loc")
		if name == "" {
			w.note(o.Line, "output %s names no %s, without which Devo lets nobody in: add tls.%s to the destination", o.Name, k[0], k[1])
			name = "/" + strings.ToUpper(k[0])
		}
		if !path.IsAbs(name) {
			name, relative = path.Join("certs", name), true
		}
		add(files, k[1], scalar(name))
	}
	if relative {
		w.note(o.Line, "the files of output %s are looked for from the folder in which penstock is started: better write whole paths", o.Name)
	}
	return files
}

// mapping makes a mapping of keys and values.
func mapping(pairs ...any) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	for i := 0; i+1 < len(pairs); i += 2 {
		key, _ := pairs[i].(string)
		value, _ := pairs[i+1].(*yaml.Node)
		add(n, key, value)
	}
	return n
}

func add(n *yaml.Node, key string, value *yaml.Node) {
	n.Content = append(n.Content, scalar(key), value)
}

// scalar is text, in quotes where it needs them.
func scalar(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	return n
}

// scalarAs keeps the type of a value: 60 stays a number, true a boolean.
func scalarAs(n *yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Value: n.Value, Tag: map[bool]string{true: "!!str"}[n.Tag == "!!str" || n.Tag == "!!timestamp"]}
}

func list(values ...string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
	for _, v := range values {
		n.Content = append(n.Content, scalar(v))
	}
	return n
}
