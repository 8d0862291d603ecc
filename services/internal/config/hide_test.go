package config

import (
	"strings"
	"testing"
)

// No password in an address is shown, however that is written; what is none stays.
func TestPasswordsInAddressesAreHidden(t *testing.T) {
	for _, s := range []string{
		"nats://u:CANARY@a:4222", "nats://CANARY@a:4222", "nats://u:p@CANARY@a:4222", "nats://u:CANARY@a:4222,nats://v:CANARY@b:4222",
		"a:4222,nats://u:CANARY@b", "u:CANARY@a:4222", "u:CANARY@a:4222,v:CANARY@b", "https://u:CANARY@example.com/path?q=1", "see https://u:CANARY@example.com",
		"https://example.com/in?token=CANARY", "https://example.com?a=1&sig=CANARY#x", "https://example.com/in?CANARY", "https://example.com/?x=CANARY&y", "example.com/in?token=CANARY",
		"http://[::1/in?token=CANARY", "see https://example.com/in?token=CANARY.", "https://example.com/in?token=a?CANARY",
	} {
		if got := hideUser(s); strings.Contains(got, "CANARY") || !strings.Contains(got, redacted) {
			t.Errorf("%s becomes %s", s, got)
		}
	}
	for _, s := range []string{
		"ops@example.com", "https://example.com/a@b", "127.0.0.1:9180", "arn:aws:iam::123456789012:role/x",
		`event.doc.user == "a:b@c"`, `event.doc.?errorCode == "x"`, `a/b ? c=="d" : e`, `(?P<type>[a-z]+)/x=1`, "https://example.com/?", "*/a?b/*", "Penstock <ops@example.com>", "nats://a:4222,nats://b:4222",
	} {
		if got := hideUser(s); got != s {
			t.Errorf("%s becomes %s", s, got)
		}
	}
}
