package ocsf

func init() {
	define(mapping{
		formats: []string{"alb", "elb_classic"}, product: "Elastic Load Balancing", profiles: []string{"cloud", "load_balancer"},
		fields: []field{
			{to: "load_balancer.name", from: "elb"},
			{to: "metadata.original_time", from: "time"},
			{to: "metadata.original_time", from: "timestamp"},
			{to: "http_request.user_agent", from: "user_agent"},
			{to: "http_request.uid", from: "trace_id"},
			{to: "http_response.code", from: "elb_status_code", as: integer},
			{to: "traffic.bytes_out", from: "received_bytes", as: integer}, // source to destination
			{to: "traffic.bytes_in", from: "sent_bytes", as: integer},
			{to: "tls.version", from: "ssl_protocol"},
			{to: "tls.cipher", from: "ssl_cipher"},
			{to: "tls.sni", from: "domain_name"},
			{to: "raw_data", from: "raw"},
			{from: "client:port", as: taking},
			{from: "target:port", as: taking},
			{from: "backend:port", as: taking},
			{from: "request", as: taking},
		},
		sets:   httpSets,
		finish: finishBalancer,
	})
}

// finishBalancer makes HTTP Activity, from the client to the target. Connection logs,
// which have no request, become Base Events.
//
// Source: Elastic Load Balancing, access log entries.
func finishBalancer(r *record) {
	r.setEndpoint("src_endpoint", "client:port")
	r.setEndpoint("dst_endpoint", "target:port")  // a line has this
	r.setEndpoint("dst_endpoint", "backend:port") // or this
	r.asHTTP(r.setRequest("request"))
	r.setAnswer(r.text("elb_status_code"))
}
