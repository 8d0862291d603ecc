package formats

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/penstock/penstock/messages"
)

// covers: F-0 (ids, times, numbers as written)
func TestJSON(t *testing.T) {
	id := func(space, s string) string {
		return "id=" + messages.NewID([]byte("json"), []byte(space), []byte(s)).String()
	}
	rfc := func(c JSONConfig) JSONConfig { c.TimeUnit = RFC3339; return c }
	tests := []struct {
		name    string
		options JSONConfig
		rec     string
		has     string
	}{
		{"nothing configured", defaultJSON(), `{"id":"a","time":1}`, `type=json.my_feed id=none time=none account="" region="" odd=`},
		{"id", rfc(JSONConfig{IDField: "id"}), `{"id":"a"}`, id("My.Feed", "a")},
		{"id in a space", rfc(JSONConfig{IDField: "id", IDSpace: "orders"}), `{"id":"a"}`, id("orders", "a")},
		{"id as number, as written", rfc(JSONConfig{IDField: "id"}), `{"id":12345678901234567890.10}`, id("My.Feed", "12345678901234567890.10")},
		{"id with escapes", rfc(JSONConfig{IDField: "id"}), `{"id":"\u0061\n"}`, id("My.Feed", "a\n")},
		{"id down a path", rfc(JSONConfig{IDField: `detail.a\.b.id`}), `{"detail":{"a.b":{"id":"x"}}}`, id("My.Feed", "x")},
		{"no id", rfc(JSONConfig{IDField: "id"}), `{"ID":"a"}`, "id=none time=none account=\"\" region=\"\" odd=no_id"},
		{"true is no id", rfc(JSONConfig{IDField: "id"}), `{"id":true}`, "odd=no_id"},
		{"null is no id", rfc(JSONConfig{IDField: "id"}), `{"id":null}`, "odd=no_id"},
		{"time", rfc(JSONConfig{TimeField: "t"}), `{"t":"2026-01-05 07:44:54.123456789Z"}`, "time=2026-01-05T07:44:54.123456789Z"},
		{"no time", rfc(JSONConfig{TimeField: "t"}), `{}`, "time=none account=\"\" region=\"\" odd=no_time"},
		{"number without a unit", rfc(JSONConfig{TimeField: "t"}), `{"t":1767599094}`, "odd=bad_time"},
		{"seconds", JSONConfig{TimeField: "t", TimeUnit: Seconds}, `{"t":1767599094.5}`, "time=2026-01-05T07:44:54.5Z"},
		{"milliseconds in quotes", JSONConfig{TimeField: "t", TimeUnit: Milliseconds}, `{"t":"1767599094500"}`, "time=2026-01-05T07:44:54.5Z"},
		{"microseconds", JSONConfig{TimeField: "t", TimeUnit: Microseconds}, `{"t":1767599094500000}`, "time=2026-01-05T07:44:54.5Z"},
		{"nanoseconds", JSONConfig{TimeField: "t", TimeUnit: Nanoseconds}, `{"t":1767599094500000001}`, "time=2026-01-05T07:44:54.500000001Z"},
		{"text with a unit", JSONConfig{TimeField: "t", TimeUnit: Seconds}, `{"t":"2026-01-05T07:44:54Z"}`, "odd=bad_time"},
		{"fixed type", rfc(JSONConfig{EventType: "app.login"}), `{}`, "type=app.login "},
		{"type of the record", rfc(JSONConfig{EventType: "voiso", EventTypeField: "type"}), `{"type":"App_Login.ip changed"}`, "type=voiso.app_login.ip_changed "},
		{"type of a number", rfc(JSONConfig{EventTypeField: "type"}), `{"type":4}`, "type=json.my_feed.4 "},
		{"no type", rfc(JSONConfig{EventTypeField: "type"}), `{}`, "type=json.my_feed.unknown id=none time=none account=\"\" region=\"\" odd=no_type"},
		{"account and region", rfc(JSONConfig{AccountField: "a", RegionField: "b.c"}), `{"a":17,"b":{"c":"eu"}}`, `account="17" region="eu"`},
		{"not through arrays", rfc(JSONConfig{AccountField: "a.b"}), `{"a":[{"b":"x"}]}`, `account=""`},
		{"a number", rfc(JSONConfig{IDField: "id"}), ` 7 `, "odd=no_id"},
		{"a text", defaultJSON(), `"x"`, "odd="},
		{"an array", defaultJSON(), `[1,2]`, "odd="},
		{"null", defaultJSON(), `null`, "odd="},
		{"not UTF-8", defaultJSON(), "{\"a\":\"\xff\"}", "odd=bad_utf8"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.options.Validate(); err != nil {
				t.Fatal(err)
			}
			var d Doc
			if err := open(t, "json", tt.options, Deps{Source: "My.Feed"}).Decode([]byte(tt.rec), &d); err != nil {
				t.Fatal(err)
			}
			if got := d.render(); !strings.Contains(got, tt.has) {
				t.Errorf("got %s\nwant %s in it", got, tt.has)
			}
			if string(d.Body) != strings.TrimSpace(tt.rec) {
				t.Errorf("body is %q, want the record unchanged", d.Body)
			}
		})
	}
}

func TestJSONConfigValidate(t *testing.T) {
	tests := []struct {
		name string
		c    JSONConfig
		keys []string
	}{
		{"defaults", defaultJSON(), nil},
		{"all", JSONConfig{IDField: "a.b", TimeField: "t", TimeUnit: Milliseconds, EventType: "a.b-c.d_1"}, nil},
		{"no unit", JSONConfig{}, []string{"time_unit"}},
		{"everything wrong", JSONConfig{
			IDField: strings.Repeat("a.", 16), TimeUnit: "h", EventType: "A b",
		}, []string{"id_field", "time_unit", "event_type"}},
		{"dots at the end", JSONConfig{TimeUnit: RFC3339, EventType: "a."}, []string{"event_type"}},
		{"long type", JSONConfig{TimeUnit: RFC3339, EventType: strings.Repeat("a", 65)}, []string{"event_type"}},
	}
	for _, tt := range tests {
		err := tt.c.Validate()
		if (err != nil) != (len(tt.keys) > 0) {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		for _, key := range tt.keys {
			if !strings.Contains(err.Error(), key) {
				t.Errorf("%s: %v, want %s in it", tt.name, err, key)
			}
		}
	}
}

// Every valid JSON value is an event, nothing else is.
func FuzzJSON(f *testing.F) {
	for _, rec := range scans {
		f.Add([]byte(rec))
	}
	dec := open(f, "json", JSONConfig{IDField: "a", TimeField: "t", TimeUnit: Seconds, EventTypeField: "b.c", AccountField: "e", RegionField: "f"}, Deps{})
	f.Fuzz(func(t *testing.T, rec []byte) {
		var d Doc
		err := dec.Decode(rec, &d)
		if json.Valid(rec) != (err == nil) {
			t.Fatalf("Decode says %v", err)
		}
		if err == nil && !bytes.Equal(d.Body, bytes.Trim(rec, " \t\r\n")) {
			t.Fatalf("body is %q", d.Body)
		}
	})
}
