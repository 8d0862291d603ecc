package parse

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/messages"
	"github.com/penstock/penstock/services/parse/formats"
)

// Which records are the same event.
// covers: F-0 (dedupe id, rules 2 and 3), VOI-25, OPC-21
func TestID(t *testing.T) {
	object := func(change func(*messages.Origin)) *messages.Origin {
		o := &messages.Origin{Pull: []byte("p"), Bucket: "b", Key: "k", Etag: "e1", Version: "v1"}
		change(o)
		return o
	}
	message := func(change func(*messages.Origin)) *messages.Origin {
		o := &messages.Origin{Pull: []byte("p"), Queue: "q", MessageId: "m1", Created: int64(1000 * time.Hour)}
		change(o)
		return o
	}
	answer := func(change func(*messages.Origin)) *messages.Origin {
		o := &messages.Origin{Pull: []byte("p"), Api: "http", Resource: "/in"}
		change(o)
		return o
	}
	same := func(*messages.Origin) {}
	const doc = `{"b":1,"a":[1, 2.50]}`
	tests := []struct {
		name    string
		a, b    *messages.Origin
		docB    string // "" for doc
		record  uint64 // of b
		window  time.Duration
		equal   bool
		pullToo bool
	}{
		{name: "announced again", a: object(same), b: object(func(o *messages.Origin) { o.Pull = []byte("p2") }), equal: true},
		{name: "another ordinal", a: object(same), b: object(same), record: 1},
		{name: "another key", a: object(same), b: object(func(o *messages.Origin) { o.Key = "k2" })},
		{name: "another bucket", a: object(same), b: object(func(o *messages.Origin) { o.Bucket = "b2" })},
		{name: "another version", a: object(same), b: object(func(o *messages.Origin) { o.Version = "v2" })},
		{name: "same version, whatever the etag", a: object(same), b: object(func(o *messages.Origin) { o.Etag = "e2" }), equal: true},
		{
			name: "version null is overwritten", a: object(func(o *messages.Origin) { o.Version = "null" }),
			b: object(func(o *messages.Origin) { o.Version, o.Etag = "null", "e2" }),
		},
		{
			name: "no version: by etag", a: object(func(o *messages.Origin) { o.Version = "" }),
			b: object(func(o *messages.Origin) { o.Version, o.Etag = "", "e2" }),
		},
		{
			name: "neither: by content", a: object(func(o *messages.Origin) { o.Version, o.Etag = "", "" }),
			b: object(func(o *messages.Origin) { o.Version, o.Etag = "", "" }), docB: `{"b":2}`,
		},
		{
			name: "neither, same content", a: object(func(o *messages.Origin) { o.Version, o.Etag = "", "" }),
			b: object(func(o *messages.Origin) { o.Version, o.Etag = "", "" }), equal: true,
		},

		{name: "message sent again", a: message(same), b: message(func(o *messages.Origin) { o.MessageId = "m2" }), window: time.Minute, equal: true},
		{name: "keys in another order, other space", a: message(same), b: message(same), docB: `{ "a":[1,2.50],"b":1 }`, window: time.Minute, equal: true},
		{name: "number written otherwise", a: message(same), b: message(same), docB: `{"b":1,"a":[1,2.5]}`, window: time.Minute},
		{name: "array in another order", a: message(same), b: message(same), docB: `{"b":1,"a":[2.50,1]}`, window: time.Minute},
		{name: "another queue", a: message(same), b: message(func(o *messages.Origin) { o.Queue = "q2" }), window: time.Minute},
		{name: "equal events hours apart", a: message(same), b: message(func(o *messages.Origin) { o.Created += int64(time.Hour) }), window: time.Minute},
		{name: "equal events soon after each other", a: message(same), b: message(func(o *messages.Origin) { o.Created += int64(time.Second) }), window: time.Minute, equal: true},
		{name: "equal events in one message", a: message(same), b: message(same), record: 1, window: time.Minute},
		{name: "no window: redelivered", a: message(same), b: message(func(o *messages.Origin) { o.Pull = []byte("p2") }), equal: true},
		{name: "no window: sent again", a: message(same), b: message(func(o *messages.Origin) { o.MessageId = "m2" })},
		{name: "no window: equal events in one message", a: message(same), b: message(same), record: 1},

		{name: "answered again", a: answer(same), b: answer(same), equal: true},
		{name: "another place in the answer", a: answer(same), b: answer(same), record: 1},
		{name: "another answer with the same content", a: answer(same), b: answer(func(o *messages.Origin) { o.Pull = []byte("p2") })},
	}
	for _, tt := range tests {
		var a, b place
		a.reset(tt.a, tt.window)
		b.reset(tt.b, tt.window)
		docB := tt.docB
		if docB == "" {
			docB = doc
		}
		if equal := a.id(0, docOf(doc), nil) == b.id(tt.record, docOf(docB), nil); equal != tt.equal {
			t.Errorf("%s: equal ids %v, want %v", tt.name, equal, tt.equal)
		}
	}
}

