package sources

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/penstock/penstock/messages/fault"
	"github.com/penstock/penstock/services/internal/document"
)

// What Splunk's HTTP Event Collector takes and answers. Source: formats F-25;
// Splunk, HTTP Event Collector REST endpoints, Troubleshoot HTTP Event Collector.

var (
	errHECNoEvent = fault.Define("ingest.hec_event_missing", fault.Reject,
		"have the sender put what it logs under the key event")
	errHECBlank = fault.Define("ingest.hec_event_blank", fault.Reject,
		"have the sender leave out events without text")
	errHECFields = fault.Define("ingest.hec_fields_nested", fault.Reject,
		"have the sender put nested values under event; fields is for plain ones")
	errHECFormat = fault.Define("ingest.hec_bad_event", fault.Reject,
		"have the sender send JSON objects, each with a key event, or use the raw endpoint")
	errHECNoData    = fault.Define("ingest.hec_no_data", fault.Reject, "nothing: senders use empty requests to try the connection")
	errHECNoChannel = fault.Define("ingest.hec_channel_missing", fault.Reject,
		"have the sender send X-Splunk-Request-Channel, or set acknowledge: false")
	errHECBadChannel = fault.Define("ingest.hec_channel_invalid", fault.Reject, "have the sender use a GUID for its channel")
	errHECNoAck      = fault.Define("ingest.hec_ack_disabled", fault.Reject, "set acknowledge of the endpoint, or have the sender not ask")
)

// formatHEC is the format of the events.
const formatHEC = "hec"

// hecWord is an answer of the HTTP Event Collector.
type hecWord struct {
	status int
	Text   string `json:"text"`
	Code   int    `json:"code"`
	// Number of the first event that is refused.
	Number *uint64 `json:"invalid-event-number,omitempty"`
	AckID  *int64  `json:"ackId,omitempty"`
}

// The answers that tell no error.
var (
	hecSuccess = hecWord{status: 200, Text: "Success", Code: 0}
	hecHealthy = hecWord{status: 200, Text: "HEC is healthy", Code: 17}
	hecQueues  = hecWord{status: 503, Text: "HEC is unhealthy, queues are full", Code: 18}
	hecStops   = hecWord{status: 503, Text: "Server is shutting down", Code: 23}
	hecBusy    = hecWord{status: 503, Text: "Server is busy", Code: 9}
	hecFormat  = hecWord{status: 400, Text: "Invalid data format", Code: 6}
)

// hecWords are the answers to faults. Statuses without a code of their own, like
// 413, have the status for one, as Splunk's own answers to a wrong path.
var hecWords = map[*fault.Kind]hecWord{
	errHTTPToken:         {status: 401, Text: "Token is required", Code: 2},
	errHTTPAuthorization: {status: 401, Text: "Invalid authorization", Code: 3},
	errHTTPUnknownToken:  {status: 403, Text: "Invalid token", Code: 4},
	errHTTPSignature:     {status: 403, Text: "Invalid token", Code: 4},
	errHTTPSignatureAge:  {status: 403, Text: "Invalid token", Code: 4},
	errHTTPSubject:       {status: 403, Text: "Invalid token", Code: 4},
	errHTTPQueryToken:    {status: 400, Text: "Query string authorization is not enabled", Code: 16},
	errHECNoData:         {status: 400, Text: "No data", Code: 5},
	errHTTPBroken:        hecFormat,
	errHTTPBad:           hecFormat,
	errHTTPTooBad:        hecFormat,
	errHECFormat:         hecFormat,
	errHTTPKey:           hecFormat,
	errPanic:             {status: 500, Text: "Internal server error", Code: 8},
	errHTTPFull:          hecBusy,
	errHTTPStored:        hecBusy,
	errHTTPStopping:      hecStops,
	errHECNoChannel:      {status: 400, Text: "Data channel is missing", Code: 10},
	errHECBadChannel:     {status: 400, Text: "Invalid data channel", Code: 11},
	errHECNoEvent:        {status: 400, Text: "Event field is required", Code: 12},
	errHECBlank:          {status: 400, Text: "Event field cannot be blank", Code: 13},
	errHECNoAck:          {status: 400, Text: "ACK is disabled", Code: 14},
	errHECFields:         {status: 400, Text: "Error in handling indexed fields", Code: 15},
	errHTTPRate:          {status: 429, Text: "HEC queue is at capacity", Code: 26},
}

