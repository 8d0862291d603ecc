package formats

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/penstock/penstock/messages"
)

// A time without a year is the latest that is not more than a day ahead of when
// the object was written.
func TestSyslogYears(t *testing.T) {
	tests := []struct{ created, zone, stamp, want string }{
		{"2026-01-05T18:00:00Z", "", "Jan  5 17:48:41", "2026-01-05T17:48:41Z"},
		{"2026-01-05T18:00:00Z", "", "Jan 05 17:48:41", "2026-01-05T17:48:41Z"},
		{"2026-01-05T18:00:00Z", "", "Dec 31 23:59:59", "2025-12-31T23:59:59Z"},
		{"2026-01-05T18:00:00Z", "", "Jan  6 17:59:59", "2026-01-06T17:59:59Z"},
		{"2026-01-05T18:00:00Z", "", "Jan  6 18:00:01", "2025-01-06T18:00:01Z"},
		{"2025-12-31T23:59:00Z", "", "Jan  1 00:00:30", "2026-01-01T00:00:30Z"},
		{"2026-01-05T18:00:00Z", "", "Feb 29 10:00:00", "2024-02-29T10:00:00Z"},
		{"2026-07-05T18:00:00Z", "Europe/Berlin", "Jul  5 10:00:00", "2026-07-05T08:00:00Z"},
		{"2026-01-01T00:30:00+01:00", "Europe/Berlin", "Jan  1 00:29:00", "2025-12-31T23:29:00Z"},
		{"2026-01-05T18:00:00Z", "", "Jan  5 17:48:41.25", "2026-01-05T17:48:41.25Z"},
		{"2026-01-05T18:00:00Z", "", "Feb 30 10:00:00", ""},
		{"", "", "Jan  5 17:48:41", ""},
	}
	for _, tt := range tests {
		c := defaultFields()
		c.TimeZone = tt.zone
		dec, _ := open(t, "syslog", SyslogConfig{Fields: c}, Deps{}).(Starter)
		origin := &messages.Origin{}
		if tt.created != "" {
			at, err := time.Parse(time.RFC3339, tt.created)
			if err != nil {
				t.Fatal(err)
			}
			origin.Received = at.UnixNano()
		}
		if err := dec.Start(Head{Origin: origin}); err != nil {
			t.Fatal(err)
		}
		var d Doc
		want := "time=" + tt.want + " "
		if tt.want == "" {
			want = "odd=bad_time"
		}
		if err := dec.Decode([]byte("<13>"+tt.stamp+" host app: x"), &d); err != nil || !strings.Contains(d.render(), want) {
			t.Errorf("%+v: %s, %v", tt, d.render(), err)
		}
		if !strings.Contains(string(d.Body), `"timestamp":"`+tt.stamp+`"`) {
			t.Errorf("%+v: %s", tt, d.Body)
		}
	}
}

func TestSyslogConfigValidate(t *testing.T) {
	c := SyslogConfig{EventTypeApp: true, Fields: defaultFields()}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	c.Fields.EventTypeField = "host"
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "event_type_app") {
		t.Error(err)
	}
}

// The bound on structured data keeps it text, whole.
func TestSyslogManyParams(t *testing.T) {
	dec := open(t, "syslog", nil, Deps{})
	for _, data := range []string{
		"[x" + strings.Repeat(` a="b"`, maxParams+1) + "]",
		strings.Repeat("[x]", maxParams+1),
	} {
		var d Doc
		if err := dec.Decode([]byte("<13>1 2026-01-05T22:14:15Z h a p m "+data+" x"), &d); err != nil {
			t.Fatal(err)
		}
		var got map[string]any
		if err := json.Unmarshal(d.Body, &got); err != nil || got["sd_text"] != data || got["sd"] != nil {
			t.Errorf("%.60s became %.100v, %v", data, got, err)
		}
	}
}

// What is taken makes JSON; priority, host and message of a well-formed line come
// back; nothing panics.
func FuzzSyslog(f *testing.F) {
	f.Add(uint8(34), "host", "app", "message [x]", []byte("<34>1 2026-01-05T22:14:15.003Z h su - ID47 [a b=\"c\\\"\" d=\"\"][e] \ufeffx"))
	f.Add(uint8(191), "-", "a.b", "", []byte("<13>Feb  5 17:32:18 192.0.2.99 tag[17]: m"))
	f.Add(uint8(0), "h", "x", "é\xff", []byte("12 <30>*Jan  5 2026 17:48:41.123 UTC: %X-5: y"))
	f.Add(uint8(0), "h", "x", " ", []byte("2026-01-05T17:48:44.5+01:00 host1 CRON[12]: (root)"))
	f.Add(uint8(0), "h", "x", " ", []byte("<34>1 2026-01-05T22:14:15Z h a p m "))
	dec := open(f, "syslog", nil, Deps{})
	f.Fuzz(func(t *testing.T, priority uint8, host, app, message string, rec []byte) {
		if s, ok := dec.(Starter); ok {
			if err := s.Start(Head{Origin: &messages.Origin{Created: 1767607200e9}}); err != nil {
				t.Fatal(err)
			}
		}
		var d Doc
		if dec.Decode(rec, &d) == nil && (!json.Valid(d.Body) || !utf8.Valid(d.Body)) {
			t.Fatalf("%q became %q", rec, d.Body)
		}
		if priority > 191 || !isToken(host) || !isToken(app) || !utf8.ValidString(message) || strings.HasPrefix(message, "\ufeff") {
			return
		}
		line := fmt.Sprintf(`<%d>1 2026-01-05T22:14:15Z %s %s - - [x y="%s"] %s`, priority, host, app, escapeParam(message), message)
		if err := dec.Decode([]byte(line), &d); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		var got struct {
			Facility, Severity int
			Host, App, Message string
			SD                 map[string]map[string]string
		}
		if err := json.Unmarshal(d.Body, &got); err != nil || got.Facility*8+got.Severity != int(priority) ||
			got.Host != host || got.App != app || got.Message != message || got.SD["x"]["y"] != message {
			t.Fatalf("%q became %s, %v", line, d.Body, err)
		}
	})
}

func isToken(s string) bool {
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f {
			return false
		}
	}
	return s != "" && s != "-"
}

func escapeParam(s string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, `]`, `\]`).Replace(s)
}

func BenchmarkSyslog(b *testing.B) {
	var newer, older [][]byte
	for i := range 1000 {
		newer = append(newer, fmt.Appendf(nil, `<165>1 2026-01-05T22:14:15.%03dZ host1.example.org evntslog %d ID47 [exampleSDID@32473 iut="3" eventSource="Application" eventID="1011"] An application event log entry of common length`, i, i))
		older = append(older, fmt.Appendf(nil, `<30>Jan  5 17:48:%02d host1 sshd[%d]: Accepted publickey for user-a from 192.0.2.1 port 51234 ssh2`, i%60, i))
	}
	for name, recs := range map[string][][]byte{"rfc5424": newer, "rfc3164": older} {
		b.Run(name, func(b *testing.B) {
			dec, _ := open(b, "syslog", nil, Deps{}).(Starter)
			if err := dec.Start(Head{Origin: &messages.Origin{Created: 1767607200e9}}); err != nil {
				b.Fatal(err)
			}
			decodeAll(b, dec, recs)
		})
	}
}