func docOf(s string) *formats.Doc { return &formats.Doc{Body: []byte(s)} }

// Rows that come by several ways are the same by their content.
// covers: F-0 (dedupe id, rule 4), CEN-8, CEN-35
func TestIDByContent(t *testing.T) {
	var pulled, queued, object place
	pulled.reset(&messages.Origin{Pull: []byte("p"), Api: "censornet"}, time.Minute)
	queued.reset(&messages.Origin{Pull: []byte("q"), Queue: "q", MessageId: "m"}, 0)
	object.reset(&messages.Origin{Pull: []byte("o"), Bucket: "b", Key: "k"}, 0)
	row := &formats.Doc{Body: []byte(`{"utc_timestamp":"2026-01-05 12:20:24.010832","a":1}`), ByContent: true}
	turned := &formats.Doc{Body: []byte(`{"a":1, "utc_timestamp":"2026-01-05 12:20:24.010832"}`), ByContent: true}
	id := pulled.id(3, row, []byte("censornet"))
	if queued.id(0, turned, []byte("censornet")) != id || object.id(9, row, []byte("censornet")) != id {
		t.Error("the same row has another id when it comes another way")
	}
	if pulled.id(3, row, []byte("other")) == id {
		t.Error("rows of two formats have the same id")
	}
	turned.Body = []byte(`{"a":2, "utc_timestamp":"2026-01-05 12:20:24.010832"}`)
	if pulled.id(3, turned, []byte("censornet")) == id {
		t.Error("another row has the same id")
	}
}

// Stored ids depend on the construction: it is forever.
func TestIDIsStable(t *testing.T) {
	var p place
	p.reset(&messages.Origin{Bucket: "log-bucket-a", Key: "k", Etag: "e"}, time.Minute)
	if got := p.id(7, docOf(""), nil).String(); got != "91f5b4321b3c676a42bacb49b5ef9c9b" {
		t.Errorf("the id of a record in an object is now %s", got)
	}
	p.reset(&messages.Origin{Queue: "https://sqs.example/q", MessageId: "m", Created: 1_767_599_094_000_000_000}, 5*time.Minute)
	if got := p.id(0, docOf(`{"b":1,"a":2}`), nil).String(); got != "2bcb9ec1c0c32df9cec7a809d83be15a" {
		t.Errorf("the id of a record in a message is now %s", got)
	}
}

func TestCanonical(t *testing.T) {
	tests := []struct{ in, want string }{
		{`1.50`, `1.50`},
		{`"a b"`, `"a b"`},
		{"[ 1 , 2 ]", `[1,2]`},
		{`{}`, `{}`},
		{`[]`, `[]`},
		{`{"b":{"d":1,"c":2},"a":[{"z":1,"y":2}]}`, `{"a":[{"y":2,"z":1}],"b":{"c":2,"d":1}}`},
		{`{"a":2,"a":1}`, `{"a":2,"a":1}`},
		{`{"a" : "x\n\" y"}`, `{"a":"x\n\" y"}`},
		{strings.Repeat(`{"b":1,"a":`, 64) + `{"d":1, "c":2}` + strings.Repeat("}", 64), strings.Repeat(`{"a":`, 64) + `{"d":1,"c":2}` + strings.Repeat(`,"b":1}`, 64)},
	}
	for _, tt := range tests {
		if got := string(appendCanonical(nil, []byte(tt.in), 0)); got != tt.want {
			t.Errorf("%s becomes %s, want %s", tt.in, got, tt.want)
		}
	}
}