// hecWordOf is the answer to err.
func hecWordOf(err error) hecWord {
	var f *fault.Error
	if !errors.As(err, &f) {
		return hecWords[errPanic]
	}
	if w, ok := hecWords[f.Kind]; ok {
		return w
	}
	if strings.HasPrefix(f.Kind.Code, "framing.") {
		return hecFormat
	}
	status := httpStatusOf(err)
	return hecWord{status: status, Text: http.StatusText(status), Code: status}
}

// hec serves an endpoint of the HTTP Event Collector.
func (x *httpExchange) hec(rest string) int {
	switch rest {
	case "", "/event", "/event/1.0", "/1.0":
		return x.receive(false)
	case "/raw", "/raw/1.0":
		return x.receive(true)
	case "/health", "/health/1.0":
		return x.hecHealth()
	case "/ack", "/ack/1.0":
		return x.hecAcks()
	}
	return x.json(http.StatusNotFound, hecNotFound)
}

var hecNotFound = hecWord{Text: "The requested URL was not found on this server.", Code: 404}

// hecHealth needs no token, but says so when there is a wrong one.
func (x *httpExchange) hecHealth() int {
	if x.r.Method != http.MethodGet && x.r.Method != http.MethodHead {
		x.w.Header().Set("Allow", "GET, HEAD")
		return x.refuse(errHTTPMethod.New(nil, "ask for health with %.20s", x.r.Method))
	}
	who, sig, err := x.e.gate.admit(x.r, x.e, x.token, x.ip, x.began)
	_, _ = who, sig
	var f *fault.Error
	switch {
	case errors.As(err, &f) && f.Kind == errHTTPUnknownToken:
		return x.json(http.StatusBadRequest, hecWord{Text: "Invalid token", Code: 21})
	case errors.As(err, &f) && f.Kind == errHTTPAddress:
		return x.refuse(err)
	case x.h.s.stopping.Load():
		return x.json(hecStops.status, hecStops)
	case x.h.s.stalled.Load() > 0:
		x.retryAfter()
		return x.json(hecQueues.status, hecQueues)
	}
	return x.json(hecHealthy.status, hecHealthy)
}

// channel checks the channel where acknowledgement wants one.
func (x *httpExchange) channel() error {
	if !x.e.Acknowledge {
		return nil
	}
	channel := x.r.Header.Get("X-Splunk-Request-Channel")
	if channel == "" {
		channel = x.r.URL.Query().Get("channel")
	}
	switch {
	case channel == "":
		return errHECNoChannel.New(nil, "take a request")
	case !isGUID(channel):
		return errHECBadChannel.New(nil, "take a request")
	}
	return nil
}

func isGUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		c := s[i] | 0x20
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash && s[i] != '-' || !dash && (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// maxAcks bounds a question about acknowledgements. Unit: bytes.
const maxAcks = 1 << 20

// hecAcks answers what became of earlier requests. Whoever has an ackId got it
// with a 200, which is given after the bus has stored the events: so the answer is
// always true, at any replica and after any restart, and nothing is kept for it.
func (x *httpExchange) hecAcks() int {
	if x.r.Method != http.MethodPost {
		x.w.Header().Set("Allow", http.MethodPost)
		return x.refuse(errHTTPMethod.New(nil, "ask for acknowledgements with %.20s", x.r.Method))
	}
	who, sig, err := x.e.gate.admit(x.r, x.e, x.token, x.ip, x.began)
	switch {
	case err != nil:
		return x.refuse(err)
	case !x.e.Acknowledge:
		return x.refuse(errHECNoAck.New(nil, "ask for acknowledgements"))
	}
	if err := x.channel(); err != nil {
		return x.refuse(err)
	}
	if wait := x.h.s.callers.Take(who.name, x.began); wait > 0 {
		return x.limited(wait)
	}
	in := httpWire{r: x.r.Body, max: maxAcks, sig: sig, control: http.NewResponseController(x.w), stall: x.h.s.cfg.Timeouts.Stall, until: x.began.Add(x.h.s.cfg.Timeouts.Read)}
	body, err := io.ReadAll(&in)
	if err == nil && sig != nil {
		err = sig.check()
	}
	if err != nil {
		return x.refuse(err)
	}
	ids, ok := ackIDs(document.Trim(body))
	if !ok {
		return x.refuse(errHECFormat.New(nil, "read a question about acknowledgements"))
	}
	answer := struct {
		Acks map[string]bool `json:"acks"`
	}{map[string]bool{}}
	for _, id := range ids {
		answer.Acks[id] = true
	}
	return x.json(http.StatusOK, answer)
}

// ackIDs reads {"acks":[1,2,3]}.
func ackIDs(body []byte) (ids []string, ok bool) {
	if document.KindOf(body) != document.Object || !document.Whole(body) {
		return nil, false
	}
	for c := document.Members(body); ; {
		key, start, end, more := c.Next()
		if !more {
			return ids, ok && !c.Bad()
		}
		if string(key) != "acks" || document.KindOf(body[start:end]) != document.Array {
			continue
		}
		ok = true
		list := document.Members(body[start:end])
		for {
			_, from, to, more := list.Next()
			if !more {
				ok = ok && !list.Bad()
				break
			}
			id := string(body[start:end][from:to])
			if _, err := strconv.ParseInt(id, 10, 64); err != nil {
				return nil, false
			}
			ids = append(ids, id)
		}
	}
}

// hecCheck tells whether rec is an event as Splunk takes it.
func hecCheck(rec []byte) error {
	if document.KindOf(rec) != document.Object {
		return errHECFormat.New(nil, "read an event of %d bytes: it is no JSON object", len(rec))
	}
	event, fields := document.None, document.None
	blank := false
	var nested []byte
	c := document.Members(rec)
	for {
		key, start, end, more := c.Next()
		if !more {
			break
		}
		switch string(key) {
		case "event":
			event, blank = document.KindOf(rec[start:]), string(rec[start:end]) == `""`
		case "fields":
			fields, nested = document.KindOf(rec[start:]), rec[start:end]
		}
	}
	switch {
	case c.Bad():
		return errHECFormat.New(nil, "read an event of %d bytes: it is no valid JSON", len(rec))
	case event == document.None || event == document.Null:
		return errHECNoEvent.New(nil, "read an event of %d bytes", len(rec))
	case blank:
		return errHECBlank.New(nil, "read an event of %d bytes", len(rec))
	case fields == document.None || fields == document.Null:
		return nil
	case fields != document.Object:
		return errHECFormat.New(nil, "read an event of %d bytes: fields is no object", len(rec))
	}
	for list := document.Members(nested); ; {
		_, start, _, more := list.Next()
		if !more {
			return nil
		}
		if document.KindOf(nested[start:]) == document.Object {
			return errHECFields.New(nil, "read an event of %d bytes", len(rec))
		}
	}
}

// hecWrap makes events of raw lines, with what the query says of all of them.
func hecWrap(query url.Values) func(dst, line []byte) []byte {
	head := []byte{'{'}
	for _, key := range []string{"host", "source", "sourcetype", "index"} {
		if v := query.Get(key); v != "" {
			head = document.AppendQuoted(append(document.AppendQuoted(head, key), ':'), v[:min(len(v), 1024)])
			head = append(head, ',')
		}
	}
	if t := query.Get("time"); t != "" {
		if _, err := strconv.ParseFloat(t, 64); err == nil && len(t) <= 32 {
			head = append(append(append(head, `"time":`...), document.AppendQuoted(nil, t)...), ',')
		}
	}
	head = append(head, `"event":`...)
	return func(dst, line []byte) []byte {
		return append(document.AppendQuoted(append(dst, head...), string(line)), '}')
	}
}
