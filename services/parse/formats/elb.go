package formats

import (
	"bytes"
	"strings"

	"github.com/penstock/penstock/services/internal/framing"
)

func init() {
	nlbLayout.bare = true // a list of protocols, each in quotes, is one field
	plainLines := func([]byte) framing.Framing { return lines }
	define("alb", "AWS Application Load Balancer access and connection logs.",
		shape{framing: plainLines, sniff: isALB}, defaultELB, openALB)
	define("elb_classic", "AWS Classic Load Balancer access logs.",
		shape{framing: plainLines, sniff: isELB}, defaultELB, openELB)
	define("nlb", "AWS Network Load Balancer access logs, of its TLS listeners.",
		shape{framing: plainLines, sniff: isNLB}, defaultELB, openNLB)
}

// ELBConfig configures the formats of load balancers: alb, elb_classic and nlb.
type ELBConfig struct {
	// KeepRaw adds the line itself to each document, under the key raw.
	KeepRaw bool `yaml:"keep_raw"`
}

func defaultELB() ELBConfig { return ELBConfig{} }

// The layouts of lines. Times are when the response was sent, or when the
// connection began (nlb, connection logs).
// Source: Elastic Load Balancing User Guides, access logs of Application, Network
// and Classic Load Balancers; connection logs of Application Load Balancers.
var (
	albLayout = newFixed("an application load balancer line", "cloud.aws.alb.access", 18, parseTime, []fixedField{
		{"type", word},
		{"time", when},
		{"elb", word},
		{"client:port", word},
		{"target:port", word},
		{"request_processing_time", amount},
		{"target_processing_time", amount},
		{"response_processing_time", amount},
		{"elb_status_code", amount},
		{"target_status_code", amount},
		{"received_bytes", amount},
		{"sent_bytes", amount},
		{"request", word},
		{"user_agent", word},
		{"ssl_cipher", word},
		{"ssl_protocol", word},
		{"target_group_arn", word},
		{"trace_id", word},
		{"domain_name", word},
		{"chosen_cert_arn", word},
		{"matched_rule_priority", amount},
		{"request_creation_time", word},
		{"actions_executed", word},
		{"redirect_url", word},
		{"error_reason", word},
		{"target:port_list", word},
		{"target_status_code_list", word},
		{"classification", word},
		{"classification_reason", word},
		{"conn_trace_id", word},
		{"transformed_host", word},
		{"transformed_uri", word},
		{"request_transform_status", word},
	})
	albConnectionLayout = newFixed("a connection log line", "cloud.aws.alb.connection", 11, parseTime, []fixedField{
		{"timestamp", when},
		{"client_ip", word},
		{"client_port", amount},
		{"listener_port", amount},
		{"tls_protocol", word},
		{"tls_cipher", word},
		{"tls_handshake_latency", amount},
		{"leaf_client_cert_subject", word},
		{"leaf_client_cert_validity", word},
		{"leaf_client_cert_serial_number", word},
		{"tls_verify_status", word},
		{"conn_trace_id", word},
	})
	nlbLayout = newFixed("a network load balancer line", "cloud.aws.nlb.access", 17, parseZonelessTime, []fixedField{
		{"type", word},
		{"version", word},
		{"time", when},
		{"elb", word},
		{"listener", word},
		{"client:port", word},
		{"destination:port", word},
		{"connection_time", amount},
		{"tls_handshake_time", amount},
		{"received_bytes", amount},
		{"sent_bytes", amount},
		{"incoming_tls_alert", word},
		{"chosen_cert_arn", word},
		{"chosen_cert_serial", word},
		{"tls_cipher", word},
		{"tls_protocol_version", word},
		{"tls_named_group", word},
		{"domain_name", word},
		{"alpn_fe_protocol", word},
		{"alpn_be_protocol", word},
		{"alpn_client_preference_list", word},
		{"tls_connection_creation_time", word},
	})
	elbLayout = newFixed("a classic load balancer line", "cloud.aws.elb.access", 12, parseTime, []fixedField{
		{"timestamp", when},
		{"elb", word},
		{"client:port", word},
		{"backend:port", word},
		{"request_processing_time", amount},
		{"backend_processing_time", amount},
		{"response_processing_time", amount},
		{"elb_status_code", amount},
		{"backend_status_code", amount},
		{"received_bytes", amount},
		{"sent_bytes", amount},
		{"request", word},
		{"user_agent", word},
		{"ssl_cipher", word},
		{"ssl_protocol", word},
	})
)

