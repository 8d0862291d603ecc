package formats

import (
	"strings"
	"testing"

	"github.com/penstock/penstock/messages"
)

// covers: CEN-8, CEN-12, CEN-20, CEN-36, CEN-37, F-4
func TestCensornet(t *testing.T) {
	id := "id=" + messages.NewID([]byte("censornet"), []byte(`\xb562`)).String()
	web := CensornetConfig{Product: "web"}
	row := CensornetConfig{ProductField: "meta.product"}
	tests := []struct {
		name    string
		options CensornetConfig
		rec     string
		has     string
		content bool // known by its content
	}{
		{"newer generation", web, `{"utc_timestamp":"2026-01-05 12:20:24.010832","final_action":"Allow","icap_tx_uuid":"\\xb562"}`, "type=censornet.web.allow " + id + " time=2026-01-05T12:20:24.010832Z", false},
		{"older generation", web, `{"utc_timestamp":"2026-01-05 12:20:24.010832","final_action":"Allowed","hostname":false,"keywords":null}`, "type=censornet.web.allowed id=none time=2026-01-05T12:20:24.010832Z", true},
		{"no fraction", web, `{"utc_timestamp":"2026-01-05 12:20:24"}`, "type=censornet.web id=none time=2026-01-05T12:20:24Z", true},
		{"time with a zone", web, `{"utc_timestamp":"2026-01-05T12:20:24+01:00"}`, "time=2026-01-05T11:20:24Z", true},
		{"time under another name", web, `{"id":1,"event_timestamp":"2026-01-05 12:20:24","x_timestamp":"y"}`, "time=2026-01-05T12:20:24Z", true},
		{"no time", web, `{"final_action":"Block"}`, "type=censornet.web.block id=none time=none account=\"\" region=\"\" odd=no_time", false},
		{"bad time", web, `{"utc_timestamp":"now"}`, "odd=bad_time", false},
		{"product of the source before that of the row", CensornetConfig{Product: "mfa", ProductField: "product"}, `{"product":"web"}`, "type=censornet.mfa ", false},
		{"product of the row", row, `{"meta":{"product":"casb"},"final_action":"Allow"}`, "type=censornet.casb.allow ", false},
		{"new product", row, `{"meta":{"product":"Next Thing"}}`, "type=censornet.next_thing ", false},
		{"no product", row, `{"product":"web"}`, "type=censornet.unknown ", false},
		{"action of another type", web, `{"final_action":1}`, "type=censornet.web ", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.options.Validate(); err != nil {
				t.Fatal(err)
			}
			var d Doc
			if err := open(t, "censornet", tt.options, Deps{}).Decode([]byte(tt.rec), &d); err != nil {
				t.Fatal(err)
			}
			if got := d.render(); !strings.Contains(got, tt.has) || d.ByContent != tt.content {
				t.Errorf("got %s, by content %v\nwant %s, %v", got, d.ByContent, tt.has, tt.content)
			}
		})
	}
	// The webhook is asked for one product at a time.
	dec := open(t, "censornet", nil, Deps{})
	for _, tt := range []struct{ api, resource, rec, want string }{
		{"censornet:webhook", "email", `{"final_action":"Deliver"}`, "censornet.email.deliver"},
		{"censornet:webhook", "email", `{"product":"web"}`, "censornet.web"},
		{"http", "/hook/web", `{}`, "censornet.unknown"},
		{"", "", `{}`, "censornet.unknown"},
	} {
		var d Doc
		if err := dec.(Starter).Start(Head{Origin: &messages.Origin{Api: tt.api, Resource: tt.resource}}); err != nil {
			t.Fatal(err)
		}
		if err := dec.Decode([]byte(tt.rec), &d); err != nil || d.Type != tt.want {
			t.Errorf("%+v: %s, %v", tt, d.Type, err)
		}
	}
	if err := (CensornetConfig{Product: "Web Security"}).Validate(); err == nil || !strings.Contains(err.Error(), "product") {
		t.Errorf("a product of two words: %v", err)
	}
}
