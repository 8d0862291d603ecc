package formats

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// All pairs are known, with the meaning of the pair, not of the event's name.
// covers: VOI-5, VOI-6, VOI-7, VOI-8, VOI-9, VOI-10, VOI-11, VOI-12, VOI-13, VOI-14, VOI-15, VOI-16, VOI-17, VOI-18, VOI-19, VOI-20, VOI-21, VOI-22, VOI-23, VOI-24, VOI-26, VOI-27, VOI-32, F-1
func TestVoiso(t *testing.T) {
	if len(voisoKinds) != 12 {
		t.Fatalf("%d pairs, want 12", len(voisoKinds))
	}
	above := map[Severity]int{Info: 0, Low: 1, Medium: 2, High: 3}
	for pair, kind := range voisoKinds {
		typ, event, _ := strings.Cut(pair, ".")
		params := map[string]string{}
		for i, name := range voisoParams {
			if kind.params&(1<<i) != 0 {
				params[name] = "v"
			}
		}
		whole, _ := json.Marshal(map[string]any{"timestamp": "2026-01-05T10:11:12.12Z", "type": typ, "event": event, "callcenter": "tenant-a", "params": params})
		d := decodeAs(t, "voiso", string(whole))
		if d.Type != "voiso."+pair || d.Account != "tenant-a" || d.Region != "" || d.HasID || !d.HasTime || d.Odd != 0 || !bytes.Equal(d.Body, whole) {
			t.Errorf("%s: %s", pair, d.render())
		}
		delete(params, voisoParams[0])
		delete(params, "who")
		thin, _ := json.Marshal(map[string]any{"timestamp": "2026-01-05T10:11:12.12Z", "type": typ, "event": event, "params": params})
		if d := decodeAs(t, "voiso", string(thin)); d.Type != "voiso."+pair || d.Odd != BadShape {
			t.Errorf("%s without its user: %s", pair, d.render())
		}
		worry := pair == "app_login.incorrect_password" || pair == "app_login.unauthorized_ip" || pair == "app_login.deleted_user" ||
			pair == "user.privileges_updated" || typ == "allowed_ip"
		if worry && above[kind.severity] <= above[voisoKinds["app_login.successful_login"].severity] {
			t.Errorf("%s is %s, not above a log-in", pair, kind.severity)
		}
	}
}

// covers: VOI-24, VOI-32
func TestVoisoConfigValidate(t *testing.T) {
	for _, tt := range []struct {
		c    VoisoConfig
		says string
	}{
		{VoisoConfig{}, ""},
		{VoisoConfig{SeverityField: "severity", Severities: map[string]Severity{"user.user_added": High, "unknown": Low}}, ""},
		{VoisoConfig{Severities: map[string]Severity{"user.user_added": High}}, "severity_field"},
		{VoisoConfig{SeverityField: "s", Severities: map[string]Severity{"ip_changed": High}}, "severities.ip_changed"},
	} {
		if err := tt.c.Validate(); (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%+v: %v, want %q", tt.c, err, tt.says)
		}
	}
}
