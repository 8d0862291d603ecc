package ocsf

import (
	"strings"

	"github.com/penstock/penstock/services/internal/document"
)

func init() {
	define(mapping{
		formats: []string{"waf"}, product: "AWS WAF", profiles: []string{"cloud", "security_control"},
		fields: []field{
			{to: "metadata.product.feature.uid", from: "webaclId"},
			{to: "metadata.product.version", from: "formatVersion"},
			{to: "src_endpoint.svc_name", from: "httpSourceName"},
			{to: "src_endpoint.uid", from: "httpSourceId"},
			{to: "src_endpoint.ip", from: "httpRequest.clientIp", as: address},
			{to: "src_endpoint.location.country", from: "httpRequest.country"},
			{to: "http_request.args", from: "httpRequest.args"},
			{to: "http_request.http_headers", from: "httpRequest.headers", need: []string{"name"}, each: []field{{to: "name", from: "name"}, {to: "value", from: "value"}}},
			{to: "http_request.http_method", from: "httpRequest.httpMethod"},
			{to: "http_request.uid", from: "httpRequest.requestId"},
			{to: "http_request.url.path", from: "httpRequest.uri"},
			{to: "http_request.url.scheme", from: "httpRequest.scheme"},
			{to: "http_request.version", from: "httpRequest.httpVersion"},
			{to: "http_response.code", from: "responseCodeSent", as: integer},
			{to: "firewall_rule.uid", from: "terminatingRuleId"},
			{to: "firewall_rule.type", from: "terminatingRuleType"},
			{to: "firewall_rule.condition", from: "terminatingRuleMatchDetails[0].conditionType"},
			{to: "firewall_rule.match_location", from: "terminatingRuleMatchDetails[0].location"},
			{to: "firewall_rule.match_details", from: "terminatingRuleMatchDetails[0].matchedData", as: texts},
			{to: "firewall_rule.sensitivity", from: "terminatingRuleMatchDetails[0].sensitivityLevel"},
			{to: "firewall_rule.rate_limit", from: "rateBasedRuleList[0].maxRateAllowed", as: integer},
			{to: "firewall_rule.name", from: "rateBasedRuleList[0].rateBasedRuleName"},
			{from: "timestamp", as: taking}, // it is the event's time
			{from: "action", as: taking},
			{from: "httpRequest.headers", as: looking},
			{from: "labels", as: looking},
		},
		sets: []string{
			"action", "action_id", "disposition", "disposition_id", "http_request.referrer", "http_request.url.hostname",
			"http_request.user_agent", "http_request.x_forwarded_for", "metadata.labels",
		},
		finish: finishFirewall,
	})
}

// finishFirewall makes HTTP Activity under a control.
//
// Source: AWS WAF Developer Guide, log fields.
func finishFirewall(r *record) {
	r.asHTTP(r.text("httpRequest.httpMethod"))
	switch action := r.text("action"); action {
	case "":
	case "ALLOW":
		setAction(r, 1, "Allowed", 1, "Allowed")
	case "BLOCK":
		setAction(r, 2, "Denied", 2, "Blocked")
	case "COUNT":
		setAction(r, 1, "Allowed", 20, "Count")
	case "CAPTCHA":
		setAction(r, 4, "Modified", 22, "Captcha")
	case "CHALLENGE":
		setAction(r, 0, "Unknown", 23, "Challenge")
	default:
		setAction(r, other, action, other, action)
	}
	members(r.get("httpRequest.headers"), func(header []byte) {
		name, value := textOf(member(header, "name")), member(header, "value")
		if document.KindOf(value) != document.String {
			return
		}
		switch strings.ToLower(name) {
		case "host":
			r.set("http_request.url.hostname", value)
		case "user-agent":
			r.set("http_request.user_agent", value)
		case "referer":
			r.set("http_request.referrer", value)
		case "x-forwarded-for":
			r.setAddresses("http_request.x_forwarded_for", textOf(value))
		}
	})
	var labels []byte
	members(r.get("labels"), func(label []byte) {
		if name := member(label, "name"); document.KindOf(name) == document.String {
			labels = append(append(labels, ','), name...)
		}
	})
	if len(labels) > 0 {
		labels[0] = '['
		r.set("metadata.labels", append(labels, ']'))
	}
}

// members calls f for each element of a list.
func members(v []byte, f func(element []byte)) {
	if document.KindOf(v) != document.Array {
		return
	}
	c := document.Members(v)
	for {
		_, start, end, more := c.Next()
		if !more {
			return
		}
		f(v[start:end])
	}
}

// member returns a member of an object, nil where it has none of that name.
func member(v []byte, name string) []byte {
	if document.KindOf(v) != document.Object {
		return nil
	}
	c := document.Members(v)
	for {
		key, start, end, more := c.Next()
		if !more {
			return nil
		}
		if string(key) == name {
			return v[start:end]
		}
	}
}