// The canonical form means the same and is its own canonical form.
func FuzzCanonical(f *testing.F) {
	f.Add([]byte(`{"b":{"d":1,"c":[2,{"z":null,"y":"\u00e9"}]},"a":"x"}`))
	f.Add([]byte(" [ 1.0 , {\n} , \"\\\"\" ] "))
	f.Fuzz(func(t *testing.T, doc []byte) {
		dec := openFormat(t, "json", formats.JSONConfig{TimeUnit: formats.RFC3339}).New()
		var d formats.Doc
		if dec.Decode(doc, &d) != nil {
			return
		}
		got := appendCanonical(nil, d.Body, 0)
		var before, after any
		if err := json.Unmarshal(d.Body, &before); err != nil {
			return // a number beyond float64
		}
		if err := json.Unmarshal(got, &after); err != nil || !reflect.DeepEqual(before, after) {
			t.Fatalf("%q becomes %q: %v", d.Body, got, err)
		}
		if again := appendCanonical(nil, got, 0); string(again) != string(got) {
			t.Fatalf("%q becomes %q", got, again)
		}
	})
}

func TestObserved(t *testing.T) {
	var p place
	for _, tt := range []struct {
		o    *messages.Origin
		want int64
	}{
		{&messages.Origin{Received: 2, Created: 1}, 2},
		{&messages.Origin{Created: 1}, 1},
	} {
		p.reset(tt.o, 0)
		if got := p.observed(); got != tt.want {
			t.Errorf("%v: %d, want %d", tt.o, got, tt.want)
		}
	}
	p.reset(&messages.Origin{}, 0)
	if age := time.Since(time.Unix(0, p.observed())); age < 0 || age > time.Minute {
		t.Errorf("without any time the event is %s old", age)
	}
}

func TestConfig(t *testing.T) {
	if err := Defaults().Validate(); err != nil {
		t.Error(err)
	}
	wrong := Config{GroupEvents: -1, Linger: -1, ThinLinger: -2, ThinEvents: -1, Idle: -1, BodyWindow: -1}
	err := fmt.Sprint(wrong.Validate())
	for _, key := range []string{"group_events", "group_bytes", "linger", "thin_linger", "thin_events", "idle", "memory", "max_event_types", "body_window"} {
		if !strings.Contains(err, key) {
			t.Errorf("no word of %s in: %s", key, err)
		}
	}
	if _, err := New(Defaults(), Deps{}); err == nil {
		t.Error("a stage without parts was made")
	}
	b := &bus{}
	if _, err := New(Defaults(), Deps{NewOutbox: b.outbox, Lanes: 1, Window: 1, Settings: map[string]formats.Setting{"a": {Type: "nonsense"}}}); err == nil {
		t.Error("a source of an unknown format was taken")
	}
}

// Documents find room in a few steps, and an uncommonly long one at the beginning does not
// take more than the input may have.
func TestKeepMakesRoomOnce(t *testing.T) {
	const records, each = 4000, 250
	for _, first := range []int{each, 1, 300 << 10} {
		in := &input{body: make([]byte, records*each/2), budget: records * each * 5}
		steps := 0
		for i := range records {
			doc := bytes.Repeat([]byte{byte(i)}, each)
			if i == 0 {
				doc = make([]byte, first)
			}
			before, at := cap(in.made), len(in.made)
			in.keep(doc, records-i)
			if cap(in.made) != before {
				steps++
			}
			if !bytes.Equal(in.made[at:], doc) {
				t.Fatalf("document %d of %d bytes is not what was kept", i, len(doc))
			}
			in.events = append(in.events, event{})
		}
		if most := int(in.budget) * 5 / 4; steps > 8 || cap(in.made) > most {
			t.Errorf("with a first document of %d bytes: %d steps to %d bytes, want a few and at most %d", first, steps, cap(in.made), most)
		}
	}
}
