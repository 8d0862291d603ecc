package ocsf

import (
	"net/netip"
	"strings"

	"github.com/penstock/penstock/services/internal/document"
)

// appendText appends text as a JSON string.
func appendText(dst []byte, text string) []byte { return document.AppendQuoted(dst, text) }

// methods are the activities of HTTP Activity, by method.
var methods = map[string]int{"CONNECT": 1, "DELETE": 2, "GET": 3, "HEAD": 4, "OPTIONS": 5, "POST": 6, "PUT": 7, "TRACE": 8}

// asHTTP gives the event its activity by the method of its request.
func (r *record) asHTTP(method string) {
	r.as(httpActivity, methods[strings.ToUpper(method)])
	if r.activity == 0 && method != "" {
		r.activity, r.activityName = other, method
	}
}

// httpSets are the attributes that setRequest and setAnswer set.
var httpSets = []string{
	"dst_endpoint.ip", "dst_endpoint.port", "http_request.http_method", "http_request.url.url_string", "http_request.version",
	"src_endpoint.ip", "src_endpoint.port",
}

// setRequest sets what the request line of a field tells, e.g.
// GET https://www.example.org/ HTTP/1.1, and returns the method. A line that was
// malformed, or is not HTTP, stays.
func (r *record) setRequest(from string) (method string) {
	method, rest, _ := strings.Cut(r.text(from), " ")
	cut := strings.LastIndexByte(rest, ' ')
	if method == "" || method == "-" || cut <= 0 || cut == len(rest)-1 {
		r.keep(from)
		return ""
	}
	r.setText("http_request.http_method", method)
	r.setText("http_request.url.url_string", rest[:cut])
	r.setText("http_request.version", rest[cut+1:])
	return method
}

// setAnswer sets the status of the event by the status of the answer.
func (r *record) setAnswer(code string) {
	if len(code) != 3 {
		return
	}
	setStatus(r, code[0] < '4')
}

// setEndpoint sets address and port, of a field with 192.0.2.1:443 or
// [2001:db8::1]:443.
func (r *record) setEndpoint(endpoint, from string) {
	at, err := netip.ParseAddrPort(r.text(from))
	if err != nil {
		r.keep(from)
		return
	}
	r.setText(endpoint+".ip", at.Addr().String())
	r.setInt(endpoint+".port", int(at.Port()))
}
