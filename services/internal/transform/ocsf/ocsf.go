// Package ocsf writes documents of AWS formats as events of the Open Cybersecurity
// Schema Framework, version [Version].
//
// Each format has a table: which attribute comes from which field, and a function for
// what takes a decision. What no attribute takes stays, under its own names, in
// unmapped, so that nothing is lost. A document that lacks what its class requires
// becomes a Base Event, whose unmapped is the whole document.
//
// The same event always gives the same bytes.
//
// Source: schema.ocsf.io, version 1.5.0; the mappings of AWS formats in the examples
// of the OCSF project, from which these differ in that times are in milliseconds only
// (no datetime profile), JSON stays JSON, and metadata.uid is the id that penstock has
// given the event.
package ocsf

import (
	"bytes"
	"strconv"
	"sync"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/internal/document"
)

// Version of the schema.
const Version = "1.5.0"

// Event is what is written as OCSF.
type Event struct {
	ID messages.ID
	// Format is the name of the format that the document has.
	Format string
	// Account and Region are "" where they are not known.
	Account, Region string
	// Time in Unix ns, 0 when unknown.
	Time int64
	// Doc is one JSON value.
	Doc []byte
}

// Result says what became of an event.
type Result uint8

// The results.
const (
	// Mapped: it is an event of a class of its own.
	Mapped Result = iota
	// Base: it lacks what its class requires, and is a Base Event.
	Base
	// Unmapped: there is no table for its format; it stays as it is.
	Unmapped
	// Failed: the document was not understood.
	Failed
)

// String is the result as metrics name it.
func (r Result) String() string {
	return [...]string{"mapped", "base_event", "no_mapping", "failed"}[r]
}

// Formats are those that have a table.
func Formats() []string { return known.names() }

// Mapper writes events as OCSF. It may be used concurrently.
type Mapper struct {
	rawData bool
	work    sync.Pool
}

// NewMapper returns a Mapper. rawData says whether the document goes into raw_data as
// text as well.
func NewMapper(rawData bool) *Mapper {
	m := &Mapper{rawData: rawData}
	m.work.New = func() any { return new(record) }
	return m
}

// Apply appends e as OCSF to dst. Only with Mapped and Base is out worth keeping.
func (m *Mapper) Apply(dst []byte, e *Event) (out []byte, result Result) {
	t := known[e.Format]
	if t == nil {
		return dst, Unmapped
	}
	doc := document.Trim(e.Doc)
	if document.KindOf(doc) != document.Object || !document.Whole(doc) {
		return dst, Failed
	}
	r := m.work.Get().(*record)
	defer m.work.Put(r)
	for {
		r.reset(t, e)
		var ok bool
		if r.rest, ok = r.walk(r.rest, doc, t.root, &r.values); !ok {
			return dst, Failed
		}
		t.finish(r)
		if r.instead == nil {
			break
		}
		t = r.instead
	}
	if r.done != nil {
		return append(dst, r.done...), Mapped
	}
	if r.class == nil || !r.complete() {
		return m.base(dst, r, e, doc), Base
	}
	r.header()
	r.observe()
	if len(r.rest) > len("{}") {
		r.set("unmapped", r.rest)
	}
	if m.rawData && !r.has("raw_data") {
		r.setText("raw_data", string(doc))
	}
	return r.write(dst), Mapped
}

// base appends a Base Event.
func (m *Mapper) base(dst []byte, r *record, e *Event, doc []byte) []byte {
	r.reset(r.table, e)
	r.as(baseEvent, 0)
	r.header()
	r.set("unmapped", doc)
	if m.rawData {
		r.setText("raw_data", string(doc))
	}
	return r.write(dst)
}

// header sets the attributes that every event has.
func (r *record) header() {
	c, e := r.class, r.event
	r.setInt("class_uid", c.uid)
	r.set("class_name", c.quoted)
	r.setInt("category_uid", c.category)
	r.setText("category_name", c.categoryName)
	name, known := c.activities[r.activity]
	if r.activity == other && r.activityName != "" {
		r.setText("activity_name", r.activityName)
	} else {
		r.setText("activity_name", name)
	}
	if !known {
		name = "Other"
	}
	r.setInt("activity_id", r.activity)
	r.setInt("type_uid", c.uid*100+r.activity)
	r.setText("type_name", c.name+": "+name)
	r.setInt("severity_id", r.severity)
	r.setText("severity", severities[r.severity])
	r.setInt("time", int(e.Time/1_000_000))
	r.set("metadata.version", quotedVersion)
	r.setText("metadata.uid", e.ID.String())
	r.set("metadata.profiles", r.table.profiles)
	r.setDefault("metadata.product.name", r.table.product)
	r.setDefault("metadata.product.vendor_name", "AWS")
	r.setDefault("cloud.provider", "AWS")
	if e.Account != "" {
		r.setDefault("cloud.account.uid", e.Account)
	}
	if e.Region != "" {
		r.setDefault("cloud.region", e.Region)
	}
}

var quotedVersion = []byte(`"` + Version + `"`)

// severities are the captions of severity_id.
var severities = map[int]string{0: "Unknown", 1: "Informational", 2: "Low", 3: "Medium", 4: "High", 5: "Critical", 6: "Fatal", other: "Other"}

// observed are the attributes that are listed as observables.
var observed = []struct {
	path, caption string
	id            int
}{
	{"actor.user.name", "User Name", 4},
	{"dst_endpoint.ip", "IP Address", 2},
	{"http_request.url.hostname", "Hostname", 1},
	{"query.hostname", "Hostname", 1},
	{"src_endpoint.ip", "IP Address", 2},
	{"user.name", "User Name", 4},
}

// observe lists the observables.
func (r *record) observe() {
	from := len(r.buf)
	for _, o := range observed {
		slot, ok := r.table.slots[o.path]
		if !ok || r.out[slot] == nil {
			continue
		}
		r.buf = append(r.buf, ',')
		r.buf = append(r.buf, `{"name":"`...)
		r.buf = append(append(r.buf, o.path...), `","type":"`...)
		r.buf = append(append(r.buf, o.caption...), `","type_id":`...)
		r.buf = strconv.AppendInt(r.buf, int64(o.id), 10)
		r.buf = append(append(append(r.buf, `,"value":`...), r.out[slot]...), '}')
	}
	if len(r.buf) == from {
		return
	}
	r.buf[from] = '['
	r.buf = append(r.buf, ']')
	r.set("observables", r.buf[from:])
}

// isNull tells values that say nothing.
func isNull(v []byte) bool { return bytes.Equal(v, []byte("null")) }