func openALB(c ELBConfig, _ Deps) (Format, error) {
	return openELBOf("cloud.aws.alb", c, func(line []byte) *fixedLayout {
		if len(line) > 0 && line[0]-'0' <= 9 { // a time, not a type
			return albConnectionLayout
		}
		return albLayout
	}), nil
}

func openNLB(c ELBConfig, _ Deps) (Format, error) {
	return openELBOf("cloud.aws.nlb", c, func([]byte) *fixedLayout { return nlbLayout }), nil
}

func openELB(c ELBConfig, _ Deps) (Format, error) {
	return openELBOf("cloud.aws.elb", c, func([]byte) *fixedLayout { return elbLayout }), nil
}

func openELBOf(base string, c ELBConfig, layout func([]byte) *fixedLayout) Format {
	return Format{
		New:   func() Decoder { return &fixed{keepRaw: c.KeepRaw, layout: layout} },
		Place: func(key string) (string, string) { return awsPlace(key, elbFolder) },
		Base:  base,
		Grows: 3,
	}
}

const elbFolder = "elasticloadbalancing"

// elbKey tells what kind of load balancer a key is of: "app", "net", "" for a
// classic one. Health check logs are of none of these formats.
//
//	[prefix/]AWSLogs/<account>/elasticloadbalancing/<region>/yyyy/mm/dd/<account>_elasticloadbalancing_<region>_app.<id>_<end>_<ip>_<random>.log.gz
//	.../conn_log.<account>_elasticloadbalancing_<region>_app.<id>...
func elbKey(key string) (kind string, ok bool) {
	name := key[strings.LastIndexByte(key, '/')+1:]
	_, after, ok := strings.Cut(name, "_"+elbFolder+"_")
	if !ok || strings.HasPrefix(name, "health_check_log") {
		return "", false
	}
	_, after, _ = strings.Cut(after, "_") // the region
	for _, kind := range [...]string{"app", "net"} {
		if strings.HasPrefix(after, kind+".") {
			return kind, true
		}
	}
	return "", true
}

// firstFields cuts the first line of head into at most n fields.
func firstFields(head []byte, n int) [][]byte {
	line := firstLine(head)
	return bytes.SplitN(line, []byte(" "), n+1)
}

// isALB goes by the key, else by the first line: a type, a time and app/<name>/<id>;
// connection logs by their key only.
func isALB(key string, head []byte) bool {
	if kind, ok := elbKey(key); ok {
		return kind == "app"
	}
	f := firstFields(head, 3)
	if len(f) < 4 || !bytes.HasPrefix(f[2], []byte("app/")) {
		return false
	}
	_, ok := parseTime(f[1])
	return ok
}

// isNLB goes by the key, else by the first line: tls, a version, a time, net/<name>/<id>.
func isNLB(key string, head []byte) bool {
	if kind, ok := elbKey(key); ok {
		return kind == "net"
	}
	f := firstFields(head, 4)
	if len(f) < 5 || !bytes.HasPrefix(f[3], []byte("net/")) {
		return false
	}
	_, ok := parseZonelessTime(f[2])
	return ok
}

// isELB goes by the key, else by the first line: a time, a name, two addresses with
// ports, three durations.
func isELB(key string, head []byte) bool {
	if kind, ok := elbKey(key); ok {
		return kind == ""
	}
	f := firstFields(head, 8)
	if len(f) < 9 || bytes.IndexByte(f[2], ':') < 0 {
		return false
	}
	for _, text := range f[4:7] {
		if !isNumber(text) {
			return false
		}
	}
	_, ok := parseTime(f[0])
	return ok
}

// parseZonelessTime is parseTime for UTC times that do not say so.
func parseZonelessTime(b []byte) (int64, bool) {
	const size = len("2026-01-05T07:44:54")
	if len(b) != size {
		return parseTime(b)
	}
	var text [size + 1]byte
	copy(text[:], b)
	text[size] = 'Z'
	return parseTime(text[:])
}
