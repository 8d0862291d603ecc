package ocsf

import (
	"net/netip"
	"strings"
)

func init() {
	define(mapping{
		formats: []string{"cloudfront"}, product: "CloudFront", profiles: []string{"cloud"},
		fields: []field{
			{to: "src_endpoint.ip", from: "c-ip", as: address},
			{to: "src_endpoint.port", from: "c-port", as: port},
			{to: "dst_endpoint.hostname", from: "x-host-header"},
			{to: "http_request.http_method", from: "cs-method"},
			{to: "http_request.referrer", from: "cs(Referer)"},
			{to: "http_request.uid", from: "x-edge-request-id"},
			{to: "http_request.url.hostname", from: "cs(Host)"},
			{to: "http_request.url.path", from: "cs-uri-stem"},
			{to: "http_request.url.query_string", from: "cs-uri-query"},
			{to: "http_request.url.scheme", from: "cs-protocol"},
			{to: "http_request.user_agent", from: "cs(User-Agent)"},
			{to: "http_request.version", from: "cs-protocol-version"},
			{to: "http_response.content_type", from: "sc-content-type"},
			{to: "http_response.length", from: "sc-content-len", as: integer},
			{to: "metadata.product.feature.uid", from: "DistributionId"},
			{to: "tls.cipher", from: "ssl-cipher"},
			{to: "tls.version", from: "ssl-protocol"},
			{to: "traffic.bytes_in", from: "sc-bytes", as: integer}, // destination to source
			{to: "traffic.bytes_out", from: "cs-bytes", as: integer},
			{to: "raw_data", from: "raw"},
			{from: "sc-status", as: taking},
			{from: "x-forwarded-for", as: taking},
		},
		sets:   []string{"http_request.x_forwarded_for", "http_response.code"},
		finish: finishEdge,
	})
}

// finishEdge makes HTTP Activity, from the viewer to the edge.
//
// Source: Amazon CloudFront Developer Guide, standard logging.
func finishEdge(r *record) {
	r.asHTTP(r.text("cs-method"))
	status := r.text("sc-status")
	if code := r.convert(r.get("sc-status"), integer); code != nil && status != "000" {
		r.set("http_response.code", code)
		r.setAnswer(status)
	} else { // the viewer went away
		r.keep("sc-status")
	}
	if !r.setAddresses("http_request.x_forwarded_for", r.text("x-forwarded-for")) {
		r.keep("x-forwarded-for")
	}
}

// setAddresses sets a list of addresses, of texts with commas between them, and reports
// whether it did: whoever sends a header may write anything into it.
func (r *record) setAddresses(path, list string) bool {
	from := len(r.buf)
	for v := range strings.SplitSeq(list, ",") {
		v = strings.TrimSpace(v)
		if _, err := netip.ParseAddr(v); err != nil {
			r.buf = r.buf[:from]
			return false
		}
		r.buf = appendText(append(r.buf, ','), v)
	}
	r.buf[from] = '['
	r.buf = append(r.buf, ']')
	r.set(path, r.buf[from:])
	return true
}
